package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/internal/linux/mount"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
	"github.com/cri-runtime/cri-runtime/oci/monitor"
	"github.com/cri-runtime/cri-runtime/oci/spec"
)

// insideEnv marks the process that runs the tests in a mount namespace of its own.
const insideEnv = "CRI_RUNTIME_TEST_INSIDE"

// TestMain takes the tests into a mount namespace of their own: crun refuses a host
// where cgroup2 is mounted beside v1, so that mount is taken away for its tests.
func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) != "" {
		code := m.Run()
		if bin, err := builtMonitor(); err == nil {
			_ = os.RemoveAll(filepath.Dir(bin))
		}
		os.Exit(code)
	}
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	goruntime.LockOSThread() // Pdeathsig follows the thread
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "tests in a mount namespace:", err)
		os.Exit(1)
	}
}

var builtMonitor = sync.OnceValues(func() (string, error) {
	if os.Geteuid() != 0 {
		return "", errors.New("not root")
	}
	dir, err := os.MkdirTemp("", "cri-runtime-test")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "cri-monitor")
	cmd := exec.Command("go", "build", "-o", bin, "../../cmd/cri-monitor")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build cri-monitor: %w: %s", err, out)
	}
	return bin, nil
})

// program finds an OCI runtime: in PATH, or where hack/testtools.sh has put it.
func program(t *testing.T, name string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	if out, err := exec.Command("../../hack/testtools.sh", "-n", name).Output(); err == nil {
		return filepath.Join(strings.TrimSpace(string(out)), name)
	}
	testkit.Need(t, testkit.Tool(name))
	return ""
}

// node is a monitor and a CLI in a state directory.
type node struct {
	t      *testing.T
	dir    string
	cfg    monitor.Config
	client *monitor.Client
	host   *cgroup.Host
	parent cgroup.Path
	cli    *CLI
	conf   CLIConfig
	root   string // what a container sees
}

func newNode(t *testing.T, name, path string) *node {
	t.Helper()
	testkit.Need(t, testkit.Root, testkit.Tool("busybox"))
	bin, err := builtMonitor()
	must(t, err)
	if name == "crun" {
		hideUnified(t)
	}
	dir, err := os.MkdirTemp("/dev/shm", "oci") //nolint:usetesting // a tmpfs, and short: sockets' paths are
	must(t, err)
	testkit.Leaks(t, dir)
	must(t, os.Chmod(dir, 0o711))
	n := &node{t: t, dir: dir, cfg: monitor.Config{StateDir: filepath.Join(dir, "m"), Binary: bin}, parent: testkit.CgroupParent(t)}
	n.host, err = cgroup.Open(t.Context())
	must(t, err)
	n.root = newRoot(t, dir)
	n.connect()
	n.conf = CLIConfig{Name: name, Program: path, Dir: filepath.Join(dir, "oci"), Kernel: Features{UserNamespaces: true, RecursiveReadOnly: true}}
	t.Cleanup(n.close)
	n.restart()
	return n
}

// connect is what a new daemon does first.
func (n *node) connect() {
	n.t.Helper()
	var err error
	n.client, err = monitor.Connect(context.WithoutCancel(n.t.Context()), n.cfg)
	must(n.t, err)
}

func (n *node) restart() {
	n.t.Helper()
	var err error
	n.conf.Parent = n.client
	n.cli, err = NewCLI(n.t.Context(), n.conf)
	must(n.t, err)
}

// close looks for what is left, in the handler's directory and with the monitor.
func (n *node) close() {
	for _, p := range n.client.List() {
		n.t.Errorf("the monitor still knows %s", p.ID)
		_ = n.client.Signal(p.ID, unix.SIGKILL)
		<-n.client.Done(p.ID)
		_ = n.client.Forget(context.Background(), p.ID)
	}
	for _, part := range []string{dirBundles, dirState, dirTemp} {
		left, err := os.ReadDir(filepath.Join(n.conf.Dir, part))
		if err != nil || len(left) > 0 {
			n.t.Errorf("left in %s: %v, %v", part, left, err)
		}
		for _, e := range left {
			_ = mount.Detach(filepath.Join(n.conf.Dir, part, e.Name(), dirRootfs))
		}
	}
	if b, _ := os.ReadFile(filepath.Join(n.cfg.StateDir, "monitor.log")); len(b) > 0 {
		n.t.Errorf("monitor.log: %s", b)
	}
	pid := n.client.MonitorPID()
	if err := n.client.Shutdown(context.Background()); err != nil {
		n.t.Error(err)
	}
	_, _ = unix.Wait4(pid, nil, 0, nil) // a daemon leaves this to pid 1
	_ = os.RemoveAll(n.dir)
}

func hideUnified(t *testing.T) {
	t.Helper()
	if testkit.CgroupV1.Check() != nil || testkit.UnifiedTree.Check() != nil {
		return
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if i := slices.Index(f, "-"); i > 4 && f[i+1] == "cgroup2" {
			must(t, unix.Unmount(f[4], unix.MNT_DETACH))
		}
	}
}

// newRoot makes a root file system with busybox.
func newRoot(t *testing.T, dir string) string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	must(t, err)
	b, err := os.ReadFile(busybox)
	must(t, err)
	root := filepath.Join(dir, "image")
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp"} {
		must(t, os.MkdirAll(filepath.Join(root, d), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(root, "bin/busybox"), b, 0o755))
	for _, a := range []string{"sh", "cat", "sleep", "stty", "tty", "kill", "test", "true"} {
		must(t, os.Symlink("busybox", filepath.Join(root, "bin", a)))
	}
	must(t, os.WriteFile(filepath.Join(root, "etc/noexec"), []byte("#!/bin/sh\n"), 0o644))
	return root
}

// container is a started one with its cgroup and log.
type container struct {
	n     *node
	id    string
	spec  *specs.Spec
	group *cgroup.Group
	proc  monitor.Process
	log   string
}

func (n *node) spec(id string, terminal bool, args ...string) *specs.Spec {
	n.t.Helper()
	adj := -500 // less than this process may give
	s, err := spec.Build(spec.Container{
		Process:  spec.Process{Args: args, Cwd: "/tmp", Terminal: terminal, OOMScoreAdj: &adj, NoNewPrivileges: true},
		Hostname: "test", Seccomp: spec.DefaultSeccomp(goruntime.GOARCH, nil), Paths: spec.Paths{Default: true},
		Namespaces: spec.Namespaces{
			PID: spec.Namespace{Mode: spec.New}, IPC: spec.Namespace{Mode: spec.New}, Network: spec.Namespace{Mode: spec.New},
			UTS: spec.Namespace{Mode: spec.New}, Cgroup: spec.Namespace{Mode: spec.New}, User: spec.Namespace{Mode: spec.Host},
		},
		Cgroup: spec.Cgroup{Path: string(n.parent.Join(id))},
	})
	must(n.t, err)
	return s
}

// prepare makes what the sandbox makes before a start.
func (n *node) prepare(id string, s *specs.Spec) (*container, Start) {
	n.t.Helper()
	c := &container{n: n, id: id, spec: s, log: filepath.Join(n.dir, id+".log")}
	var err error
	c.group, err = n.host.Create(n.parent.Join(id), cgroup.Resources{})
	must(n.t, err)
	root, err := mount.Clone(n.root, false)
	must(n.t, err)
	f, err := monitor.OpenLog(c.log)
	must(n.t, err)
	log := &monitor.Log{Path: c.log, File: f}
	st := Start{ID: id, Bundle: filepath.Join(n.dir, id), Spec: s, Rootfs: root, Group: c.group, Log: log}
	pipes := &monitor.Pipes{}
	if !s.Process.Terminal {
		pipes, err = monitor.NewPipes(0, 0, true)
		must(n.t, err)
		log.Stdout, log.Stderr = pipes.StdoutR, pipes.StderrR
		st.Stdio, st.StdinKeep = Stdio{pipes.Stdin, pipes.Stdout, pipes.Stderr}, pipes.StdinW
	}
	n.t.Cleanup(func() {
		pipes.CloseContainerEnds()
		_ = root.Close()
		ctx := context.Background()
		if err := errors.Join(c.group.Kill(ctx), c.group.Remove(ctx)); err != nil {
			n.t.Error(err)
		}
		c.group.Close()
	})
	return c, st
}

func (n *node) start(id string, s *specs.Spec) *container {
	n.t.Helper()
	c, st := n.prepare(id, s)
	var err error
	c.proc, err = n.cli.Start(n.t.Context(), st)
	must(n.t, err)
	n.t.Cleanup(c.remove)
	return c
}

// wait returns how the container ended.
func (n *node) wait(id string) monitor.Exit {
	n.t.Helper()
	select {
	case <-n.client.Done(id):
	case <-time.After(20 * time.Second):
		n.t.Fatalf("%s does not end", id)
	}
	e, ok := n.client.Exit(id)
	if !ok || !e.Known {
		n.t.Errorf("exit of %s: got %+v, %v", id, e, ok)
	}
	return e
}

// remove ends the container as the sandbox does; twice, as the sandbox may.
func (c *container) remove() {
	ctx := context.Background()
	_ = c.n.client.Signal(c.id, unix.SIGKILL)
	<-c.n.client.Done(c.id)
	if err := errors.Join(c.group.Kill(ctx), c.group.Remove(ctx)); err != nil {
		c.n.t.Error(err)
	}
	for range 2 {
		if err := errors.Join(c.n.cli.Delete(ctx, c.id), c.n.client.Forget(ctx, c.id)); err != nil {
			c.n.t.Error(err)
		}
	}
}

// lines are a log's contents without time and tags.
func (c *container) lines() []string {
	c.n.t.Helper()
	b, err := os.ReadFile(c.log)
	must(c.n.t, err)
	var out []string
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(strings.TrimSpace(line), " ", 4); len(f) == 4 {
			out = append(out, f[1]+" "+f[3])
		}
	}
	return out
}

// session is an exec with its output.
type session struct {
	proc  monitor.Process
	group *cgroup.Group
	out   bytes.Buffer
	from  *os.File
	done  chan struct{}
}

// exec runs args in the container; its error is Exec's.
func (c *container) exec(terminal bool, args ...string) (*session, error) {
	t := c.n.t
	t.Helper()
	id := fmt.Sprintf("exec-%d", time.Now().UnixNano())
	group, err := c.group.Exec(id)
	must(t, err)
	process, err := spec.BuildProcess(c.spec.Process, spec.Exec{Args: args, Terminal: terminal})
	must(t, err)
	e := Exec{ID: id, Container: c.id, PID: c.proc.PID, Spec: c.spec, Process: process, Group: group}
	var r, w *os.File
	if !terminal {
		r, w, err = os.Pipe()
		must(t, err)
		e.Stdio = Stdio{Stdout: w, Stderr: w}
	}
	x := &session{group: group, done: make(chan struct{})}
	x.proc, err = c.n.cli.Exec(t.Context(), e)
	if w != nil {
		_ = w.Close()
	}
	t.Cleanup(func() { x.close(c.n, id) })
	if err != nil {
		if r != nil {
			_ = r.Close()
		}
		close(x.done)
		return x, err
	}
	if terminal {
		r = x.proc.Master
	}
	x.from = r
	var copying sync.WaitGroup
	copying.Go(func() {
		_, _ = io.Copy(&x.out, r)
		if !terminal {
			_ = r.Close()
		}
		close(x.done)
	})
	return x, nil
}

func (x *session) close(n *node, id string) {
	ctx := context.Background()
	if err := x.group.Kill(ctx); err != nil {
		n.t.Error(err)
	}
	_ = n.client.Signal(id, unix.SIGKILL) // should it not be in its cgroup
	<-n.client.Done(id)
	if x.from != nil && x.from != x.proc.Master {
		_ = x.from.Close() // whoever is not in the cgroup holds the other end
	}
	<-x.done
	if err := errors.Join(n.client.Forget(ctx, id), x.group.Remove(ctx)); err != nil {
		n.t.Error(err)
	}
	x.group.Close()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
