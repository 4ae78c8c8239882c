package launch_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/linux/mount"
	"github.com/cri-runtime/cri-runtime/oci/launch"
	"github.com/cri-runtime/cri-runtime/oci/launch/plan"
	"github.com/cri-runtime/cri-runtime/oci/launch/prepare"
)

// needRoot skips a kernel test where it cannot run.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CRI_TEST_STRICT") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
}

var applets = strings.Fields(`sh cat ls echo mount grep id pwd stat readlink test true false sleep umask tty stty
	head sort tr touch mkdir ulimit hostname ln cut wc dd kill ps env seq`)

// newRoot makes a directory with busybox in it, owned by a user.
func newRoot(t testing.TB, uid int) string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		if os.Getenv("CRI_TEST_STRICT") == "1" {
			t.Fatal("needs a static busybox in PATH")
		}
		t.Skip("needs a static busybox in PATH")
	}
	dir := filepath.Join(t.TempDir(), "root")
	for _, d := range []string{"bin", "etc", "data"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	b, err := os.ReadFile(busybox)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "bin/busybox"), b, 0o755))
	for _, a := range applets {
		must(t, os.Symlink("busybox", filepath.Join(dir, "bin", a)))
	}
	must(t, os.WriteFile(filepath.Join(dir, "etc/noexec"), []byte("#!/bin/sh\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "etc/garbage"), []byte("garbage"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "etc/badinterp"), []byte("#!/no/such\n"), 0o755))
	must(t, filepath.Walk(dir, func(p string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, uid, uid)
	}))
	return dir
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func treeOf(t testing.TB, dir string) *os.File {
	t.Helper()
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	must(t, err)
	must(t, unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: unix.MS_PRIVATE}))
	return os.NewFile(uintptr(fd), dir)
}

var (
	defaultMasked = strings.Fields(`/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats
		/proc/sched_debug /proc/scsi /proc/timer_list /proc/timer_stats /sys/devices/virtual/powercap /sys/firmware`)
	defaultReadonly = strings.Fields("/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger")
	defaultCaps     = strings.Fields(`CAP_AUDIT_WRITE CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_KILL CAP_MKNOD
		CAP_NET_BIND_SERVICE CAP_NET_RAW CAP_SETFCAP CAP_SETGID CAP_SETPCAP CAP_SETUID CAP_SYS_CHROOT`)
)

// baseSpec is the usual container of a kubelet.
func baseSpec(script string) *specs.Spec {
	return &specs.Spec{
		Version: "1.3.0",
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}, Cwd: "/",
			Capabilities: &specs.LinuxCapabilities{
				Bounding: defaultCaps, Effective: defaultCaps, Permitted: defaultCaps,
			},
			NoNewPrivileges: true,
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.CgroupNamespace},
			},
			MaskedPaths: defaultMasked, ReadonlyPaths: defaultReadonly,
		},
	}
}

// job is a launched process whose output is being collected.
type job struct {
	t   testing.TB
	pid int
	out *os.File
	pty *os.File
}

// begin plays the monitor: it starts a launch and follows its status pipe.
func begin(t testing.TB, l *launch.Launch, in prepare.Inputs) (*job, error) {
	t.Helper()
	j := &job{t: t}
	var w *os.File
	if !l.Terminal {
		var err error
		j.out, w, err = os.Pipe()
		must(t, err)
		in.Stdout, in.Stderr = w, w
	}
	files, err := prepare.Open(t.Context(), l, in)
	if err != nil {
		return nil, err
	}
	defer func() { must(t, files.Close()) }()
	fds := make([]int32, 0, len(files.List))
	for _, f := range files.List {
		fds = append(fds, int32(f.Fd()))
	}
	loaded, e := plan.Load(l.Plan.Marshal())
	if e != 0 {
		t.Fatalf("load plan: %v\n%s", e, l)
	}
	c, e := loaded.Start(fds)
	loaded.Unmap()
	if w != nil {
		must(t, w.Close())
	}
	if e != 0 {
		return nil, fmt.Errorf("clone: %w", e)
	}
	must(t, unix.Close(c.PIDFD))
	j.pid = c.PID
	if err := j.follow(l, c.Status); err != nil {
		if j.out != nil {
			_ = j.out.Close()
		}
		return nil, err
	}
	if l.Terminal {
		j.receivePTY(files.PTY)
	}
	return j, nil
}

// follow reads the status pipe to its end.
func (j *job) follow(l *launch.Launch, fd int) error {
	status := os.NewFile(uintptr(fd), "status")
	defer func() { _ = status.Close() }()
	ready := false
	var rec [plan.RecordSize]byte
	for {
		if _, err := io.ReadFull(status, rec[:]); errors.Is(err, io.EOF) {
			break
		}
		r := plan.Decode(rec[:])
		switch {
		case r.Step == plan.StepClone:
			if j.pid != int(r.Value) { // either stage says so
				j.reap()
				j.pid = int(r.Value)
			}
		case r.Step == plan.StepReady:
			ready = true
		case r.Failed():
			code := j.reap()
			err := l.Explain(int(r.Step), syscall.Errno(r.Value))
			if code != 126 && code != 127 {
				return fmt.Errorf("exit code %d after %w", code, err)
			}
			return err
		}
	}
	if !ready {
		return fmt.Errorf("child died during set-up, exit code %d", j.reap())
	}
	return nil
}

func (j *job) reap() int {
	var ws syscall.WaitStatus
	for {
		_, err := syscall.Wait4(j.pid, &ws, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		must(j.t, err)
		break
	}
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

func (j *job) receivePTY(sock *os.File) {
	oob, b := make([]byte, 64), make([]byte, 1)
	_, n, _, _, err := unix.Recvmsg(int(sock.Fd()), b, oob, unix.MSG_CMSG_CLOEXEC)
	must(j.t, err)
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	must(j.t, err)
	fds, err := unix.ParseUnixRights(&msgs[0])
	must(j.t, err)
	j.pty = os.NewFile(uintptr(fds[0]), "pty")
}

// finish waits for the end and gives the output and the exit code.
func (j *job) finish() (string, int) {
	r := j.out
	if r == nil {
		r = j.pty
	}
	b, _ := io.ReadAll(r) // a pty ends with EIO
	_ = r.Close()
	return string(b), j.reap()
}

// kill ends a process that goes on by itself.
func (j *job) kill() {
	must(j.t, unix.Kill(j.pid, unix.SIGKILL))
	j.finish()
}

// run launches a container on a fresh root and gives its output.
func run(t testing.TB, s *specs.Spec, o launch.Options) (string, int) {
	t.Helper()
	out, code, err := tryRun(t, s, o, newRoot(t, 0))
	must(t, err)
	return out, code
}

// tryRun starts from few mounts, as the daemon does; the tests that compile by themselves
// start from the host's.
func tryRun(t testing.TB, s *specs.Spec, o launch.Options, root string) (string, int, error) {
	t.Helper()
	base, err := mount.Base()
	must(t, err)
	defer func() { _ = base.Close() }()
	o.BaseMounts = true
	l, err := launch.Compile(s, o)
	if err != nil {
		return "", 0, err
	}
	tree := treeOf(t, root)
	defer func() { _ = tree.Close() }()
	j, err := begin(t, l, prepare.Inputs{Rootfs: tree, BaseMounts: base})
	if err != nil {
		return "", 0, err
	}
	out, code := j.finish()
	return out, code, nil
}
