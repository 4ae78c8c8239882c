package cri

import (
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

func itoa(i int) string { return strconv.Itoa(i) }

// known tells whether an enum has a value of this number: proto3 lets any through.
func known(e protoreflect.Enum) bool {
	return e.Descriptor().Values().ByNumber(e.Number()) != nil
}

// maxHostname is the kernel's limit (__NEW_UTS_LEN).
const maxHostname = 64

// decodePod decodes what RunPodSandbox asks for.
func decodePod(c *pb.PodSandboxConfig, handler string) (sandbox.PodConfig, error) {
	const f = field("pod config: ")
	var out sandbox.PodConfig
	var err error
	if c == nil {
		return out, field("config").refuse("is missing")
	}
	if c.GetWindows() != nil {
		return out, f.sub("windows").refuse("is set, this is a Linux node")
	}
	if out.Metadata, err = decodePodMetadata(f.sub("metadata"), c.GetMetadata()); err != nil {
		return out, err
	}
	out.Handler, out.Hostname, out.LogDirectory = handler, c.GetHostname(), c.GetLogDirectory()
	out.Labels, out.Annotations = copyMap(c.GetLabels()), copyMap(c.GetAnnotations())
	if len(out.Hostname) > maxHostname {
		return out, f.sub("hostname").refuse("has %d bytes, the kernel takes %d", len(out.Hostname), maxHostname)
	}
	if strings.ContainsAny(out.Hostname, " /") {
		return out, f.sub("hostname").refuse("%q is not a host name", out.Hostname)
	}
	if err := f.sub("hostname").line(out.Hostname); err != nil {
		return out, err
	}
	if err := f.sub("log_directory").absolute(out.LogDirectory); err != nil {
		return out, err
	}
	if out.DNS, err = decodeDNS(f.sub("dns_config."), c.GetDnsConfig()); err != nil {
		return out, err
	}
	if out.PortMappings, err = decodePorts(f, c.GetPortMappings()); err != nil {
		return out, err
	}
	return out, decodeLinuxPod(f.sub("linux."), c.GetLinux(), &out)
}

// decodePodMetadata refuses what could not be shown in one line. The uid may be empty:
// people who write configurations by hand leave it out.
func decodePodMetadata(f field, m *pb.PodSandboxMetadata) (sandbox.Metadata, error) {
	out := sandbox.Metadata{Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid(), Attempt: m.GetAttempt()}
	if m == nil {
		return out, f.refuse("is missing")
	}
	if err := f.sub(".name").required(out.Name); err != nil {
		return out, err
	}
	if err := f.sub(".namespace").required(out.Namespace); err != nil {
		return out, err
	}
	for name, s := range map[string]string{".name": out.Name, ".namespace": out.Namespace, ".uid": out.UID} {
		if err := f.sub(name).line(s); err != nil {
			return out, err
		}
	}
	return out, nil
}

func decodeLinuxPod(f field, c *pb.LinuxPodSandboxConfig, out *sandbox.PodConfig) (err error) {
	out.CgroupParent = c.GetCgroupParent()
	if err := f.sub("cgroup_parent").inside(out.CgroupParent); err != nil {
		return err
	}
	if err := f.sub("cgroup_parent").line(out.CgroupParent); err != nil {
		return err
	}
	if out.Sysctls, err = decodeSysctls(f.sub("sysctls"), c.GetSysctls()); err != nil {
		return err
	}
	if out.Overhead, err = decodeOptionalResources(f.sub("overhead."), c.GetOverhead()); err != nil {
		return err
	}
	if out.Resources, err = decodeOptionalResources(f.sub("resources."), c.GetResources()); err != nil {
		return err
	}
	out.Security, err = decodePodSecurity(f.sub("security_context."), c.GetSecurityContext())
	return err
}

// decodeDNS refuses what would change the meaning of a line of resolv.conf.
func decodeDNS(f field, c *pb.DNSConfig) (*sandbox.DNS, error) {
	if c == nil {
		return nil, nil
	}
	word := func(f field, s string) error {
		if s == "" || strings.ContainsAny(s, " \t") {
			return f.refuse("%q is not one word", s)
		}
		return f.line(s)
	}
	var out sandbox.DNS
	var err error
	if out.Servers, err = f.sub("servers").texts(c.GetServers(), word); err != nil {
		return nil, err
	}
	if out.Searches, err = f.sub("searches").texts(c.GetSearches(), word); err != nil {
		return nil, err
	}
	out.Options, err = f.sub("options").texts(c.GetOptions(), word)
	return &out, err
}

// decodePorts decodes port mappings. Those without a host port are kept: they are
// what the pod says about itself. Two that want the same host port cannot both work.
func decodePorts(f field, ps []*pb.PortMapping) ([]sandbox.PortMapping, error) {
	protocols := map[pb.Protocol]sandbox.Protocol{
		pb.Protocol_TCP: sandbox.TCP, pb.Protocol_UDP: sandbox.UDP, pb.Protocol_SCTP: sandbox.SCTP,
	}
	type hostSide struct {
		p    sandbox.Protocol
		ip   netip.Addr
		port int32
	}
	seen := map[hostSide]int{}
	var out []sandbox.PortMapping
	for i, p := range ps {
		f := f.at("port_mappings", i)
		d := sandbox.PortMapping{HostPort: p.GetHostPort(), ContainerPort: p.GetContainerPort()}
		var ok bool
		if d.Protocol, ok = protocols[p.GetProtocol()]; !ok {
			return nil, f.sub(".protocol").refuse("%d is unknown", p.GetProtocol())
		}
		if d.HostPort < 0 || d.HostPort > 65535 {
			return nil, f.sub(".host_port").refuse("%d is not a port", d.HostPort)
		}
		if d.ContainerPort < 1 || d.ContainerPort > 65535 {
			return nil, f.sub(".container_port").refuse("%d is not a port", d.ContainerPort)
		}
		if s := p.GetHostIp(); s != "" {
			ip, err := netip.ParseAddr(s)
			if err != nil {
				return nil, f.sub(".host_ip").refuse("%q is not an IP address", s)
			}
			d.HostIP = ip.Unmap()
		}
		side := hostSide{d.Protocol, d.HostIP, d.HostPort}
		if first, twice := seen[side]; twice && d.HostPort > 0 {
			return nil, f.refuse("wants %s host port %d, as port_mappings[%d] does", d.Protocol, d.HostPort, first)
		}
		seen[side] = i
		out = append(out, d)
	}
	return out, nil
}

// sysctlName is the syntax of names, with dots or slashes. Which of them belong to a
// namespace is decided where they are written.
var sysctlName = regexp.MustCompile(`^[a-zA-Z0-9_-]+([./][a-zA-Z0-9_@:-]+)+$`)

func decodeSysctls(f field, m map[string]string) (map[string]string, error) {
	for k, v := range m {
		f := f.sub("[" + strconv.Quote(k) + "]")
		if !sysctlName.MatchString(k) {
			return nil, f.refuse("is not the name of a kernel parameter")
		}
		if err := f.line(strings.ReplaceAll(v, "\t", " ")); err != nil {
			return nil, err
		}
	}
	return copyMap(m), nil
}
