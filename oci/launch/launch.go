// Package launch compiles an OCI runtime-spec into a plan of system calls.
//
// It is pure: it opens nothing, and the same spec gives the same plan. The result
// names the descriptors that the plan needs, in slot order; package prepare opens
// them, the monitor runs the plan. Every instruction carries words, so that a step
// number and an errno become "mount volume 3 at /data: no such directory".
//
// It refuses what it does not implement (see Unsupported): no field of a spec is
// dropped in silence. Limits of resources are not its business: the cgroup is made
// and filled by the caller and only joined here. It starts no goroutine and leaves
// nothing on disk.
package launch

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-runtime/cri-runtime/oci/launch/plan"
)

// A Launch is a plan with what it takes to run and to explain it.
type Launch struct {
	Plan  *plan.Plan
	Needs []Need // what must be opened, in slot order
	// TwoStage says that the plan clones a second process, which becomes the
	// container's; the first one ends.
	TwoStage bool
	// Terminal says that the plan sends a pty master over the PTYSocket need.
	Terminal bool

	steps    []string // what each instruction does, in words
	searched bool     // the program was searched in PATH
}

// NeedKind is a kind of descriptor.
type NeedKind int

// The kinds. The comment says what the caller hands to prepare.
const (
	Rootfs      NeedKind = iota + 1 // the root as a detached mount
	Stdin                           // the container's side of its standard input
	Stdout                          // and so on; with a terminal none of the three is asked for
	Stderr                          //
	Gate                            // read end of a pipe; the launch waits for one byte
	CgroupTasks                     // Path is the tasks file of a v1 cgroup
	CgroupDir                       // Path is the directory of a v2 cgroup
	Namespace                       // Path is a pinned namespace or one in procfs; Type its kind
	Process                         // a pidfd of the container's process, whose namespaces are joined
	Volume                          // Mount is the index in the spec's mounts: a clone of its source
	DeviceTree                      // a /dev with the spec's devices in it, for user namespaces
	PTYSocket                       // made by prepare: one end of a socket pair
	InitProgram                     // the program of a pod's init, sealed
	BaseMounts                      // a mount namespace that has the host's /proc, /sys and /dev
)

// Need is a descriptor that a plan uses.
type Need struct {
	Kind NeedKind
	Path string
	Type specs.LinuxNamespaceType // of a Namespace
	// Volume is set for volumes, Devices for a DeviceTree.
	Volume  *VolumeNeed
	Devices *DeviceNeed
}

// VolumeNeed says how the clone of a volume is made. The clone is taken in the
// host's mount namespace, before anything becomes a slave there: a clone taken
// later would be private for good.
type VolumeNeed struct {
	Mount       int // index in the spec's mounts
	Destination string
	Recursive   bool
	// Set are MOUNT_ATTR flags of the mount itself, SetRecursive of all below.
	Set, SetRecursive uint64
	Clear             uint64
	// Propagation is an MS_ constant, 0 to keep that of the source.
	Propagation          uint64
	PropagationRecursive bool
	// UIDs and GIDs are the id map, if the volume wants one.
	UIDs, GIDs   []specs.LinuxIDMapping
	IDMapRecurse bool
}

// DeviceNeed describes the /dev of a container in a user namespace, where mknod is
// not allowed.
type DeviceNeed struct {
	Options          []string // of the tmpfs
	Devices          []specs.LinuxDevice
	RootUID, RootGID uint32 // on the host
	UIDs, GIDs       []specs.LinuxIDMapping
}

// HostUID maps a user of the container.
func (d *DeviceNeed) HostUID(id uint32) uint32 { return hostID(d.UIDs, id) }

// HostGID maps a group of the container.
func (d *DeviceNeed) HostGID(id uint32) uint32 { return hostID(d.GIDs, id) }

// Hierarchy is a v1 cgroup hierarchy as a container sees it.
type Hierarchy struct {
	Dir         string   // directory name below /sys/fs/cgroup: "cpu,cpuacct"
	Controllers []string // mount options; empty for a named one
	Name        string   // of a named hierarchy: "systemd"
	// Source is the container's directory in it on the host, or empty: see
	// compiler.cgroupSources.
	Source string
}

// Options are what the spec does not say.
type Options struct {
	// CgroupTasks are the tasks files of the container's v1 cgroups, CgroupDir
	// the directory of its v2 cgroup. Both may be empty.
	CgroupTasks []string
	CgroupDir   string
	// Hierarchies are the v1 hierarchies to show at a mount of type cgroup; with
	// none it is a cgroup2 mount.
	Hierarchies []Hierarchy
	// BaseMounts says that the launch makes its mount namespace out of one with little in
	// it, and not out of the host's: the kernel copies each mount. The sources of
	// Hierarchies must be below /sys.
	BaseMounts bool
	// Gate makes the launch wait for one byte before anything else.
	Gate bool
	// Seccomp is the compiled filter, an array of struct sock_filter, and its
	// flags. It must be set if and only if the spec has a seccomp section.
	Seccomp      []byte
	SeccompFlags uint64
}

// ExecOptions are Options for a further process in a container.
type ExecOptions struct {
	CgroupTasks  []string
	CgroupDir    string
	Gate         bool
	Seccomp      []byte
	SeccompFlags uint64
}

// PodInit describes the init of a shared pid namespace.
type PodInit struct {
	CgroupTasks []string
	CgroupDir   string
	Gate        bool
	// UserNamespace is the pod's pinned user namespace or empty.
	UserNamespace string
	// Join are further pinned namespaces, usually uts and ipc.
	Join []specs.LinuxNamespace
	// Seccomp is the filter that podinit.Filter gives.
	Seccomp []byte
	// OOMScoreAdj is kept as it is with nil.
	OOMScoreAdj *int
}
