package cri

import (
	"context"
	"io"
	"net/netip"
	"time"

	"github.com/cri-runtime/cri-runtime/image"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

// Pods is the life of pod sandboxes. RunPod joins an equal call under way. StopPod and
// RemovePod succeed when there is nothing to do. UpdatePodResources is done as a whole
// or not at all.
type Pods interface {
	RunPod(ctx context.Context, config sandbox.PodConfig) (sandbox.ID, error)
	StopPod(ctx context.Context, id sandbox.ID) error
	RemovePod(ctx context.Context, id sandbox.ID) error
	UpdatePodResources(ctx context.Context, id sandbox.ID, overhead, resources *sandbox.Resources) error
}

// Containers is the life of containers, with the same rules as Pods. StopContainer
// kills at once for a timeout of 0.
type Containers interface {
	CreateContainer(ctx context.Context, pod sandbox.ID, config sandbox.ContainerConfig) (sandbox.ID, error)
	StartContainer(ctx context.Context, id sandbox.ID) error
	StopContainer(ctx context.Context, id sandbox.ID, timeout time.Duration) error
	RemoveContainer(ctx context.Context, id sandbox.ID) error
	UpdateContainerResources(ctx context.Context, id sandbox.ID, r sandbox.Resources, annotations map[string]string) error
}

// Views shows what is committed and never waits. Pod and Container take an id or a
// unique prefix of one and fail with errdef.ErrNotFound.
type Views interface {
	Pod(id sandbox.ID) (*sandbox.PodView, error)
	Pods(filter sandbox.PodFilter) []*sandbox.PodView
	Container(id sandbox.ID) (*sandbox.ContainerView, error)
	Containers(filter sandbox.ContainerFilter) []*sandbox.ContainerView
}

// Sessions talks to processes in pods. All calls end with their context and close
// nothing that the caller gave them. ExecSync with a timeout of 0 has none. A log that
// cannot be reopened is left as it was.
type Sessions interface {
	ReopenContainerLog(ctx context.Context, id sandbox.ID) error
	ExecSync(ctx context.Context, id sandbox.ID, cmd []string, timeout time.Duration) (sandbox.ExecResult, error)
	Exec(ctx context.Context, r sandbox.ExecRequest) (exit int32, err error)
	Attach(ctx context.Context, r sandbox.AttachRequest) error
	PortForward(ctx context.Context, pod sandbox.ID, port int32, stream io.ReadWriteCloser) error
}

// Stats reads usage.
type Stats interface {
	ContainerStats(ctx context.Context, id sandbox.ID) (sandbox.ContainerStats, error)
	ListContainerStats(ctx context.Context, filter sandbox.ContainerFilter) ([]sandbox.ContainerStats, error)
	PodStats(ctx context.Context, id sandbox.ID) (sandbox.PodStats, error)
	ListPodStats(ctx context.Context, filter sandbox.PodFilter) ([]sandbox.PodStats, error)
}

// Node is what concerns the node as a whole. The channel of Subscribe is closed when
// its reader is too slow; the function ends the subscription.
type Node interface {
	Subscribe() (<-chan sandbox.Event, func())
	Status(ctx context.Context, verbose bool) sandbox.NodeStatus
	CgroupDriver() sandbox.CgroupDriver
	UpdateRuntimeConfig(ctx context.Context, podCIDRs []netip.Prefix) error
}

// Details are what verbose status calls show: values that can be written as JSON.
type Details interface {
	PodInfo(ctx context.Context, id sandbox.ID) (map[string]any, error)
	ContainerInfo(ctx context.Context, id sandbox.ID) (map[string]any, error)
}

// Images is the image store. Resolve takes a tag, a digest, an id or a unique prefix
// of one and fails with errdef.ErrNotFound. Remove succeeds when nothing is there.
type Images interface {
	Pull(ctx context.Context, r image.PullRequest) (image.ID, error)
	Resolve(ref string) (*image.Image, error)
	List() []*image.Image
	Remove(ctx context.Context, ref string) error
	FsUsage() (layers, writable image.FsStat, err error)
}

// Pulls shows the pulls in flight: all, with the last ones that ended, or that of one
// reference. It never waits.
type Pulls interface {
	Pulls() []image.PullStatus
	Pulling(ref string) (image.PullStatus, bool)
}

// Starts is told of the pulls that belong to the start of a pod. The function that it
// returns is called with the end.
type Starts interface {
	Pulling(ctx context.Context, pod sandbox.Metadata, ref string) (done func(image.ID, error))
}

// Runtime is all that the runtime service needs; *sandbox.Service is one.
type Runtime interface { //nolint:interfacebloat // a sum of small ones, so that wiring passes one value
	Pods
	Containers
	Views
	Sessions
	Stats
	Node
	Details
}

// Deps is what a Server is made of.
type Deps struct {
	Runtime Runtime
	Images  Images
	Pulls   Pulls  // the same store, as a rule
	Starts  Starts // as a rule the same as Runtime; nil: nobody wants to know
	// Parent puts the trace that a request belongs to into its context; nil: there are none.
	Parent func(ctx context.Context, header func(name string) []string) context.Context
	// Version of the program, a semantic version.
	Version string
	// StateDir is shown in verbose Status, as others do, for tools that look there.
	StateDir string
	// StreamAddr is where exec, attach and port-forward are served: an address of
	// the loopback interface; empty for any port of 127.0.0.1.
	StreamAddr string
	// StopGrace bounds how long Serve waits for calls under way; 0 means 5 s.
	StopGrace time.Duration
}
