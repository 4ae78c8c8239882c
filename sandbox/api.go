package sandbox

import (
	"io"
	"time"

	"github.com/cri-runtime/cri-runtime/internal/linux/netdev"
)

// ExecResult is the outcome of ExecSync. Output beyond 16 MiB a stream is dropped.
type ExecResult struct {
	Stdout, Stderr []byte
	ExitCode       int32
}

// TerminalSize in characters.
type TerminalSize struct{ Width, Height uint16 }

// An ExecRequest runs Cmd in a running container. Nil streams are closed. Resize may
// be nil; the caller closes it when no more sizes come.
type ExecRequest struct {
	Container      ID
	Cmd            []string
	TTY            bool
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan TerminalSize
}

// An AttachRequest connects streams to a running container's first process.
type AttachRequest struct {
	Container      ID
	TTY            bool
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan TerminalSize
}

// EventKind is what happened to a container or pod.
type EventKind int

// The kinds of CRI's ContainerEventType, with its numbers.
const (
	EventCreated EventKind = iota
	EventStarted
	EventStopped
	EventDeleted
)

// An Event carries a view of the pod and all its containers at that time. A pod's own
// events have the pod's id as Container, as CRI wants it.
type Event struct {
	Container  ID
	Kind       EventKind
	At         time.Time
	Pod        *PodView // never nil
	Containers []*ContainerView
}

// Stats is one reading of a container's or pod's counters. Pointers are nil where the
// kernel does not tell. All who ask within a second share a reading: it is not changed.
type Stats struct {
	At        time.Time
	CPU       CPUStats
	Memory    MemoryStats
	Swap      *SwapStats
	IO        *PSI
	Processes uint64           // pods
	Network   []InterfaceStats // pods: first is the default interface
}

// ContainerStats pairs a container with its stats.
type ContainerStats struct {
	Container *ContainerView
	Stats     *Stats          // never nil
	Rootfs    FilesystemUsage // the writable layer; At is zero when it is not known
}

// PodStats pairs a pod with its stats and those of its running containers.
type PodStats struct {
	Pod        *PodView
	Stats      *Stats // never nil
	Containers []ContainerStats
}

// CPUStats of a cgroup.
type CPUStats struct {
	UsageCoreNanoSeconds uint64
	UsageNanoCores       *uint64 // from the sampler's last two samples
	PSI                  *PSI
}

// MemoryStats of a cgroup, in bytes.
type MemoryStats struct {
	WorkingSet, Usage, RSS, PageFaults, MajorPageFaults uint64
	Available                                           *uint64 // limit less working set
	PSI                                                 *PSI
}

// SwapStats in bytes.
type SwapStats struct {
	Usage     uint64
	Available *uint64
}

// PSI is pressure-stall information of cgroup v2.
type PSI struct{ Some, Full PSILine }

// A PSILine holds averages in percent and the total in microseconds.
type PSILine struct {
	Avg10, Avg60, Avg300 float64
	TotalMicros          uint64
}

// FilesystemUsage of a path's file system by one owner.
type FilesystemUsage struct {
	At            time.Time
	Mountpoint    string
	Bytes, Inodes uint64
}

// InterfaceStats are counters of one network interface in the pod.
type InterfaceStats = netdev.Interface

// Handler describes a runtime handler in Status.
type Handler struct {
	Name              string
	RecursiveReadOnly bool
	UserNamespaces    bool
}

// Condition is one of Status' two conditions.
type Condition struct {
	OK              bool
	Reason, Message string
}

// NodeStatus is what Status reports.
type NodeStatus struct {
	Runtime, Network          Condition
	Handlers                  []Handler // the default one twice: under its name and ""
	SupplementalGroupsPolicy  bool
	MountOptions              bool
	UserNamespacesHostNetwork bool
	Info                      map[string]any // only for verbose requests; JSON-serialisable values
}

// CgroupDriver of RuntimeConfig.
type CgroupDriver int

// The drivers of CRI, with its numbers.
const (
	DriverSystemd CgroupDriver = iota
	DriverCgroupfs
)
