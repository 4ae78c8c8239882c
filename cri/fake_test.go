package cri

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cri-runtime/cri-runtime/image"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

// fakeRuntime keeps pods and containers in memory by the rules of the interfaces. It
// also remembers what each call was asked, for the tests of decoding.
type fakeRuntime struct {
	mu         sync.Mutex
	calls      []string
	next       int
	pods       map[sandbox.ID]*sandbox.PodView
	containers map[sandbox.ID]*sandbox.ContainerView
	subs       []chan sandbox.Event
	fail       error // what every call that can fail fails with
	panics     bool
	block      chan struct{} // when set, StartContainer waits for it or its context
}

func newFake() *fakeRuntime {
	return &fakeRuntime{pods: map[sandbox.ID]*sandbox.PodView{}, containers: map[sandbox.ID]*sandbox.ContainerView{}}
}

func (f *fakeRuntime) note(name string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, name+dump(args))
	if f.panics {
		panic("made to")
	}
	return f.fail
}

func (f *fakeRuntime) newID() sandbox.ID {
	f.next++
	return sandbox.ID(fmt.Sprintf("%064x", f.next))
}

func (f *fakeRuntime) RunPod(_ context.Context, c sandbox.PodConfig) (sandbox.ID, error) {
	if err := f.note("RunPod", c); err != nil {
		return "", err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, p := range f.pods {
		if p.Config.Metadata == c.Metadata {
			return id, nil
		}
	}
	id := f.newID()
	f.pods[id] = &sandbox.PodView{
		ID: id, Config: c, CreatedAt: time.Unix(100, 5),
		IPs: []netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd00::2")},
	}
	return id, nil
}

func (f *fakeRuntime) StopPod(_ context.Context, id sandbox.ID) error {
	if err := f.note("StopPod", id); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := f.pods[id]; p != nil {
		stopped := *p
		stopped.State, stopped.Memo = sandbox.PodNotReady, sandbox.Memo{}
		f.pods[id] = &stopped
	}
	return nil
}

func (f *fakeRuntime) RemovePod(_ context.Context, id sandbox.ID) error {
	if err := f.note("RemovePod", id); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.pods, id)
	for cid, c := range f.containers {
		if c.Pod == id {
			delete(f.containers, cid)
		}
	}
	return nil
}

func (f *fakeRuntime) Pod(id sandbox.ID) (*sandbox.PodView, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for full, p := range f.pods {
		if strings.HasPrefix(string(full), string(id)) {
			return p, nil
		}
	}
	return nil, fmt.Errorf("pod %s: %w", id, errdef.ErrNotFound)
}

func (f *fakeRuntime) Pods(filter sandbox.PodFilter) []*sandbox.PodView {
	_ = f.note("Pods", filter)
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*sandbox.PodView
	for _, p := range f.pods {
		if filter.State == nil || *filter.State == p.State {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b *sandbox.PodView) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out
}

func (f *fakeRuntime) UpdatePodResources(_ context.Context, id sandbox.ID, overhead, r *sandbox.Resources) error {
	return f.note("UpdatePodResources", id, overhead, r)
}

func (f *fakeRuntime) CreateContainer(_ context.Context, pod sandbox.ID, c sandbox.ContainerConfig) (sandbox.ID, error) {
	if err := f.note("CreateContainer", pod, c); err != nil {
		return "", err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	id := f.newID()
	f.containers[id] = &sandbox.ContainerView{
		ID: id, Pod: pod, Config: c, CreatedAt: time.Unix(101, 0), Mounts: c.Mounts, Resources: c.Resources,
		ImageID: "sha256:1111", ImageRef: "example.com/a@sha256:2222", ImageName: "example.com/a:1",
		LogPath: "/var/log/pods/x/" + c.LogPath, StopSignal: 15, User: &sandbox.LinuxUser{UID: 7, GID: 8, Groups: []int64{8, 9}},
	}
	return id, nil
}

func (f *fakeRuntime) StartContainer(ctx context.Context, id sandbox.ID) error {
	if err := f.note("StartContainer", id); err != nil {
		return err
	}
	if f.block != nil {
		select {
		case <-f.block:
		case <-ctx.Done():
			return fmt.Errorf("start container: %w", ctx.Err())
		}
	}
	f.set(id, func(c *sandbox.ContainerView) {
		c.State, c.StartedAt, c.PID = sandbox.ContainerRunning, time.Unix(102, 0), 42
	})
	return nil
}

func (f *fakeRuntime) set(id sandbox.ID, change func(*sandbox.ContainerView)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.containers[id]; c != nil {
		d := *c
		d.Memo = sandbox.Memo{}
		change(&d)
		f.containers[id] = &d
	}
}

func (f *fakeRuntime) StopContainer(_ context.Context, id sandbox.ID, timeout time.Duration) error {
	err := f.note("StopContainer", id, timeout)
	f.set(id, func(c *sandbox.ContainerView) {
		c.State, c.FinishedAt, c.ExitCode, c.Reason = sandbox.ContainerExited, time.Unix(103, 0), 137, "Error"
	})
	return err
}

func (f *fakeRuntime) RemoveContainer(_ context.Context, id sandbox.ID) error {
	err := f.note("RemoveContainer", id)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.containers, id)
	return err
}

func (f *fakeRuntime) Container(id sandbox.ID) (*sandbox.ContainerView, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for full, c := range f.containers {
		if strings.HasPrefix(string(full), string(id)) {
			return c, nil
		}
	}
	return nil, fmt.Errorf("container %s: %w", id, errdef.ErrNotFound)
}

func (f *fakeRuntime) Containers(filter sandbox.ContainerFilter) []*sandbox.ContainerView {
	_ = f.note("Containers", filter)
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*sandbox.ContainerView
	for _, c := range f.containers {
		if (filter.Pod == "" || filter.Pod == c.Pod) && (filter.State == nil || *filter.State == c.State) {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b *sandbox.ContainerView) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return out
}

func (f *fakeRuntime) UpdateContainerResources(_ context.Context, id sandbox.ID, r sandbox.Resources, a map[string]string) error {
	return f.note("UpdateContainerResources", id, r, a)
}

func (f *fakeRuntime) ReopenContainerLog(_ context.Context, id sandbox.ID) error {
	return f.note("ReopenContainerLog", id)
}

func (f *fakeRuntime) ExecSync(_ context.Context, id sandbox.ID, cmd []string, timeout time.Duration) (sandbox.ExecResult, error) {
	return sandbox.ExecResult{Stdout: []byte("out"), Stderr: []byte("err"), ExitCode: 3}, f.note("ExecSync", id, cmd, timeout)
}

// Exec copies its input to its output, as cat.
func (f *fakeRuntime) Exec(_ context.Context, r sandbox.ExecRequest) (int32, error) {
	if err := f.note("Exec", r.Container, r.Cmd); err != nil {
		return 0, err
	}
	if r.Stdin != nil {
		_, _ = io.Copy(r.Stdout, r.Stdin)
	}
	return 4, nil
}

func (f *fakeRuntime) Attach(_ context.Context, r sandbox.AttachRequest) error {
	return f.note("Attach", r.Container)
}

func (f *fakeRuntime) PortForward(_ context.Context, pod sandbox.ID, port int32, stream io.ReadWriteCloser) error {
	_, _ = io.Copy(stream, stream)
	return f.note("PortForward", pod, port)
}

func (f *fakeRuntime) ContainerStats(_ context.Context, id sandbox.ID) (sandbox.ContainerStats, error) {
	c, err := f.Container(id)
	if err != nil {
		return sandbox.ContainerStats{}, err
	}
	cores, available := uint64(5), uint64(6)
	psi := &sandbox.PSI{Some: sandbox.PSILine{Avg10: 1.5, TotalMicros: 2}, Full: sandbox.PSILine{Avg300: 2.5, TotalMicros: 3}}
	return sandbox.ContainerStats{Container: c, Stats: &sandbox.Stats{
		At:     time.Unix(200, 0),
		CPU:    sandbox.CPUStats{UsageCoreNanoSeconds: 7, UsageNanoCores: &cores, PSI: psi},
		Memory: sandbox.MemoryStats{WorkingSet: 1, Usage: 2, RSS: 3, PageFaults: 4, MajorPageFaults: 5, Available: &available, PSI: psi},
		Swap:   &sandbox.SwapStats{Usage: 8, Available: &available},
		IO:     psi,
	}, Rootfs: sandbox.FilesystemUsage{At: time.Unix(199, 0), Mountpoint: "/var/lib/x", Bytes: 10, Inodes: 11}}, nil
}

func (f *fakeRuntime) ListContainerStats(ctx context.Context, filter sandbox.ContainerFilter) ([]sandbox.ContainerStats, error) {
	err := f.note("ListContainerStats", filter)
	var out []sandbox.ContainerStats
	for _, c := range f.Containers(sandbox.ContainerFilter{Pod: filter.Pod}) {
		s, _ := f.ContainerStats(ctx, c.ID)
		out = append(out, s)
	}
	return out, err
}

func (f *fakeRuntime) PodStats(ctx context.Context, id sandbox.ID) (sandbox.PodStats, error) {
	p, err := f.Pod(id)
	if err != nil {
		return sandbox.PodStats{}, err
	}
	containers, err := f.ListContainerStats(ctx, sandbox.ContainerFilter{Pod: p.ID})
	return sandbox.PodStats{Pod: p, Containers: containers, Stats: &sandbox.Stats{
		At: time.Unix(200, 0), Processes: 9,
		Network: []sandbox.InterfaceStats{{Name: "eth0", RxBytes: 1, TxErrors: 2}, {Name: "net1", TxBytes: 3}},
	}}, err
}

func (f *fakeRuntime) ListPodStats(ctx context.Context, filter sandbox.PodFilter) ([]sandbox.PodStats, error) {
	err := f.note("ListPodStats", filter)
	var out []sandbox.PodStats
	for _, p := range f.Pods(sandbox.PodFilter{}) {
		s, _ := f.PodStats(ctx, p.ID)
		out = append(out, s)
	}
	return out, err
}

func (f *fakeRuntime) Subscribe() (<-chan sandbox.Event, func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ch := make(chan sandbox.Event, 8)
	f.subs = append(f.subs, ch)
	return ch, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.subs = slices.DeleteFunc(f.subs, func(c chan sandbox.Event) bool { return c == ch })
	}
}

func (f *fakeRuntime) subscribers() []chan sandbox.Event {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.subs)
}

func (f *fakeRuntime) Status(context.Context, bool) sandbox.NodeStatus {
	return sandbox.NodeStatus{
		Runtime:  sandbox.Condition{OK: true},
		Network:  sandbox.Condition{Reason: "NetworkNotReady", Message: "no configuration"},
		Handlers: []sandbox.Handler{{Name: "", RecursiveReadOnly: true}, {Name: "crun", UserNamespaces: true}},

		SupplementalGroupsPolicy: true, MountOptions: true, UserNamespacesHostNetwork: true,
		Info: map[string]any{"kernel": "6.18", "config": map[string]any{"root": "/var/lib/cri-runtime"}},
	}
}

func (f *fakeRuntime) CgroupDriver() sandbox.CgroupDriver { return sandbox.DriverCgroupfs }

func (f *fakeRuntime) UpdateRuntimeConfig(_ context.Context, cidrs []netip.Prefix) error {
	return f.note("UpdateRuntimeConfig", cidrs)
}

func (f *fakeRuntime) PodInfo(_ context.Context, id sandbox.ID) (map[string]any, error) {
	return map[string]any{"stage": "up", "id": id}, f.note("PodInfo", id)
}

func (f *fakeRuntime) ContainerInfo(_ context.Context, id sandbox.ID) (map[string]any, error) {
	return map[string]any{"pid": 42, "id": id}, f.note("ContainerInfo", id)
}

// fakeImages holds images by reference.
type fakeImages struct {
	*fakeRuntime
	byRef map[string]*image.Image
	pulls []image.PullStatus // in flight
}

func newFakeImages(f *fakeRuntime) *fakeImages {
	return &fakeImages{fakeRuntime: f, byRef: map[string]*image.Image{}}
}

func (f *fakeImages) Pull(_ context.Context, r image.PullRequest) (image.ID, error) {
	// The credentials print as redacted, so they are noted one by one.
	a := r.Auth
	if err := f.note("Pull", r.Ref, r.Annotations, a.Username, a.Password, a.Auth, a.ServerAddress, a.IdentityToken, a.RegistryToken); err != nil {
		return "", err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.byRef[r.Ref] = &image.Image{ID: "sha256:1111", RepoTags: []string{r.Ref}, Size: 12, Pinned: true, Config: image.Config{User: "1000:1000"}}
	return "sha256:1111", nil
}

func (f *fakeImages) Resolve(ref string) (*image.Image, error) {
	_ = f.note("Resolve", ref)
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := f.byRef[ref]; i != nil {
		return i, nil
	}
	return nil, fmt.Errorf("image %s: %w", ref, errdef.ErrNotFound)
}

func (f *fakeImages) Pulls() []image.PullStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pulls
}

func (f *fakeImages) Pulling(ref string) (image.PullStatus, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pulls {
		if p.Ref == ref {
			return p, true
		}
	}
	return image.PullStatus{}, false
}

func (f *fakeImages) List() []*image.Image {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*image.Image
	for _, i := range f.byRef {
		out = append(out, i)
	}
	return out
}

func (f *fakeImages) Remove(_ context.Context, ref string) error {
	f.mu.Lock()
	delete(f.byRef, ref)
	f.mu.Unlock()
	return f.note("Remove", ref)
}

func (f *fakeImages) FsUsage() (layers, writable image.FsStat, err error) {
	return image.FsStat{Path: "/var/lib/a", Bytes: 1, Inodes: 2}, image.FsStat{Path: "/var/lib/b", Bytes: 3, Inodes: 4}, nil
}
