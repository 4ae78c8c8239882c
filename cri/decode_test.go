package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

// dump shows values with what pointers point to.
func dump(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}

func podRequest() *pb.RunPodSandboxRequest {
	return &pb.RunPodSandboxRequest{Config: &pb.PodSandboxConfig{
		Metadata:     &pb.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u"},
		PortMappings: []*pb.PortMapping{{ContainerPort: 80}},
	}}
}

// podRequest2 has set what must be set together.
func podRequest2() *pb.RunPodSandboxRequest {
	r := podRequest()
	r.Config.Linux = &pb.LinuxPodSandboxConfig{
		Resources: &pb.LinuxContainerResources{}, Overhead: &pb.LinuxContainerResources{},
		SecurityContext: &pb.LinuxSandboxSecurityContext{
			RunAsUser: &pb.Int64Value{Value: 1}, RunAsGroup: &pb.Int64Value{Value: 1},
			Seccomp:  &pb.SecurityProfile{ProfileType: pb.SecurityProfile_Localhost, LocalhostRef: "/p"},
			Apparmor: &pb.SecurityProfile{ProfileType: pb.SecurityProfile_Localhost, LocalhostRef: "p"},
			NamespaceOptions: &pb.NamespaceOption{UsernsOptions: &pb.UserNamespace{
				Uids: []*pb.IDMapping{{Length: 1}}, Gids: []*pb.IDMapping{{Length: 1}},
			}},
		},
	}
	return r
}

func containerRequest() *pb.CreateContainerRequest {
	return &pb.CreateContainerRequest{PodSandboxId: "p", Config: &pb.ContainerConfig{
		Metadata: &pb.ContainerMetadata{Name: "c"}, Image: &pb.ImageSpec{Image: "i"},
		Mounts:     []*pb.Mount{{ContainerPath: "/c", HostPath: "/h"}},
		Devices:    []*pb.Device{{ContainerPath: "/c", HostPath: "/h"}},
		Envs:       []*pb.KeyValue{{Key: "K"}},
		CDIDevices: []*pb.CDIDevice{{Name: "d"}},
	}}
}

func containerRequest2() *pb.CreateContainerRequest {
	r := containerRequest()
	m := r.Config.Mounts[0]
	m.HostPath, m.Image, m.Readonly = "", &pb.ImageSpec{Image: "i"}, true
	r.Config.Linux = &pb.LinuxContainerConfig{SecurityContext: &pb.LinuxContainerSecurityContext{
		RunAsUser: &pb.Int64Value{Value: 1},
		Seccomp:   &pb.SecurityProfile{ProfileType: pb.SecurityProfile_Localhost, LocalhostRef: "/p"},
		Apparmor:  &pb.SecurityProfile{ProfileType: pb.SecurityProfile_Localhost, LocalhostRef: "p"},
		NamespaceOptions: &pb.NamespaceOption{
			Pid: pb.NamespaceMode_TARGET, TargetId: "t",
			UsernsOptions: &pb.UserNamespace{Uids: []*pb.IDMapping{{Length: 1}}, Gids: []*pb.IDMapping{{Length: 1}}},
		},
	}}
	return r
}

// hints are values that make sense where "x" does not. The key is the field's name.
var hints = map[string]string{
	"log_directory": "/x", "working_dir": "/x", "host_path": "/x", "container_path": "/x",
	"masked_paths": "/x", "readonly_paths": "/x", "host_ip": "10.0.0.1", "localhost_ref": "/x",
	"seccomp_profile_path": "unconfined", "apparmor_profile": "unconfined", "permissions": "r",
	"cpuset_cpus": "0-1", "cpuset_mems": "0", "page_size": "2MB", "mount_options": "noexec",
	"runtime_handler": "crun", "pod_cidr": "10.0.0.0/8,fd00::/64",
}

// ignored fields change nothing, each for its reason: a way from the request, or the
// end of one.
var ignored = map[string]string{
	"CreateContainerRequest.sandbox_config":         "repeats RunPodSandbox; the pod's record is the truth",
	"PullImageRequest.sandbox_config":               "nothing of a pull depends on the pod",
	"userns_options.mode":                           "NODE means the same as no mappings; other values are refused, see TestRefusals",
	"CreateContainerRequest.config.image.image_ref": "the kubelet sets it on image volumes only, where it is kept",
	"config.image.runtime_handler":                  "the pod's handler runs the container; checked where an image is pulled",
	"mounts.image.runtime_handler":                  "likewise",
	"mounts.image.annotations":                      "the kubelet sends the pod's annotations; a mount has no use for them",
	"PullImageRequest.image.image_ref":              "belongs to volumes; a pull uses image",
	"PullImageRequest.image.user_specified_image":   "what a user wrote; a pull uses image",
	"PullImageRequest.image.runtime_handler":        "checked against the known ones, see TestImages; all share one store",
}

// refused fields are never accepted.
var refused = []string{
	"windows",
	"RunPodSandboxRequest.config.linux.security_context.namespace_options.target_id", // containers only
}

// decodeCase is one call whose request is walked.
type decodeCase struct {
	call  func(context.Context, *runtimeService, *imageService, proto.Message) error
	bases []proto.Message
}

func handler[R proto.Message, A any](h func(*runtimeService, context.Context, R) (A, error)) func(context.Context, *runtimeService, *imageService, proto.Message) error {
	return func(ctx context.Context, s *runtimeService, _ *imageService, m proto.Message) error {
		_, err := h(s, ctx, m.(R))
		return err
	}
}

var decodeCases = []decodeCase{
	{handler((*runtimeService).RunPodSandbox), []proto.Message{podRequest(), podRequest2()}},
	{handler((*runtimeService).CreateContainer), []proto.Message{containerRequest(), containerRequest2()}},
	{handler((*runtimeService).UpdateContainerResources), []proto.Message{
		&pb.UpdateContainerResourcesRequest{ContainerId: "c", Linux: &pb.LinuxContainerResources{}}}},
	{handler((*runtimeService).UpdatePodSandboxResources), []proto.Message{&pb.UpdatePodSandboxResourcesRequest{PodSandboxId: "p"}}},
	{handler((*runtimeService).StopContainer), []proto.Message{&pb.StopContainerRequest{ContainerId: "c"}}},
	{handler((*runtimeService).ExecSync), []proto.Message{&pb.ExecSyncRequest{ContainerId: "c", Cmd: []string{"a"}}}},
	{handler((*runtimeService).ListPodSandbox), []proto.Message{&pb.ListPodSandboxRequest{}}},
	{handler((*runtimeService).ListContainers), []proto.Message{&pb.ListContainersRequest{}}},
	{handler((*runtimeService).ListContainerStats), []proto.Message{&pb.ListContainerStatsRequest{}}},
	{handler((*runtimeService).ListPodSandboxStats), []proto.Message{&pb.ListPodSandboxStatsRequest{}}},
	{handler((*runtimeService).UpdateRuntimeConfig), []proto.Message{&pb.UpdateRuntimeConfigRequest{}}},
	{func(ctx context.Context, _ *runtimeService, s *imageService, m proto.Message) error {
		_, err := s.PullImage(ctx, m.(*pb.PullImageRequest))
		return err
	}, []proto.Message{&pb.PullImageRequest{Image: &pb.ImageSpec{Image: "i"}}}},
}

// TestNothingIsDropped sets every field of every request, one by one, and demands that
// what the runtime is asked changes, unless the field is refused or listed above.
func TestNothingIsDropped(t *testing.T) {
	fields := 0
	for _, c := range decodeCases {
		root := c.bases[0].ProtoReflect().Descriptor()
		t.Run(string(root.Name()), func(t *testing.T) {
			for _, p := range paths(root, nil) {
				fields++
				checkField(t, c, p)
			}
		})
	}
	if fields < 250 {
		t.Errorf("walked %d fields only, the walk is broken", fields)
	}
	t.Logf("%d fields", fields)
}

func checkField(t *testing.T, c decodeCase, p []protoreflect.FieldDescriptor) {
	t.Helper()
	leaf := p[len(p)-1]
	name := string(leaf.Parent().Name()) + "." + string(leaf.Name())
	var answers []string
	for _, base := range c.bases {
		before, err := ask(t, c, base)
		if err != nil {
			t.Fatalf("base of %s is refused: %v", name, err)
		}
		for _, m := range mutations(base, p) {
			after, err := ask(t, c, m)
			if err == nil && after != before {
				return
			}
			if err != nil && !errors.Is(err, errdef.ErrInvalid) {
				t.Errorf("%s: error of the wrong kind: %v", name, err)
			}
			answers = append(answers, fmt.Sprint(err))
		}
	}
	full := string(p[0].Parent().Name()) + "." + fieldPath(p)
	for k := range ignored {
		if strings.HasPrefix(full, k) || strings.HasSuffix(full, "."+k) {
			return
		}
	}
	for _, r := range refused {
		if strings.Contains(full, r) {
			for _, a := range answers {
				if !strings.Contains(a, r[strings.LastIndex(r, ".")+1:]) {
					t.Errorf("%s: got %q, want a refusal that names %s", full, a, r)
				}
			}
			return
		}
	}
	t.Errorf("%s changes nothing: %q", full, answers)
}

func fieldPath(p []protoreflect.FieldDescriptor) string {
	var names []string
	for _, f := range p {
		names = append(names, string(f.Name()))
	}
	return strings.Join(names, ".")
}

// ask makes the call and tells what the runtime was asked.
func ask(t *testing.T, c decodeCase, m proto.Message) (string, error) {
	f := newFake()
	images := newFakeImages(f)
	deps := Deps{Runtime: f, Images: images, Pulls: images}
	err := c.call(t.Context(), &runtimeService{deps: deps}, &imageService{deps: deps}, m)
	return strings.Join(f.calls, "\n"), err
}

// paths lists the way to every scalar, list of scalars and map below a message.
func paths(m protoreflect.MessageDescriptor, above []protoreflect.FieldDescriptor) (out [][]protoreflect.FieldDescriptor) {
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		p := append(slices.Clip(above), f)
		if f.Kind() == protoreflect.MessageKind && !f.IsMap() {
			out = append(out, paths(f.Message(), p)...)
			continue
		}
		out = append(out, p)
	}
	return out
}

// mutations are copies of base with the field at p set to each of its sample values.
func mutations(base proto.Message, p []protoreflect.FieldDescriptor) (out []proto.Message) {
	leaf := p[len(p)-1]
	for _, v := range samples(leaf) {
		m := proto.Clone(base)
		at := m.ProtoReflect()
		for _, f := range p[:len(p)-1] {
			if f.IsList() {
				l := at.Mutable(f).List()
				if l.Len() == 0 {
					fill(l.AppendMutable().Message().Interface())
				}
				at = l.Get(0).Message()
				continue
			}
			at = at.Mutable(f).Message()
		}
		switch {
		case leaf.IsMap():
			key := "x"
			switch leaf.Name() {
			case "sysctls":
				key = "net.ipv4.x"
			case "unified":
				key = "memory.high"
			}
			at.Mutable(leaf).Map().Set(protoreflect.ValueOfString(key).MapKey(), protoreflect.ValueOfString("1"))
		case leaf.IsList():
			at.Mutable(leaf).List().Append(v)
		default:
			at.Set(leaf, v)
		}
		out = append(out, m)
	}
	return out
}

// fill gives a new element of a list what it cannot be without.
func fill(m proto.Message) {
	switch m := m.(type) {
	case *pb.IDMapping:
		m.Length = 1
	case *pb.HugepageLimit:
		m.PageSize = "1GB"
	}
}

func samples(f protoreflect.FieldDescriptor) []protoreflect.Value {
	switch f.Kind() { //nolint:exhaustive // CRI has no others; one that comes panics below
	case protoreflect.MessageKind: // a map, whose entry mutations makes
		return []protoreflect.Value{{}}
	case protoreflect.StringKind:
		if h, ok := hints[string(f.Name())]; ok {
			return []protoreflect.Value{protoreflect.ValueOfString(h)}
		}
		return []protoreflect.Value{protoreflect.ValueOfString("x")}
	case protoreflect.BytesKind:
		return []protoreflect.Value{protoreflect.ValueOfBytes([]byte("\xffx"))}
	case protoreflect.BoolKind:
		return []protoreflect.Value{protoreflect.ValueOfBool(true)}
	case protoreflect.EnumKind:
		var out []protoreflect.Value
		for i := range f.Enum().Values().Len() {
			out = append(out, protoreflect.ValueOfEnum(f.Enum().Values().Get(i).Number()))
		}
		return out
	case protoreflect.Int32Kind:
		return []protoreflect.Value{protoreflect.ValueOfInt32(9)}
	case protoreflect.Int64Kind:
		return []protoreflect.Value{protoreflect.ValueOfInt64(9)}
	case protoreflect.Uint32Kind:
		return []protoreflect.Value{protoreflect.ValueOfUint32(9)}
	case protoreflect.Uint64Kind:
		return []protoreflect.Value{protoreflect.ValueOfUint64(9)}
	}
	panic("no sample of " + f.Kind().String())
}

// TestRefusals changes a good request and wants a message that begins as given.
func TestRefusals(t *testing.T) {
	for want, change := range map[string]func(*pb.PodSandboxConfig){
		"pod config: metadata is missing":                    func(c *pb.PodSandboxConfig) { c.Metadata = nil },
		"pod config: metadata.name is empty":                 func(c *pb.PodSandboxConfig) { c.Metadata.Name = "" },
		"pod config: metadata.namespace is empty":            func(c *pb.PodSandboxConfig) { c.Metadata.Namespace = "" },
		"pod config: metadata.uid contains a control":        func(c *pb.PodSandboxConfig) { c.Metadata.Uid = "a\nb" },
		"pod config: windows is set":                         func(c *pb.PodSandboxConfig) { c.Windows = &pb.WindowsPodSandboxConfig{} },
		"pod config: hostname has 65 bytes":                  func(c *pb.PodSandboxConfig) { c.Hostname = strings.Repeat("a", 65) },
		"pod config: hostname contains a control":            func(c *pb.PodSandboxConfig) { c.Hostname = "a\nb" },
		"pod config: log_directory \"logs\" is not":          func(c *pb.PodSandboxConfig) { c.LogDirectory = "logs" },
		"pod config: log_directory \"/a/../b\" contains":     func(c *pb.PodSandboxConfig) { c.LogDirectory = "/a/../b" },
		"pod config: dns_config.servers[1] \"1 2\" is not":   func(c *pb.PodSandboxConfig) { c.DnsConfig = &pb.DNSConfig{Servers: []string{"1.1.1.1", "1 2"}} },
		"pod config: dns_config.options[0] contains":         func(c *pb.PodSandboxConfig) { c.DnsConfig = &pb.DNSConfig{Options: []string{"a\nb"}} },
		"pod config: port_mappings[0].protocol 7":            func(c *pb.PodSandboxConfig) { c.PortMappings[0].Protocol = 7 },
		"pod config: port_mappings[0].host_port -1":          func(c *pb.PodSandboxConfig) { c.PortMappings[0].HostPort = -1 },
		"pod config: port_mappings[0].container_port 65536":  func(c *pb.PodSandboxConfig) { c.PortMappings[0].ContainerPort = 65536 },
		"pod config: port_mappings[0].host_ip \"localhost\"": func(c *pb.PodSandboxConfig) { c.PortMappings[0].HostIp = "localhost" },
		"pod config: port_mappings[1] wants tcp host port 8": func(c *pb.PodSandboxConfig) {
			c.PortMappings = []*pb.PortMapping{{HostPort: 8, ContainerPort: 1, HostIp: "::ffff:1.2.3.4"}, {HostPort: 8, ContainerPort: 2, HostIp: "1.2.3.4"}}
		},
		"pod config: linux.cgroup_parent": func(c *pb.PodSandboxConfig) { c.Linux = &pb.LinuxPodSandboxConfig{CgroupParent: "/../x"} },
		`pod config: linux.sysctls["net/../x"] is not`: func(c *pb.PodSandboxConfig) {
			c.Linux = &pb.LinuxPodSandboxConfig{Sysctls: map[string]string{"net/../x": "1"}}
		},
		`pod config: linux.sysctls["net.x"] contains`: func(c *pb.PodSandboxConfig) {
			c.Linux = &pb.LinuxPodSandboxConfig{Sysctls: map[string]string{"net.x": "1\n2"}}
		},
		"pod config: linux.security_context.run_as_user -1": podSecurity(func(s *pb.LinuxSandboxSecurityContext) { s.RunAsUser = &pb.Int64Value{Value: -1} }),
		"pod config: linux.security_context.run_as_user 4294967295": podSecurity(func(s *pb.LinuxSandboxSecurityContext) {
			s.RunAsUser = &pb.Int64Value{Value: math.MaxUint32}
		}),
		"pod config: linux.security_context.run_as_group is set without": podSecurity(func(s *pb.LinuxSandboxSecurityContext) { s.RunAsGroup = &pb.Int64Value{} }),
		"pod config: linux.security_context.supplemental_groups[1] ":     podSecurity(func(s *pb.LinuxSandboxSecurityContext) { s.SupplementalGroups = []int64{1, 1 << 33} }),
		"pod config: linux.security_context.supplemental_groups_policy":  podSecurity(func(s *pb.LinuxSandboxSecurityContext) { s.SupplementalGroupsPolicy = 5 }),
		"pod config: linux.security_context.seccomp.profile_type 9":      podSecurity(func(s *pb.LinuxSandboxSecurityContext) { s.Seccomp = &pb.SecurityProfile{ProfileType: 9} }),
		"pod config: linux.security_context.namespace_options.network cannot be CONTAINER": podSecurity(func(s *pb.LinuxSandboxSecurityContext) {
			s.NamespaceOptions = &pb.NamespaceOption{Network: pb.NamespaceMode_CONTAINER}
		}),
		"pod config: linux.security_context.namespace_options.pid cannot be TARGET": podSecurity(func(s *pb.LinuxSandboxSecurityContext) {
			s.NamespaceOptions = &pb.NamespaceOption{Pid: pb.NamespaceMode_TARGET, TargetId: "t"}
		}),
		"pod config: linux.security_context.namespace_options.userns_options.mode cannot be CONTAINER": podSecurity(func(s *pb.LinuxSandboxSecurityContext) {
			s.NamespaceOptions = &pb.NamespaceOption{UsernsOptions: &pb.UserNamespace{Mode: pb.NamespaceMode_CONTAINER}}
		}),
		"pod config: linux.security_context.namespace_options.userns_options.uids and gids": podSecurity(func(s *pb.LinuxSandboxSecurityContext) {
			s.NamespaceOptions = &pb.NamespaceOption{UsernsOptions: &pb.UserNamespace{}}
		}),
		"pod config: linux.security_context.namespace_options.userns_options.uids[0] maps": podSecurity(func(s *pb.LinuxSandboxSecurityContext) {
			s.NamespaceOptions = &pb.NamespaceOption{UsernsOptions: &pb.UserNamespace{Uids: []*pb.IDMapping{{HostId: math.MaxUint32, Length: 2}}}}
		}),
	} {
		r := podRequest()
		change(r.Config)
		_, err := decodePod(r.Config, "")
		wantRefusal(t, want, err)
	}
}

func podSecurity(change func(*pb.LinuxSandboxSecurityContext)) func(*pb.PodSandboxConfig) {
	return func(c *pb.PodSandboxConfig) {
		s := &pb.LinuxSandboxSecurityContext{}
		change(s)
		c.Linux = &pb.LinuxPodSandboxConfig{SecurityContext: s}
	}
}

func wantRefusal(t *testing.T, want string, err error) {
	t.Helper()
	if !errors.Is(err, errdef.ErrInvalid) || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %s... of kind ErrInvalid", err, want)
	}
}

func TestContainerRefusals(t *testing.T) {
	for want, change := range map[string]func(*pb.ContainerConfig){
		"container config: metadata.name is empty":                func(c *pb.ContainerConfig) { c.Metadata = nil },
		"container config: image.image is empty":                  func(c *pb.ContainerConfig) { c.Image = nil },
		"container config: windows is set":                        func(c *pb.ContainerConfig) { c.Windows = &pb.WindowsContainerConfig{} },
		"container config: log_path \"/abs\" is not a relative":   func(c *pb.ContainerConfig) { c.LogPath = "/abs" },
		"container config: log_path \"a/../../b\" contains":       func(c *pb.ContainerConfig) { c.LogPath = "a/../../b" },
		"container config: working_dir \"w\" is not an absolute":  func(c *pb.ContainerConfig) { c.WorkingDir = "w" },
		"container config: command[0] contains a NUL":             func(c *pb.ContainerConfig) { c.Command = []string{"a\x00"} },
		"container config: stop_signal 66 is unknown":             func(c *pb.ContainerConfig) { c.StopSignal = 66 },
		"container config: envs[0].key is empty":                  func(c *pb.ContainerConfig) { c.Envs[0].Key = "" },
		"container config: envs[0].key \"a=b\" contains":          func(c *pb.ContainerConfig) { c.Envs[0].Key = "a=b" },
		"container config: envs[0].value of K contains a NUL":     func(c *pb.ContainerConfig) { c.Envs[0].Value = []byte("secret\x00") },
		"container config: mounts[0].container_path is empty":     func(c *pb.ContainerConfig) { c.Mounts[0].ContainerPath = "" },
		"container config: mounts[0].container_path \"c\" is not": func(c *pb.ContainerConfig) { c.Mounts[0].ContainerPath = "c" },
		"container config: mounts[0].host_path is empty":          func(c *pb.ContainerConfig) { c.Mounts[0].HostPath = "" },
		"container config: mounts[0].host_path \"h\" is not":      func(c *pb.ContainerConfig) { c.Mounts[0].HostPath = "h" },
		"container config: mounts[0].host_path and image":         func(c *pb.ContainerConfig) { c.Mounts[0].Image = &pb.ImageSpec{Image: "i"} },
		"container config: mounts[0].image.image is empty":        func(c *pb.ContainerConfig) { c.Mounts[0].ImageSubPath = "s" },
		"container config: mounts[0].propagation 9":               func(c *pb.ContainerConfig) { c.Mounts[0].Propagation = 9 },
		"container config: mounts[0].recursive_read_only needs":   func(c *pb.ContainerConfig) { c.Mounts[0].RecursiveReadOnly = true },
		"container config: mounts[0].mount_options[0] \"rw\" is":  func(c *pb.ContainerConfig) { c.Mounts[0].MountOptions = []string{"rw"} },
		"container config: mounts[0].uidMappings[0] maps":         func(c *pb.ContainerConfig) { c.Mounts[0].UidMappings = []*pb.IDMapping{{}} },
		"container config: devices[0].permissions \"rx\"":         func(c *pb.ContainerConfig) { c.Devices[0].Permissions = "rx" },
		"container config: CDI_devices[0].name is empty":          func(c *pb.ContainerConfig) { c.CDIDevices[0].Name = "" },
		"container config: linux.resources.oom_score_adj 1001":    resources(&pb.LinuxContainerResources{OomScoreAdj: 1001}),
		"container config: linux.resources.cpu_quota -2":          resources(&pb.LinuxContainerResources{CpuQuota: -2}),
		"container config: linux.resources.cpuset_cpus \"0 1\"":   resources(&pb.LinuxContainerResources{CpusetCpus: "0 1"}),
		"container config: linux.resources.unified key \"../x\"":  resources(&pb.LinuxContainerResources{Unified: map[string]string{"../x": "1"}}),
		"container config: linux.resources.hugepage_limits[0].page_size \"2 MB\"": resources(&pb.LinuxContainerResources{
			HugepageLimits: []*pb.HugepageLimit{{PageSize: "2 MB"}}}),
		"container config: linux.security_context.run_as_username is set beside": security(&pb.LinuxContainerSecurityContext{
			RunAsUser: &pb.Int64Value{}, RunAsUsername: "u"}),
		"container config: linux.security_context.run_as_username \"a:b\"":       security(&pb.LinuxContainerSecurityContext{RunAsUsername: "a:b"}),
		"container config: linux.security_context.run_as_username contains a co": security(&pb.LinuxContainerSecurityContext{RunAsUsername: "a\nb"}),
		"container config: linux.security_context.apparmor_profile \"x\" is":     security(&pb.LinuxContainerSecurityContext{ApparmorProfile: "x"}), //nolint:staticcheck // deprecated, but honoured
		"container config: linux.security_context.seccomp.localhost_ref \"p\"": security(&pb.LinuxContainerSecurityContext{
			Seccomp: &pb.SecurityProfile{ProfileType: pb.SecurityProfile_Localhost, LocalhostRef: "p"}}),
		"container config: linux.security_context.namespace_options.target_id must": security(&pb.LinuxContainerSecurityContext{
			NamespaceOptions: &pb.NamespaceOption{Pid: pb.NamespaceMode_TARGET}}),
	} {
		r := containerRequest()
		change(r.Config)
		_, err := decodeContainer(r.Config)
		wantRefusal(t, want, err)
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("message shows the value of a variable: %v", err)
		}
	}
}

func resources(r *pb.LinuxContainerResources) func(*pb.ContainerConfig) {
	return func(c *pb.ContainerConfig) { c.Linux = &pb.LinuxContainerConfig{Resources: r} }
}

func security(s *pb.LinuxContainerSecurityContext) func(*pb.ContainerConfig) {
	return func(c *pb.ContainerConfig) { c.Linux = &pb.LinuxContainerConfig{SecurityContext: s} }
}

// TestProfiles holds what an unset, an empty and a deprecated profile mean.
func TestProfiles(t *testing.T) {
	for name, tc := range map[string]struct {
		in   *pb.SecurityProfile
		old  string
		want sandbox.Profile
	}{
		"unset":               {nil, "", sandbox.Profile{}},
		"empty":               {&pb.SecurityProfile{}, "", sandbox.Profile{Kind: sandbox.ProfileRuntimeDefault}},
		"new wins":            {&pb.SecurityProfile{ProfileType: pb.SecurityProfile_Unconfined}, "runtime/default", sandbox.Profile{Kind: sandbox.ProfileUnconfined}},
		"prefix taken off":    {&pb.SecurityProfile{ProfileType: pb.SecurityProfile_Localhost, LocalhostRef: "localhost//p"}, "", sandbox.Profile{Kind: sandbox.ProfileLocalhost, Name: "/p"}},
		"old runtime/default": {nil, "runtime/default", sandbox.Profile{Kind: sandbox.ProfileRuntimeDefault}},
		"old unconfined":      {nil, "unconfined", sandbox.Profile{Kind: sandbox.ProfileUnconfined}},
		"old localhost":       {nil, "localhost//p", sandbox.Profile{Kind: sandbox.ProfileLocalhost, Name: "/p"}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, decode := range []func(field, *pb.SecurityProfile, string) (sandbox.Profile, error){decodeSeccomp, decodeAppArmor} {
				if got, err := decode("x.", tc.in, tc.old); err != nil || got != tc.want {
					t.Errorf("got %+v, %v, want %+v", got, err, tc.want)
				}
			}
		})
	}
}

// TestSignals compares our numbers with those of x/sys, by name.
func TestSignals(t *testing.T) {
	for n, name := range pb.Signal_name {
		got, err := decodeSignal("s", pb.Signal(n))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		name = strings.TrimPrefix(name, "SIGNAL_")
		want := int(unix.SignalNum(name))
		var plus, minus int
		switch name {
		case "RUNTIME_DEFAULT":
			want = 0
		case "SIGRTMIN":
			want = 34
		case "SIGRTMAX":
			want = 64
		case "SIGCLD":
			want = int(unix.SIGCHLD)
		case "SIGPOLL":
			want = int(unix.SIGIO)
		case "SIGIOT":
			want = int(unix.SIGABRT)
		}
		if k, _ := fmt.Sscanf(name, "SIGRTMINPLUS%d", &plus); k == 1 {
			want = 34 + plus
		}
		if k, _ := fmt.Sscanf(name, "SIGRTMAXMINUS%d", &minus); k == 1 {
			want = 64 - minus
		}
		if got != want {
			t.Errorf("%s: got %d, want %d", name, got, want)
		}
		if back, _ := decodeSignal("s", encodeSignal(got)); back != got {
			t.Errorf("%s: comes back as %d", name, back)
		}
	}
}
