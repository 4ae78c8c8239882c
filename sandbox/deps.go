package sandbox

import (
	"context"
	"net/netip"
	"os"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/cni"
	"github.com/cri-runtime/cri-runtime/image"
	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/oci/monitor"
	"github.com/cri-runtime/cri-runtime/oci/runtime"
)

// Images finds images. Readers never wait.
type Images interface {
	// Resolve finds an image by tag, digest or id; errdef.ErrNotFound when absent.
	Resolve(ref string) (*image.Image, error)
}

// Snapshots keeps containers' file systems. All calls are idempotent by key.
type Snapshots interface { //nolint:interfacebloat // one life: made, found, measured, listed, released
	// Prepare makes, or finds again, the writable snapshot of key.
	Prepare(ctx context.Context, key string, id image.ID, o image.PrepareOptions) (image.Rootfs, error)
	// Snapshot finds what Prepare or View made.
	Snapshot(key string) (image.Rootfs, error)
	// View makes, or finds again, a read-only snapshot of key.
	View(ctx context.Context, key string, id image.ID) (image.Rootfs, error)
	// Release deletes what Prepare or View made; nil when there is nothing.
	Release(ctx context.Context, key string) error
	// Usage is what the writable layer of key takes on disk.
	Usage(key string) (bytes, inodes uint64, err error)
	// Keys lists all snapshots.
	Keys() []string
}

// Pulls tells how far a pull is, or how the last one of a reference went.
type Pulls interface {
	LastPull(ref string) (image.PullStatus, bool)
}

// A Network attaches pods. Attach and Detach are idempotent; after a failed Attach,
// Detach takes back whatever there is of it.
type Network interface {
	Attach(ctx context.Context, p cni.Pod) (cni.Attachment, error)
	Detach(ctx context.Context, p cni.Pod) error
	// GC releases what belongs to pods that are not in valid.
	GC(ctx context.Context, valid []string) error
	// Ready is nil or the reason why Attach would fail.
	Ready() error
	UpdatePodCIDR(cidrs []netip.Prefix) error
}

// Processes knows the processes that were started, also after a restart of the daemon.
type Processes interface {
	// List has every process that was not forgotten.
	List() []monitor.Process
	// Done is closed when the process has ended, its log is complete and its exit
	// recorded. It is closed when the process is not known.
	Done(id string) <-chan struct{}
	// Exit is false until Done is closed.
	Exit(id string) (monitor.Exit, bool)
	Signal(id string, sig unix.Signal) error
	// Forget drops the exit record of a process that has ended.
	Forget(ctx context.Context, id string) error
}

// Streams are the standard streams of processes that were started.
type Streams interface {
	Reopen(ctx context.Context, id, path string) error
	Attach(ctx context.Context, id string) (*monitor.Attached, error)
	Stdin(id string) (*os.File, error)
	CloseStdin(ctx context.Context, id string) error
	Resize(id string, width, height uint16) error
}

// A Runtime starts containers for one runtime handler.
type Runtime interface {
	// Start runs a container's first process and returns when exec succeeded. A
	// failure leaves no process. An exec that failed is a *runtime.ExecError.
	Start(ctx context.Context, s runtime.Start) (monitor.Process, error)
	// Exec runs one more process in a running container.
	Exec(ctx context.Context, e runtime.Exec) (monitor.Process, error)
	// Delete drops what the runtime keeps of a container that has ended.
	Delete(ctx context.Context, id string) error
	// Features are what the runtime can do, as probed.
	Features() runtime.Features
}

// PodInit starts the first process of a shared pid namespace.
type PodInit interface {
	StartInit(ctx context.Context, s runtime.Init) (monitor.Process, error)
}

// Config wires a Service.
type Config struct {
	State        string // on tmpfs: records, pins, pods' files
	CgroupParent cgroup.Path
	Driver       cgroup.Driver
	SeccompDir   string // where relative Localhost profiles are looked up

	Images    Images
	Snapshots Snapshots
	Network   Network
	Processes Processes
	Streams   Streams
	Cgroups   *cgroup.Host
	Runtimes  map[string]Runtime // by handler name; Default must be one of them
	Default   string
	Init      PodInit
	Security  Security
	// Capabilities are what this process may hand on; nil means all.
	Capabilities []string
	Info         map[string]any // configuration for verbose Status
	// Pulls tells of the pulls that Pulling was told of; nil: nobody knows more of them.
	Pulls Pulls
	// Traced is told of each operation of a start when it is over; nil: nobody.
	Traced   func(context.Context, *Trace)
	Features NodeFeatures
}

// NodeFeatures are what the kernel can do, as probed.
type NodeFeatures struct {
	UserNamespaces, RecursiveReadOnly, IDMap, PSI bool
}

// Security gives the profiles of this node.
type Security interface {
	// Seccomp is the default profile for a container with these capabilities.
	Seccomp(caps []string) *specs.LinuxSeccomp
	// AppArmor returns the name of the loaded default profile, "" where there is no AppArmor.
	AppArmor(ctx context.Context) (string, error)
	// AppArmorLoaded says whether a profile is known to the kernel.
	AppArmorLoaded(name string) (bool, error)
}

// Limits of work that outlives a request.
const (
	runPodLimit  = 4 * time.Minute // the kubelet's own deadline for RunPodSandbox
	createLimit  = 4 * time.Minute
	startLimit   = 4 * time.Minute
	undoLimit    = 90 * time.Second
	outputLimit  = 16 << 20 // bytes per stream of ExecSync, as the peers cut
	sampleMaxAge = time.Second
)
