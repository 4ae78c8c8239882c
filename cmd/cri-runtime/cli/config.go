package cli

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	rt "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The labels that the kubelet writes; crictl looks for them.
const (
	labelPod       = "io.kubernetes.pod.name"
	labelNamespace = "io.kubernetes.pod.namespace"
	labelUID       = "io.kubernetes.pod.uid"
	labelContainer = "io.kubernetes.container.name"
)

// What the kubelet hides from containers that do not ask for more.
var (
	maskedPaths = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// surroundings is what the node adds to a manifest.
type surroundings struct {
	uid    string
	dir    string // of the pod: volumes/ and logs/ below it
	memory int64  // of the node, for oom_score_adj
	resolv string // the node's /etc/resolv.conf
}

func (s surroundings) logs() string              { return filepath.Join(s.dir, "logs") }
func (s surroundings) volume(name string) string { return filepath.Join(s.dir, "volumes", name) }
func logPath(name string) string                 { return filepath.Join(name, "0.log") }
func (p *pod) labels(uid string) map[string]string {
	return map[string]string{labelPod: p.Metadata.Name, labelNamespace: p.Metadata.Namespace, labelUID: uid}
}

// sandboxConfig asks for the pod as the kubelet would.
func (p *pod) sandboxConfig(s surroundings) *rt.PodSandboxConfig {
	labels := p.labels(s.uid)
	maps.Copy(labels, p.Metadata.Labels)
	sec := p.Spec.SecurityContext
	c := &rt.PodSandboxConfig{
		Metadata:     &rt.PodSandboxMetadata{Name: p.Metadata.Name, Namespace: p.Metadata.Namespace, Uid: s.uid},
		LogDirectory: s.logs(), DnsConfig: p.dns(s.resolv), Labels: labels, Annotations: p.Metadata.Annotations,
		Linux: &rt.LinuxPodSandboxConfig{
			SecurityContext: &rt.LinuxSandboxSecurityContext{
				NamespaceOptions: p.namespaces(), SupplementalGroups: p.groups(), SupplementalGroupsPolicy: groupsPolicy(sec.SupplementalGroupsPolicy),
				Seccomp:   &rt.SecurityProfile{ProfileType: rt.SecurityProfile_RuntimeDefault},
				RunAsUser: int64Value(sec.RunAsUser), RunAsGroup: groupOf(sec.RunAsUser, sec.RunAsGroup),
				Privileged: slices.ContainsFunc(p.all(), func(c *container) bool { return c.SecurityContext.Privileged }),
			},
			Sysctls: map[string]string{},
		},
	}
	for _, v := range sec.Sysctls {
		c.Linux.Sysctls[v.Name] = v.Value
	}
	if p.Spec.HostNetwork {
		return c
	}
	c.Hostname = p.Spec.Hostname
	for _, o := range p.all() {
		for _, m := range o.Ports {
			c.PortMappings = append(c.PortMappings, &rt.PortMapping{
				Protocol: rt.Protocol(rt.Protocol_value[m.Protocol]), ContainerPort: m.ContainerPort, HostPort: m.HostPort, HostIp: m.HostIP,
			})
		}
	}
	return c
}

// dns is nil when the pod shall have what the node has. There is no cluster, so
// ClusterFirst falls back to that, as it does in a kubelet without a cluster DNS.
func (p *pod) dns(resolv string) *rt.DNSConfig {
	if p.Spec.DNSConfig == nil {
		return nil
	}
	d := &rt.DNSConfig{}
	if p.Spec.DNSPolicy != "None" {
		d = parseResolv(resolv)
	}
	d.Servers = append(d.Servers, p.Spec.DNSConfig.Nameservers...)
	d.Searches = append(d.Searches, p.Spec.DNSConfig.Searches...)
	for _, o := range p.Spec.DNSConfig.Options {
		text := o.Name
		if o.Value != nil {
			text += ":" + *o.Value
		}
		d.Options = append(d.Options, text)
	}
	return d
}

func parseResolv(text string) *rt.DNSConfig {
	d := &rt.DNSConfig{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			d.Servers = append(d.Servers, f[1])
		case "search": // the last one counts
			d.Searches = f[1:]
		case "options":
			d.Options = append(d.Options, f[1:]...)
		}
	}
	return d
}

func (p *pod) namespaces() *rt.NamespaceOption {
	o := &rt.NamespaceOption{Network: rt.NamespaceMode_POD, Pid: rt.NamespaceMode_CONTAINER, Ipc: rt.NamespaceMode_POD}
	if p.Spec.HostNetwork {
		o.Network = rt.NamespaceMode_NODE
	}
	if p.Spec.ShareProcessNamespace {
		o.Pid = rt.NamespaceMode_POD
	}
	if p.Spec.HostPID {
		o.Pid = rt.NamespaceMode_NODE
	}
	if p.Spec.HostIPC {
		o.Ipc = rt.NamespaceMode_NODE
	}
	return o
}

func (p *pod) groups() []int64 {
	sec := p.Spec.SecurityContext
	if sec.FSGroup == nil {
		return sec.SupplementalGroups
	}
	return append([]int64{*sec.FSGroup}, sec.SupplementalGroups...)
}

func groupsPolicy(name string) rt.SupplementalGroupsPolicy {
	if name == "Strict" {
		return rt.SupplementalGroupsPolicy_Strict
	}
	return rt.SupplementalGroupsPolicy_Merge
}

// containerConfig asks for one container; image is the id that the pull gave.
func (p *pod) containerConfig(c *container, image string, s surroundings) *rt.ContainerConfig {
	env := map[string]string{}
	labels := p.labels(s.uid)
	labels[labelContainer] = c.Name
	config := &rt.ContainerConfig{
		Metadata: &rt.ContainerMetadata{Name: c.Name}, Image: &rt.ImageSpec{Image: image, UserSpecifiedImage: c.Image},
		WorkingDir: c.WorkingDir, Labels: labels, Annotations: map[string]string{}, LogPath: logPath(c.Name),
		Stdin: c.Stdin, StdinOnce: c.StdinOnce, Tty: c.TTY,
		Linux: &rt.LinuxContainerConfig{Resources: c.linuxResources(s.memory), SecurityContext: p.linuxSecurity(c)},
	}
	for _, e := range c.Env { // a variable sees those before it
		value := expand(e.Value, env)
		env[e.Name] = value
		config.Envs = append(config.Envs, &rt.KeyValue{Key: e.Name, Value: []byte(value)})
	}
	for _, word := range c.Command {
		config.Command = append(config.Command, expand(word, env))
	}
	for _, word := range c.Args {
		config.Args = append(config.Args, expand(word, env))
	}
	for _, m := range c.VolumeMounts {
		i := slices.IndexFunc(p.Spec.Volumes, func(v volume) bool { return v.Name == m.Name })
		from := s.volume(m.Name)
		if host := p.Spec.Volumes[i].HostPath; host != nil {
			from = host.Path
		}
		to := m.MountPath
		if !filepath.IsAbs(to) {
			to = "/" + to
		}
		config.Mounts = append(config.Mounts, &rt.Mount{ContainerPath: to, HostPath: from, Readonly: m.ReadOnly, Propagation: map[string]rt.MountPropagation{
			"HostToContainer": rt.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, "Bidirectional": rt.MountPropagation_PROPAGATION_BIDIRECTIONAL,
		}[m.MountPropagation]})
	}
	return config
}

func (p *pod) linuxSecurity(c *container) *rt.LinuxContainerSecurityContext {
	sec, outer := c.SecurityContext, &p.Spec.SecurityContext.security
	user := either(sec.RunAsUser, outer.RunAsUser)
	l := &rt.LinuxContainerSecurityContext{
		Capabilities: &rt.Capability{}, Privileged: sec.Privileged, NamespaceOptions: p.namespaces(),
		RunAsUser: int64Value(user), RunAsGroup: groupOf(user, either(sec.RunAsGroup, outer.RunAsGroup)),
		ReadonlyRootfs: sec.ReadOnlyRootFilesystem, SupplementalGroups: p.groups(),
		SupplementalGroupsPolicy: groupsPolicy(p.Spec.SecurityContext.SupplementalGroupsPolicy),
		NoNewPrivs:               sec.AllowPrivilegeEscalation != nil && !*sec.AllowPrivilegeEscalation,
		MaskedPaths:              maskedPaths, ReadonlyPaths: readonlyPaths,
		Seccomp: securityProfile(either(sec.SeccompProfile, outer.SeccompProfile)), Apparmor: securityProfile(either(sec.AppArmorProfile, outer.AppArmorProfile)),
	}
	if l.Seccomp == nil { // Kubernetes confines only whom it is told to
		l.Seccomp = &rt.SecurityProfile{ProfileType: rt.SecurityProfile_Unconfined}
	}
	if sec.Capabilities != nil {
		l.Capabilities.AddCapabilities, l.Capabilities.DropCapabilities = sec.Capabilities.Add, sec.Capabilities.Drop
	}
	return l
}

func either[T any](inner, outer *T) *T {
	if inner != nil {
		return inner
	}
	return outer
}

func int64Value(v *int64) *rt.Int64Value {
	if v == nil {
		return nil
	}
	return &rt.Int64Value{Value: *v}
}

// groupOf gives no group without a user: CRI forbids that.
func groupOf(user, group *int64) *rt.Int64Value {
	if user == nil {
		return nil
	}
	return int64Value(group)
}

func securityProfile(p *profile) *rt.SecurityProfile {
	if p == nil {
		return nil
	}
	return &rt.SecurityProfile{ProfileType: rt.SecurityProfile_ProfileType(rt.SecurityProfile_ProfileType_value[p.Type]), LocalhostRef: p.LocalhostProfile}
}

// linuxResources computes what the kubelet computes.
func (c *container) linuxResources(nodeMemory int64) *rt.LinuxContainerResources {
	r := &rt.LinuxContainerResources{CpuShares: 2, CpuPeriod: 100_000, OomScoreAdj: c.oomScore(nodeMemory)}
	limit, limited := c.Resources.Limits["cpu"]
	request, requested := c.Resources.Requests["cpu"]
	if !requested {
		request = limit
	}
	r.CpuShares = min(max(request.milli*1024/1000, 2), 262_144)
	if limited && limit.milli > 0 {
		r.CpuQuota = max(limit.milli*r.CpuPeriod/1000, 1000)
	}
	r.MemoryLimitInBytes = max(c.Resources.Limits["memory"].value(), 0)
	return r
}

// oomScore is the kubelet's rule: who asked for nothing is killed first, who is
// limited to what it asked for, last.
func (c *container) oomScore(nodeMemory int64) int64 {
	l := c.Resources
	switch {
	case len(l.Limits) == 0 && len(l.Requests) == 0:
		return 1000
	case len(l.Limits) == 2 && (len(l.Requests) == 0 || l.Requests["cpu"] == l.Limits["cpu"] && l.Requests["memory"] == l.Limits["memory"]):
		return -997
	}
	request, ok := l.Requests["memory"]
	if !ok {
		request = l.Limits["memory"]
	}
	return min(max(1000-1000*request.value()/max(nodeMemory, 1), 3), 999)
}

// expand replaces $(NAME) by the variable's value, as Kubernetes does in commands and
// values: $$ is a dollar sign, and unknown names stay.
func expand(text string, env map[string]string) string {
	var out strings.Builder
	for {
		before, after, ok := strings.Cut(text, "$")
		out.WriteString(before)
		if !ok {
			return out.String()
		}
		text = after
		switch {
		case strings.HasPrefix(text, "$"):
			out.WriteByte('$')
			text = text[1:]
		case strings.HasPrefix(text, "("):
			name, rest, closed := strings.Cut(text[1:], ")")
			value, known := env[name]
			if !closed || !known {
				out.WriteByte('$')
				continue
			}
			out.WriteString(value)
			text = rest
		default:
			out.WriteByte('$')
		}
	}
}

// makeVolumes makes the directories of logs and volumes, and looks whether the host's are there.
func (p *pod) makeVolumes(s surroundings) error {
	for _, c := range p.all() { // the runtime makes the files only
		if err := os.MkdirAll(filepath.Dir(filepath.Join(s.logs(), logPath(c.Name))), 0o755); err != nil {
			return fmt.Errorf("make log directory: %w", err)
		}
	}
	for _, v := range p.Spec.Volumes {
		var err error
		if v.HostPath != nil {
			err = checkHostPath(v.HostPath.Path, v.HostPath.Type)
		} else {
			err = makeEmptyDir(s.volume(v.Name), p.Spec.SecurityContext.FSGroup)
		}
		if err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
	}
	return nil
}

// makeEmptyDir gives everybody access, as the kubelet does: users of containers vary.
func makeEmptyDir(dir string, group *int64) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	mode := os.FileMode(0o777)
	if group != nil {
		if err := os.Chown(dir, -1, int(*group)); err != nil {
			return err
		}
		mode |= os.ModeSetgid
	}
	return os.Chmod(dir, mode)
}

func checkHostPath(path, kind string) error {
	info, err := os.Stat(path)
	if os.IsNotExist(err) {
		switch kind {
		case "", "DirectoryOrCreate": // without a type the runtime would make a directory
			return os.MkdirAll(path, 0o755)
		case "FileOrCreate":
			f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
			if err == nil {
				err = f.Close()
			}
			return err
		}
	}
	if err != nil {
		return err
	}
	is := map[string]bool{
		"": true, "Directory": info.IsDir(), "DirectoryOrCreate": info.IsDir(), "File": info.Mode().IsRegular(),
		"FileOrCreate": info.Mode().IsRegular(), "Socket": info.Mode()&os.ModeSocket != 0,
	}[kind]
	if !is {
		return fmt.Errorf("%s is no %s", path, strings.TrimSuffix(kind, "OrCreate"))
	}
	return nil
}

// nodeMemory reads how much memory this machine has.
func nodeMemory() (int64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("read size of memory: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "MemTotal:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("read size of memory: no MemTotal in /proc/meminfo")
}
