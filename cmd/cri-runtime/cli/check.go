package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"
)

// manifestLimit is what Kubernetes' own store would take, roughly.
const manifestLimit = 1 << 20

func readLimited(r io.Reader) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, manifestLimit+1))
	if err == nil && len(text) > manifestLimit {
		err = fmt.Errorf("larger than %d bytes", manifestLimit)
	}
	return text, err
}

var (
	dnsLabel     = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	dnsSubdomain = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
)

// checker collects all that is wrong, so that one look mends it.
type checker struct{ errs []error }

func (k *checker) bad(field, format string, args ...any) {
	k.errs = append(k.errs, fmt.Errorf(field+": "+format, args...))
}

func (k *checker) oneOf(field, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		k.bad(field, "%q is none of %s", value, strings.Join(slices.DeleteFunc(slices.Clone(allowed), func(s string) bool { return s == "" }), ", "))
	}
}

func (p *pod) check() error {
	k := &checker{}
	k.metadata(p.Metadata)
	k.spec(&p.Spec)
	names := map[string]bool{}
	for i, c := range p.all() {
		at := fmt.Sprintf("spec.initContainers[%d]", i)
		if own := i - len(p.Spec.InitContainers); own >= 0 {
			at = fmt.Sprintf("spec.containers[%d]", own)
			k.oneOf(at+".restartPolicy", c.RestartPolicy, "")
		} else {
			k.oneOf(at+".restartPolicy", c.RestartPolicy, "", "Always")
		}
		if names[c.Name] {
			k.bad(at+".name", "%q is the name of two containers", c.Name)
		}
		names[c.Name] = true
		k.container(at, c, p)
	}
	return errors.Join(k.errs...)
}

func (k *checker) metadata(m metadata) {
	if len(m.Name) > 253 || !dnsSubdomain.MatchString(m.Name) {
		k.bad("metadata.name", "%q is no DNS name of lower case letters, digits, '-' and '.'", m.Name)
	}
	if !dnsLabel.MatchString(m.Namespace) {
		k.bad("metadata.namespace", "%q is no DNS label", m.Namespace)
	}
	if m.UID != "" && !dnsLabel.MatchString(m.UID) { // it becomes part of file names
		k.bad("metadata.uid", "%q is no DNS label", m.UID)
	}
}

func (k *checker) spec(s *podSpec) {
	if len(s.Containers) == 0 {
		k.bad("spec.containers", "empty")
	}
	switch s.RestartPolicy {
	case "", "Never":
	default:
		k.bad("spec.restartPolicy", "%q: run starts containers once; leave it out or say Never", s.RestartPolicy)
	}
	if *s.TerminationGracePeriodSeconds < 0 {
		k.bad("spec.terminationGracePeriodSeconds", "negative")
	}
	if s.HostPID && s.ShareProcessNamespace {
		k.bad("spec.shareProcessNamespace", "not together with hostPID")
	}
	if !dnsSubdomain.MatchString(s.Hostname) {
		k.bad("spec.hostname", "%q is no DNS name", s.Hostname)
	}
	k.dns(s)
	k.security("spec.securityContext", &s.SecurityContext.security)
	k.oneOf("spec.securityContext.supplementalGroupsPolicy", s.SecurityContext.SupplementalGroupsPolicy, "", "Merge", "Strict")
	k.volumes(s.Volumes)
}

func (k *checker) dns(s *podSpec) {
	k.oneOf("spec.dnsPolicy", s.DNSPolicy, "", "Default", "ClusterFirst", "ClusterFirstWithHostNet", "None")
	if s.DNSPolicy == "None" && (s.DNSConfig == nil || len(s.DNSConfig.Nameservers) == 0) {
		k.bad("spec.dnsConfig.nameservers", "empty, with dnsPolicy None")
	}
	if s.DNSConfig == nil {
		return
	}
	for i, server := range s.DNSConfig.Nameservers {
		if _, err := netip.ParseAddr(server); err != nil {
			k.bad(fmt.Sprintf("spec.dnsConfig.nameservers[%d]", i), "%q is no IP address", server)
		}
	}
}

func (k *checker) volumes(volumes []volume) {
	names := map[string]bool{}
	for i, v := range volumes {
		at := fmt.Sprintf("spec.volumes[%d]", i)
		if !dnsLabel.MatchString(v.Name) || names[v.Name] {
			k.bad(at+".name", "%q is no DNS label, or used twice", v.Name)
		}
		names[v.Name] = true
		switch {
		case (v.EmptyDir == nil) == (v.HostPath == nil):
			k.bad(at, "want one of emptyDir and hostPath (write emptyDir: {})")
		case v.HostPath != nil:
			if !path.IsAbs(v.HostPath.Path) || slices.Contains(strings.Split(v.HostPath.Path, "/"), "..") {
				k.bad(at+".hostPath.path", "%q is no absolute path without ..", v.HostPath.Path)
			}
			k.oneOf(at+".hostPath.type", v.HostPath.Type, "", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket")
		}
	}
}

func (k *checker) container(at string, c *container, p *pod) {
	if !dnsLabel.MatchString(c.Name) {
		k.bad(at+".name", "%q is no DNS label", c.Name)
	}
	if c.Image == "" || strings.TrimSpace(c.Image) != c.Image {
		k.bad(at+".image", "%q names no image", c.Image)
	}
	k.oneOf(at+".imagePullPolicy", c.ImagePullPolicy, "Always", "IfNotPresent", "Never")
	for i, e := range c.Env {
		if e.Name == "" || strings.ContainsAny(e.Name, "=\x00") {
			k.bad(fmt.Sprintf("%s.env[%d].name", at, i), "%q is no name of a variable", e.Name)
		}
	}
	for i, o := range c.Ports {
		k.port(fmt.Sprintf("%s.ports[%d]", at, i), o, p.Spec.HostNetwork)
	}
	for i, m := range c.VolumeMounts {
		field := fmt.Sprintf("%s.volumeMounts[%d]", at, i)
		if !slices.ContainsFunc(p.Spec.Volumes, func(v volume) bool { return v.Name == m.Name }) {
			k.bad(field+".name", "no volume is called %q", m.Name)
		}
		if m.MountPath == "" {
			k.bad(field+".mountPath", "empty")
		}
		k.oneOf(field+".mountPropagation", m.MountPropagation, "", "None", "HostToContainer", "Bidirectional")
		if m.MountPropagation == "Bidirectional" && !c.SecurityContext.Privileged {
			k.bad(field+".mountPropagation", "Bidirectional is for privileged containers")
		}
	}
	k.resources(at+".resources", c.Resources)
	k.security(at+".securityContext", &c.SecurityContext.security)
}

func (k *checker) port(at string, o port, hostNetwork bool) {
	if o.ContainerPort < 1 || o.ContainerPort > 65535 {
		k.bad(at+".containerPort", "%d is not between 1 and 65535", o.ContainerPort)
	}
	if o.HostPort < 0 || o.HostPort > 65535 {
		k.bad(at+".hostPort", "%d is not between 1 and 65535", o.HostPort)
	}
	if hostNetwork && o.HostPort != o.ContainerPort {
		k.bad(at+".hostPort", "%d must equal containerPort with hostNetwork", o.HostPort)
	}
	if _, err := netip.ParseAddr(o.HostIP); o.HostIP != "" && err != nil {
		k.bad(at+".hostIP", "%q is no IP address", o.HostIP)
	}
	k.oneOf(at+".protocol", o.Protocol, "TCP", "UDP", "SCTP")
}

func (k *checker) resources(at string, r resources) {
	for _, kind := range []struct {
		name string
		list map[string]quantity
	}{{"limits", r.Limits}, {"requests", r.Requests}} {
		for name := range kind.list {
			k.oneOf(at+"."+kind.name, name, "cpu", "memory")
		}
	}
	for _, name := range []string{"cpu", "memory"} {
		limit, limited := r.Limits[name]
		if request := r.Requests[name]; limited && cmp.Compare(request.milli, limit.milli) > 0 {
			k.bad(at+".requests."+name, "more than the limit")
		}
	}
}

func (k *checker) security(at string, s *security) {
	for name, id := range map[string]*int64{"runAsUser": s.RunAsUser, "runAsGroup": s.RunAsGroup} {
		if id != nil && (*id < 0 || *id > 1<<31-1) {
			k.bad(at+"."+name, "%d is out of range", *id)
		}
	}
	for name, p := range map[string]*profile{"seccompProfile": s.SeccompProfile, "appArmorProfile": s.AppArmorProfile} {
		if p == nil {
			continue
		}
		k.oneOf(at+"."+name+".type", p.Type, "RuntimeDefault", "Unconfined", "Localhost")
		if (p.Type == "Localhost") != (p.LocalhostProfile != "") {
			k.bad(at+"."+name+".localhostProfile", "goes with type Localhost, and only with it")
		}
	}
}
