package sandbox

import (
	"net/netip"
	"time"
)

// ID names a pod or a container: 64 lower-case hexadecimal digits.
type ID string

// Metadata is the kubelet's key of a pod. A retry carries the same one.
type Metadata struct {
	Name, Namespace, UID string
	Attempt              uint32
}

// A PodConfig is what RunPodSandbox asks for. Maps are kept byte for byte.
type PodConfig struct {
	Metadata     Metadata
	Hostname     string
	LogDirectory string
	DNS          *DNS // nil: the host's resolv.conf
	PortMappings []PortMapping
	Labels       map[string]string
	Annotations  map[string]string
	CgroupParent string // cgroupfs syntax, also with the systemd driver
	Sysctls      map[string]string
	Security     PodSecurity
	Overhead     *Resources
	Resources    *Resources
	Handler      string // runtime handler; "" is the default one
}

// DNS is the content of a pod's resolv.conf.
type DNS struct{ Servers, Searches, Options []string }

// Protocol of a host port.
type Protocol string

// The protocols that CRI knows.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	SCTP Protocol = "sctp"
)

// A PortMapping forwards HostPort to ContainerPort. An invalid HostIP means all.
type PortMapping struct {
	Protocol      Protocol
	HostIP        netip.Addr
	HostPort      int32 // 0: no mapping
	ContainerPort int32
}

// NamespaceMode says whose namespace a process shares. The zero value is the pod's,
// as in CRI.
type NamespaceMode int

// The modes of CRI, with its numbers.
const (
	ModePod NamespaceMode = iota
	ModeContainer
	ModeNode
	ModeTarget
)

// Namespaces are the choices of a pod or container.
type Namespaces struct {
	Network, PID, IPC NamespaceMode
	TargetID          ID // for PID ModeTarget
	User              *UserNamespace
}

// UserNamespace maps the pod's ids; nil means the node's user namespace.
type UserNamespace struct{ UIDs, GIDs []IDMap }

// An IDMap maps Length ids from Container on to those from Host on.
type IDMap struct{ Host, Container, Length uint32 }

// Seccomp and AppArmor profiles.
type (
	// ProfileKind says where a security profile comes from. The zero value is invalid.
	ProfileKind int
	// A Profile selects a seccomp or AppArmor profile.
	Profile struct {
		Kind ProfileKind
		Name string // Localhost: file of a seccomp profile, name of an AppArmor one
	}
)

// The kinds of profiles.
const (
	ProfileUnset          ProfileKind = iota // the request said nothing: seccomp unconfined, AppArmor default
	ProfileRuntimeDefault                    // ours
	ProfileUnconfined
	ProfileLocalhost
)

// PodSecurity is the sandbox-wide security context.
type PodSecurity struct {
	Namespaces         Namespaces
	SELinux            *SELinux
	RunAsUser          *int64
	RunAsGroup         *int64
	SupplementalGroups []int64
	StrictGroups       bool // SupplementalGroupsPolicy Strict
	ReadonlyRootfs     bool
	Privileged         bool
	Seccomp, AppArmor  Profile
}

// SELinux labels, refused where SELinux is off only if the kubelet insists.
type SELinux struct{ User, Role, Type, Level string }

// Resources of CRI's LinuxContainerResources. 0 and "" mean unset.
type Resources struct {
	CPUPeriod, CPUQuota, CPUShares int64
	MemoryLimit, MemorySwapLimit   int64 // bytes
	OOMScoreAdj                    int64
	CpusetCPUs, CpusetMems         string
	HugepageLimits                 []HugepageLimit
	Unified                        map[string]string // cgroup v2 keys
}

// HugepageLimit bounds one page size ("2MB"), in bytes.
type HugepageLimit struct {
	PageSize string
	Limit    uint64
}

// ContainerMetadata is unique in a pod.
type ContainerMetadata struct {
	Name    string
	Attempt uint32
}

// A ContainerConfig is what CreateContainer asks for.
type ContainerConfig struct {
	Metadata           ContainerMetadata
	Image              string // id, tag or digest, as the kubelet sent it
	UserSpecifiedImage string
	ImageAnnotations   map[string]string
	Command, Args      []string
	WorkingDir         string
	Envs               []KeyValue
	Mounts             []Mount
	Devices            []Device
	CDIDevices         []string
	Labels             map[string]string
	Annotations        map[string]string
	LogPath            string // relative to the pod's log directory; "" for no log
	Stdin, StdinOnce   bool
	TTY                bool
	StopSignal         int // number; 0: the image's, else SIGTERM
	Resources          Resources
	Security           ContainerSecurity
}

// KeyValue is an environment variable. The value may hold any bytes but NUL.
type KeyValue struct {
	Key   string
	Value []byte
}

// Propagation of a mount. The zero value is private.
type Propagation int

// The propagations of CRI, with its numbers.
const (
	PropagationPrivate Propagation = iota
	PropagationHostToContainer
	PropagationBidirectional
)

// A Mount is a host path, or an image when Image is set, inside the container.
type Mount struct {
	ContainerPath     string
	HostPath          string
	ReadOnly          bool
	RecursiveReadOnly bool
	SELinuxRelabel    bool
	Propagation       Propagation
	UIDMappings       []IDMap
	GIDMappings       []IDMap
	Image             string // image volume
	ImageRef          string // ImageSpec.image_ref of the request
	ImageUserRef      string // ImageSpec.user_specified_image of the request
	ImageSubPath      string
	Options           []string // noexec, nodev, nosuid, ...
}

// A Device is a host node at ContainerPath with cgroup permissions "rwm".
type Device struct{ ContainerPath, HostPath, Permissions string }

// ContainerSecurity is a container's security context.
type ContainerSecurity struct {
	CapAdd, CapDrop, CapAmbient []string
	Privileged                  bool
	Namespaces                  Namespaces
	SELinux                     *SELinux
	RunAsUser                   *int64
	RunAsUsername               string
	RunAsGroup                  *int64
	SupplementalGroups          []int64
	StrictGroups                bool
	ReadonlyRootfs              bool
	NoNewPrivs                  bool
	MaskedPaths, ReadonlyPaths  []string
	Seccomp, AppArmor           Profile
}

// PodState is what CRI shows of a pod's phase.
type PodState int

// The two states of CRI, with its numbers.
const (
	PodReady PodState = iota
	PodNotReady
)

// ContainerState is what CRI shows of a container's phase.
type ContainerState int

// The states of CRI, with its numbers.
const (
	ContainerCreated ContainerState = iota
	ContainerRunning
	ContainerExited
	ContainerUnknown
)

// A PodView is what readers see of a pod: a committed record, never changed.
type PodView struct {
	ID        ID
	Config    PodConfig
	State     PodState
	CreatedAt time.Time
	IPs       []netip.Addr // first is primary; empty with the node's network
	NetNS     string       // path of the pinned namespace; "" with the node's network
	Stage     string       // what a pod in transition is doing, for operators
	Problem   string       // why the last transition failed, "" if none
}

// A ContainerView is what readers see of a container.
type ContainerView struct {
	ID         ID
	Pod        ID
	Config     ContainerConfig
	State      ContainerState
	ImageID    string // image.Image.ID: the one identity of an image
	ImageRef   string // a repo digest of the image, else its id
	ImageName  string // user-specified name, else a tag, else what was sent
	LogPath    string // absolute; "" for no log
	PID        int    // 0 unless running
	CreatedAt  time.Time
	StartedAt  time.Time // zero until started
	FinishedAt time.Time // zero until exited
	ExitCode   int32
	Reason     string // Completed, Error, OOMKilled, StartError, ContainerStatusUnknown
	Message    string
	Resources  Resources
	User       *LinuxUser
	StopSignal int
	Mounts     []Mount // as asked, image volumes with the resolved image id in Image
	CgroupPath string
	Handler    string
	Args       []string
}

// LinuxUser is who the first process runs as.
type LinuxUser struct {
	UID, GID int64
	Groups   []int64
}

// A PodFilter selects pods. Zero fields select all; labels must all match.
type PodFilter struct {
	ID     ID // full or a unique prefix
	State  *PodState
	Labels map[string]string
}

// A ContainerFilter selects containers. Zero fields select all.
type ContainerFilter struct {
	ID     ID // full or a unique prefix
	Pod    ID
	State  *ContainerState
	Labels map[string]string
}
