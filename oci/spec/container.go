package spec

import (
	"io/fs"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// A Container is everything that the first process of a container may see and do.
type Container struct {
	Process        Process
	Hostname       string // set in a new UTS namespace; HOSTNAME of the environment
	Rootfs         string // spec.Root.Path; "rootfs" when empty
	ReadonlyRootfs bool
	// Privileged means what CRI says: all capabilities that there are, no seccomp,
	// no masked or read-only paths, writable /sys and cgroups, all devices allowed.
	Privileged bool
	Seccomp    *specs.LinuxSeccomp // nil: unconfined
	Paths      Paths
	Namespaces Namespaces
	Mounts     []Mount
	MountLabel string // SELinux label of the mounts that are made for the container
	Devices    Devices
	Resources  Resources
	Cgroup     Cgroup
	Sysctls    map[string]string
	// Annotations reach the spec as they are; nobody below reads meaning into them.
	Annotations map[string]string
}

// A Process is who runs what, and with which rights.
type Process struct {
	Args []string
	// Env has "NAME=value" strings of any bytes but NUL.
	Env             []string
	Cwd             string // "/" when empty; made when it is missing
	Terminal        bool
	User            User
	Home            string // HOME unless the environment has one
	Capabilities    Capabilities
	NoNewPrivileges bool
	AppArmorProfile string // name of a loaded profile, "" none
	SelinuxLabel    string
	OOMScoreAdj     *int
	Rlimits         []Rlimit
}

// User is a resolved user. Groups holds the primary group too.
type User struct {
	UID, GID uint32
	Groups   []uint32
}

// Capabilities change the default set. Names come with or without "CAP_", in any
// case; "ALL" stands for all. "ALL" is applied before single names, and adding
// before dropping.
type Capabilities struct {
	Add, Drop  []string
	AddAmbient []string
	// Available limits the result to what the launcher holds itself, since nobody
	// can give more; nil means all. Asking for another one by name is an error.
	Available []string
}

// A Rlimit is a resource limit such as "RLIMIT_NOFILE".
type Rlimit struct {
	Type       string
	Soft, Hard uint64
}

// Paths hide parts of /proc and /sys.
type Paths struct {
	Masked, Readonly []string
	// Default takes the usual lists instead of Masked and Readonly.
	Default bool
}

// Mode says where a namespace comes from. The zero value is invalid.
type Mode int

// The modes of a namespace.
const (
	New  Mode = iota + 1 // made for the container
	Host                 // the launcher's own
	Join                 // that of Path
)

// A Namespace is one choice. Path is set with Join only.
type Namespace struct {
	Mode Mode
	Path string
}

// Namespaces are the choices of a container. Its mount namespace is always new.
type Namespaces struct {
	PID, IPC, Network, UTS, Cgroup, User Namespace
	// UIDs and GIDs are the mappings of the user namespace, new or joined.
	UIDs, GIDs []IDMap
}

// An IDMap maps Length ids from Container on to those from Host on.
type IDMap struct{ Container, Host, Length uint32 }

// Propagation of a mount. The zero value is private.
type Propagation int

// The propagations of CRI.
const (
	Private Propagation = iota
	HostToContainer
	Bidirectional
)

// A Mount of the caller. One at the destination of a default mount replaces it.
type Mount struct {
	Destination string
	Source      string
	Type        string // "bind" when empty, or "tmpfs"
	ReadOnly    bool
	// RecursiveReadOnly needs ReadOnly and private propagation.
	RecursiveReadOnly bool
	Propagation       Propagation
	Options           []string // nosuid, nodev, noexec and their opposites; for tmpfs also size=, mode=, ...
	UIDs, GIDs        []IDMap  // an idmapped mount
}

// Devices are the nodes to make and what the device cgroup allows besides the
// usual ones.
type Devices struct {
	Nodes []Device
	Rules []DeviceRule
	All   bool // allow everything
}

// A Device is a node in the container. The caller has read type and numbers from
// the host.
type Device struct {
	Path         string // in the container
	Type         string // "c", "b" or "p"
	Major, Minor int64
	Mode         fs.FileMode // permission bits
	UID, GID     uint32
	Permissions  string // for the cgroup: of "rwm"
}

// A DeviceRule allows access to devices. Nil numbers mean all.
type DeviceRule struct {
	Type         string // "c", "b" or "a"
	Major, Minor *int64
	Permissions  string
}

// Resources limit the container. 0 and "" mean unset.
type Resources struct {
	CPUShares, CPUQuota, CPUPeriod int64
	CpusetCPUs, CpusetMems         string
	MemoryLimit                    int64 // bytes
	// MemorySwap bounds memory and swap together, in bytes. A caller that does not
	// want swapping sets it to MemoryLimit where the kernel accounts swap.
	MemorySwap int64
	PidsLimit  int64
	Hugepages  []Hugepages
	Unified    map[string]string // files of cgroup v2
}

// Hugepages bounds one page size ("2MB"), in bytes.
type Hugepages struct {
	PageSize string
	Limit    uint64
}

// Cgroup is where the container's cgroup is and how it is shown inside.
type Cgroup struct {
	Path     string // spec.Linux.CgroupsPath
	Writable bool   // /sys/fs/cgroup is writable though the container is not privileged
}

// An Exec is one more process in a container.
type Exec struct {
	Args     []string
	Terminal bool
}
