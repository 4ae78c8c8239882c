package sandbox

import (
	"net/netip"
	"sync/atomic"
	"time"
)

// ID names a pod or a container: 64 lower-case hexadecimal digits.
type ID string

// Metadata is the kubelet's key of a pod. A retry carries the same one.
type Metadata struct {
	Name, Namespace, UID string `json:",omitzero"`
	Attempt              uint32 `json:",omitzero"`
}

// A PodConfig is what RunPodSandbox asks for. Maps are kept byte for byte.
type PodConfig struct {
	Metadata     Metadata          `json:",omitzero"`
	Hostname     string            `json:",omitzero"`
	LogDirectory string            `json:",omitzero"`
	DNS          *DNS              `json:",omitzero"` // nil: the host's resolv.conf
	PortMappings []PortMapping     `json:",omitzero"`
	Labels       map[string]string `json:",omitzero"`
	Annotations  map[string]string `json:",omitzero"`
	CgroupParent string            `json:",omitzero"` // cgroupfs syntax, also with the systemd driver
	Sysctls      map[string]string `json:",omitzero"`
	Security     PodSecurity       `json:",omitzero"`
	Overhead     *Resources        `json:",omitzero"`
	Resources    *Resources        `json:",omitzero"`
	Handler      string            `json:",omitzero"` // runtime handler; "" is the default one
}

// DNS is the content of a pod's resolv.conf.
type DNS struct {
	Servers, Searches, Options []string `json:",omitzero"`
}

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
	Protocol      Protocol   `json:",omitzero"`
	HostIP        netip.Addr `json:",omitzero"`
	HostPort      int32      `json:",omitzero"` // 0: no mapping
	ContainerPort int32      `json:",omitzero"`
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
	Network, PID, IPC NamespaceMode  `json:",omitzero"`
	TargetID          ID             `json:",omitzero"` // for PID ModeTarget
	User              *UserNamespace `json:",omitzero"`
}

// UserNamespace maps the pod's ids; nil means the node's user namespace.
type UserNamespace struct {
	UIDs, GIDs []IDMap `json:",omitzero"`
}

// An IDMap maps Length ids from Container on to those from Host on.
type IDMap struct {
	Host, Container, Length uint32 `json:",omitzero"`
}

// Seccomp and AppArmor profiles.
type (
	// ProfileKind says where a security profile comes from. The zero value is invalid.
	ProfileKind int
	// A Profile selects a seccomp or AppArmor profile.
	Profile struct {
		Kind ProfileKind `json:",omitzero"`
		Name string      `json:",omitzero"` // Localhost: file of a seccomp profile, name of an AppArmor one
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
	Namespaces         Namespaces `json:",omitzero"`
	SELinux            *SELinux   `json:",omitzero"`
	RunAsUser          *int64     `json:",omitzero"`
	RunAsGroup         *int64     `json:",omitzero"`
	SupplementalGroups []int64    `json:",omitzero"`
	StrictGroups       bool       `json:",omitzero"` // SupplementalGroupsPolicy Strict
	ReadonlyRootfs     bool       `json:",omitzero"`
	Privileged         bool       `json:",omitzero"`
	Seccomp, AppArmor  Profile    `json:",omitzero"`
}

// SELinux labels, refused where SELinux is off only if the kubelet insists.
type SELinux struct {
	User, Role, Type, Level string `json:",omitzero"`
}

// Resources of CRI's LinuxContainerResources. 0 and "" mean unset.
type Resources struct {
	CPUPeriod, CPUQuota, CPUShares int64             `json:",omitzero"`
	MemoryLimit, MemorySwapLimit   int64             `json:",omitzero"` // bytes
	OOMScoreAdj                    int64             `json:",omitzero"`
	CpusetCPUs, CpusetMems         string            `json:",omitzero"`
	HugepageLimits                 []HugepageLimit   `json:",omitzero"`
	Unified                        map[string]string `json:",omitzero"` // cgroup v2 keys
}

// HugepageLimit bounds one page size ("2MB"), in bytes.
type HugepageLimit struct {
	PageSize string `json:",omitzero"`
	Limit    uint64 `json:",omitzero"`
}

// ContainerMetadata is unique in a pod.
type ContainerMetadata struct {
	Name    string `json:",omitzero"`
	Attempt uint32 `json:",omitzero"`
}

// A ContainerConfig is what CreateContainer asks for.
type ContainerConfig struct {
	Metadata           ContainerMetadata `json:",omitzero"`
	Image              string            `json:",omitzero"` // id, tag or digest, as the kubelet sent it
	UserSpecifiedImage string            `json:",omitzero"`
	ImageAnnotations   map[string]string `json:",omitzero"`
	Command, Args      []string          `json:",omitzero"`
	WorkingDir         string            `json:",omitzero"`
	Envs               []KeyValue        `json:",omitzero"`
	Mounts             []Mount           `json:",omitzero"`
	Devices            []Device          `json:",omitzero"`
	CDIDevices         []string          `json:",omitzero"`
	Labels             map[string]string `json:",omitzero"`
	Annotations        map[string]string `json:",omitzero"`
	LogPath            string            `json:",omitzero"` // relative to the pod's log directory; "" for no log
	Stdin, StdinOnce   bool              `json:",omitzero"`
	TTY                bool              `json:",omitzero"`
	StopSignal         int               `json:",omitzero"` // number; 0: the image's, else SIGTERM
	Resources          Resources         `json:",omitzero"`
	Security           ContainerSecurity `json:",omitzero"`
}

// KeyValue is an environment variable. The value may hold any bytes but NUL.
type KeyValue struct {
	Key   string `json:",omitzero"`
	Value []byte `json:",omitzero"`
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
	ContainerPath     string      `json:",omitzero"`
	HostPath          string      `json:",omitzero"`
	ReadOnly          bool        `json:",omitzero"`
	RecursiveReadOnly bool        `json:",omitzero"`
	SELinuxRelabel    bool        `json:",omitzero"`
	Propagation       Propagation `json:",omitzero"`
	UIDMappings       []IDMap     `json:",omitzero"`
	GIDMappings       []IDMap     `json:",omitzero"`
	Image             string      `json:",omitzero"` // image volume
	ImageRef          string      `json:",omitzero"` // ImageSpec.image_ref of the request
	ImageUserRef      string      `json:",omitzero"` // ImageSpec.user_specified_image of the request
	ImageSubPath      string      `json:",omitzero"`
	Options           []string    `json:",omitzero"` // noexec, nodev, nosuid, ...
}

// A Device is a host node at ContainerPath with cgroup permissions "rwm".
type Device struct {
	ContainerPath, HostPath, Permissions string `json:",omitzero"`
}

// ContainerSecurity is a container's security context.
type ContainerSecurity struct {
	CapAdd, CapDrop, CapAmbient []string   `json:",omitzero"`
	Privileged                  bool       `json:",omitzero"`
	Namespaces                  Namespaces `json:",omitzero"`
	SELinux                     *SELinux   `json:",omitzero"`
	RunAsUser                   *int64     `json:",omitzero"`
	RunAsUsername               string     `json:",omitzero"`
	RunAsGroup                  *int64     `json:",omitzero"`
	SupplementalGroups          []int64    `json:",omitzero"`
	StrictGroups                bool       `json:",omitzero"`
	ReadonlyRootfs              bool       `json:",omitzero"`
	NoNewPrivs                  bool       `json:",omitzero"`
	MaskedPaths, ReadonlyPaths  []string   `json:",omitzero"`
	Seccomp, AppArmor           Profile    `json:",omitzero"`
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
	Problem   string       // why the last transition failed, "" if none
	Memo      Memo
	of        *podRecord
}

// A Memo holds what a reader has made of a view, such as an answer in the form in which
// it is sent. It is right for as long as the view is there, since that never changes: the
// next record has a view of its own. All must store values of one type.
type Memo struct{ atomic.Value }

// A ContainerView is what readers see of a container: a committed record, never changed.
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
	Memo       Memo
	of         *containerRecord
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
