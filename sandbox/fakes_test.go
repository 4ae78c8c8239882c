package sandbox

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/cni"
	"github.com/cri-runtime/cri-runtime/image"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
	"github.com/cri-runtime/cri-runtime/oci/monitor"
	"github.com/cri-runtime/cri-runtime/oci/runtime"
)

// fakeNetwork keeps which pods are attached, and fails on demand.
type fakeNetwork struct {
	mu             sync.Mutex
	attached       map[string]bool
	attach, detach error
	attaching      func() // called inside Attach
	collecting     func() // called inside GC
	attaches       int
	detached       []string // network namespaces
}

func (n *fakeNetwork) Attach(ctx context.Context, p cni.Pod) (cni.Attachment, error) {
	if n.attaching != nil {
		n.attaching()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.attaches++
	n.attached[p.ID] = true // a plugin that fails half-way leaves something
	if n.attach != nil {
		return cni.Attachment{}, n.attach
	}
	return cni.Attachment{IPs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}}, ctx.Err()
}

func (n *fakeNetwork) Detach(_ context.Context, p cni.Pod) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.detach != nil {
		return n.detach
	}
	n.detached = append(n.detached, p.NetNS)
	delete(n.attached, p.ID)
	return nil
}

func (n *fakeNetwork) GC(_ context.Context, valid []string) error {
	if n.collecting != nil {
		n.collecting()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.DeleteFunc(n.attached, func(id string, _ bool) bool { return !slices.Contains(valid, id) })
	return nil
}

func (n *fakeNetwork) left() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.attached)
}

func (*fakeNetwork) Ready() error                       { return nil }
func (*fakeNetwork) UpdatePodCIDR([]netip.Prefix) error { return nil }

// fakeProcesses are processes that end when they are told to.
type fakeProcesses struct {
	mu      sync.Mutex
	procs   map[string]*fakeProcess
	exited  func(id string, e monitor.Exit)
	signals []unix.Signal
	obey    bool // SIGTERM ends a process
	starts  error
	ends    bool // a process has ended by the time its start returns
}

type fakeProcess struct {
	done chan struct{}
	exit *monitor.Exit
}

func (f *fakeProcesses) start(id string) (monitor.Process, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.starts != nil {
		return monitor.Process{}, f.starts
	}
	f.procs[id] = &fakeProcess{done: make(chan struct{})}
	if f.ends {
		f.end(id, monitor.Exit{At: time.Now(), Known: true})
	}
	return monitor.Process{ID: id, PID: 1 << 30, StartTime: 1}, nil
}

// end is called with mu held.
func (f *fakeProcesses) end(id string, e monitor.Exit) {
	p := f.procs[id]
	if p == nil || p.exit != nil {
		return
	}
	p.exit = &e
	close(p.done)
	if f.exited != nil {
		f.exited(id, e)
	}
}

func (f *fakeProcesses) Start(_ context.Context, s runtime.Start) (monitor.Process, error) {
	if s.Log != nil {
		closeAll(s.Log.File, s.Log.Stdout, s.Log.Stderr)
	}
	return f.start(s.ID)
}

func (f *fakeProcesses) Exec(_ context.Context, e runtime.Exec) (monitor.Process, error) {
	return f.start(e.ID)
}

func (f *fakeProcesses) StartInit(_ context.Context, s runtime.Init) (monitor.Process, error) {
	return f.start(s.ID)
}
func (*fakeProcesses) Delete(context.Context, string) error { return nil }
func (*fakeProcesses) Features() runtime.Features           { return runtime.Features{} }

func (f *fakeProcesses) List() (out []monitor.Process) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id := range f.procs {
		out = append(out, monitor.Process{ID: id, PID: 1 << 30, StartTime: 1})
	}
	return out
}

func (f *fakeProcesses) Done(id string) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := f.procs[id]; p != nil {
		return p.done
	}
	gone := make(chan struct{})
	close(gone)
	return gone
}

func (f *fakeProcesses) Exit(id string) (monitor.Exit, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := f.procs[id]; p != nil && p.exit != nil {
		return *p.exit, true
	}
	return monitor.Exit{}, false
}

func (f *fakeProcesses) Signal(id string, sig unix.Signal) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.procs[id] == nil {
		return errdef.ErrNotFound
	}
	f.signals = append(f.signals, sig)
	if sig == unix.SIGKILL || f.obey {
		f.end(id, monitor.Exit{At: time.Now(), Known: true, Code: 128 + int32(sig), Signal: int(sig)})
	}
	return nil
}

func (f *fakeProcesses) Forget(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.procs, id)
	return nil
}

func (*fakeProcesses) Reopen(context.Context, string, string) error { return nil }
func (*fakeProcesses) Attach(context.Context, string) (*monitor.Attached, error) {
	return nil, errdef.ErrPhase
}
func (*fakeProcesses) Stdin(string) (*os.File, error)           { return nil, errdef.ErrPhase }
func (*fakeProcesses) CloseStdin(context.Context, string) error { return nil }
func (*fakeProcesses) Resize(string, uint16, uint16) error      { return nil }

// fakeImages has one image whose tree is a directory.
type fakeImages struct {
	dir  string
	mu   sync.Mutex
	keys map[string]bool
	fail error

	resolving func() // called inside Resolve
}

func (f *fakeImages) Resolve(ref string) (*image.Image, error) {
	if f.resolving != nil {
		f.resolving()
	}
	if ref != "img" {
		return nil, errdef.ErrNotFound
	}
	return &image.Image{ID: "sha256:1", Size: 1, Config: image.Config{Cmd: []string{"/bin/true"}}}, nil
}

func (f *fakeImages) Prepare(_ context.Context, key string, _ image.ID, _ image.PrepareOptions) (image.Rootfs, error) {
	if f.fail != nil {
		return image.Rootfs{}, f.fail
	}
	f.mu.Lock()
	f.keys[key] = true
	f.mu.Unlock()
	for _, d := range []string{"l", "l/etc", key, key + "/u", key + "/w"} {
		if err := os.MkdirAll(f.dir+"/"+d, 0o755); err != nil {
			return image.Rootfs{}, err
		}
	}
	return f.Snapshot(key)
}

func (f *fakeImages) Snapshot(key string) (image.Rootfs, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.keys[key] {
		return image.Rootfs{}, errdef.ErrNotFound
	}
	return image.Rootfs{Lower: []string{f.dir + "/l"}, Upper: f.dir + "/" + key + "/u", Work: f.dir + "/" + key + "/w"}, nil
}

func (f *fakeImages) View(ctx context.Context, key string, id image.ID) (image.Rootfs, error) {
	return f.Prepare(ctx, key, id, image.PrepareOptions{})
}

func (f *fakeImages) Release(_ context.Context, key string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.keys, key)
	return nil
}

func (f *fakeImages) Usage(string) (uint64, uint64, error) { return 1, 1, nil }

func (f *fakeImages) Keys() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Keys(f.keys))
}

type noSecurity struct{}

func (noSecurity) Seccomp([]string) *specs.LinuxSeccomp     { return nil }
func (noSecurity) AppArmor(context.Context) (string, error) { return "", nil }
func (noSecurity) AppArmorLoaded(string) (bool, error)      { return false, nil }

// bench is a Service over fakes and the real kernel's namespaces and cgroups.
type bench struct {
	*Service
	net    *fakeNetwork
	procs  *fakeProcesses
	images *fakeImages
	config Config
}

func newBench(t *testing.T) *bench {
	t.Helper()
	testkit.Need(t, testkit.Root, testkit.Overlay)
	testkit.Leaks(t)
	host, err := cgroup.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{
		net:    &fakeNetwork{attached: map[string]bool{}},
		procs:  &fakeProcesses{procs: map[string]*fakeProcess{}, obey: true},
		images: &fakeImages{dir: t.TempDir(), keys: map[string]bool{}},
	}
	b.config = Config{
		State: t.TempDir(), CgroupParent: testkit.CgroupParent(t), Driver: cgroup.Cgroupfs,
		Images: b.images, Snapshots: b.images, Network: b.net, Processes: b.procs, Streams: b.procs, Cgroups: host,
		Runtimes: map[string]Runtime{"fake": b.procs}, Default: "fake", Init: b.procs, Security: noSecurity{},
	}
	b.open(t)
	t.Cleanup(func() {
		b.net.detach = nil
		for _, p := range b.pods.all() {
			if err := b.RemovePod(context.WithoutCancel(t.Context()), p.id); err != nil {
				t.Errorf("clean up: %v", err)
			}
		}
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return b
}

// open starts the service, as a new daemon would on the same state.
func (b *bench) open(t *testing.T) {
	t.Helper()
	b.procs.exited = nil
	s, err := Open(t.Context(), b.config, b.config.State)
	if err != nil {
		t.Fatal(err)
	}
	b.Service = s
	ctx := context.WithoutCancel(t.Context())
	b.procs.mu.Lock()
	b.procs.exited = func(id string, e monitor.Exit) { s.Exited(ctx, id, e) }
	b.procs.mu.Unlock()
}

func (b *bench) pod(t *testing.T, name string) ID {
	t.Helper()
	id, err := b.RunPod(t.Context(), podConfig(name))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func podConfig(name string) PodConfig {
	return PodConfig{
		Metadata: Metadata{Name: name, Namespace: "ns", UID: name}, Hostname: name,
		Security: PodSecurity{Namespaces: Namespaces{PID: ModeContainer}},
	}
}

func containerConfig(name string) ContainerConfig {
	c := ContainerConfig{Metadata: ContainerMetadata{Name: name}, Image: "img"}
	c.Security.Namespaces.PID = ModeContainer
	return c
}

func (b *bench) container(t *testing.T, pod ID, name string) ID {
	t.Helper()
	id, err := b.CreateContainer(t.Context(), pod, containerConfig(name))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (b *bench) started(t *testing.T, pod ID, name string) ID {
	t.Helper()
	id := b.container(t, pod, name)
	if err := b.StartContainer(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	return id
}

var errBroken = errors.New("broken")
