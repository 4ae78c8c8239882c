// Package lab is a machine of its own for tests that run the built program: it starts
// a test binary again in network, mount, process and IPC namespaces, so that whatever
// happens nothing of daemon, pods and tools outlives the test.
//
// The first process in there only reaps, as a machine's does; the tests run in the
// second. Outside remain a directory below /var/tmp and cgroups, which the outer half
// removes. It refuses to run without root. A Daemon owns the goroutine that waits for
// its process; Stop or Kill end it.
package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/test/images/catalogue"
)

// The environment of the two inner processes.
const (
	stageEnv   = "CRI_LAB_STAGE"
	settingEnv = "CRI_LAB_SETTING"
)

// Setting is what the outer half prepares for the inner one.
type Setting struct {
	Work   string // a directory on disk, removed afterwards
	Bin    string // our programs
	Tools  string // the programs of hack/testtools.sh
	Cgroup string // name of the cgroup that all others go below, in every hierarchy
}

// ErrMissing is a need that this machine does not meet.
var ErrMissing = errors.New("missing")

// Needs is what a package's tests want of the outer half.
type Needs struct {
	Name   string   // of directories and cgroups
	Tools  []string // of hack/testtools.sh; built when CRI_TEST_STRICT is set
	Bin    string   // directory of the programs to test; empty: built from this tree
	ToolIn string   // directory of the tools; empty: that of hack/testtools.sh
	Keep   bool     // keep the directory, and say where it is
	// Images makes what needs a network, and is here for that: the inner half has none.
	Images func(ctx context.Context, cache string) (*catalogue.Store, error)
}

var here struct {
	Setting
	missing error // why the tests cannot run
}

// Main is the package's TestMain; needs is asked after flags are parsed.
func Main(m *testing.M, needs func() Needs) int {
	flag.Parse()
	switch os.Getenv(stageEnv) {
	case "init":
		return firstProcess()
	case "test":
		if err := json.Unmarshal([]byte(os.Getenv(settingEnv)), &here.Setting); err != nil {
			panic(err)
		}
		return m.Run()
	}
	n := needs()
	code, err := outside(n)
	if errors.Is(err, ErrMissing) {
		here.missing, err = err, nil
		code = m.Run()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", n.Name, err)
		return 1
	}
	return code
}

// Here returns the setting, or skips t where the machine lacks something.
func Here(t testing.TB) Setting {
	t.Helper()
	if here.missing != nil {
		if os.Getenv("CRI_TEST_STRICT") != "" {
			t.Fatal("this test needs ", here.missing)
		}
		t.Skip("this test needs ", here.missing)
	}
	return here.Setting
}

// outside prepares everything, runs the tests inside and removes what they left.
func outside(n Needs) (code int, err error) {
	if os.Geteuid() != 0 {
		return 0, fmt.Errorf("root: %w", ErrMissing)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cache, err := catalogue.CacheDir()
	if err != nil {
		return 0, err
	}
	s := Setting{Tools: n.ToolIn, Bin: n.Bin}
	if s.Tools == "" {
		if s.Tools, err = tools(ctx, n.Tools); err != nil {
			return 0, err
		}
	}
	if _, err := n.Images(ctx, cache); errors.Is(err, exec.ErrNotFound) {
		return 0, fmt.Errorf("%w: %w", err, ErrMissing)
	} else if err != nil {
		return 0, err
	}
	// The root of a user namespace walks to its root file system by path, as nobody: the cache may be below /root.
	if s.Work, err = os.MkdirTemp("/var/tmp", "cri-"+n.Name+"."); err != nil {
		return 0, err
	}
	defer func() {
		if n.Keep {
			fmt.Println(n.Name+": logs and reports are in", s.Work)
			return
		}
		err = errors.Join(err, os.RemoveAll(s.Work))
	}()
	if err := os.Chmod(s.Work, 0o711); err != nil {
		return 0, err
	}
	if s.Bin == "" {
		if s.Bin, err = programs(ctx, s.Work); err != nil {
			return 0, err
		}
	}
	s.Cgroup = filepath.Base(s.Work)
	defer func() { err = errors.Join(err, RemoveCgroups(s.Cgroup)) }()
	return reexec(ctx, s)
}

// tools finds the test tools; with CRI_TEST_STRICT=1 it builds them.
func tools(ctx context.Context, names []string) (string, error) {
	if len(names) == 0 {
		return "", nil
	}
	args := append([]string{"-n"}, names...)
	if os.Getenv("CRI_TEST_STRICT") != "" {
		args = args[1:]
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "../../hack/testtools.sh", args...)
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("test tools: hack/testtools.sh %s: %w: %w", strings.Join(args, " "), err, ErrMissing)
	}
	return strings.TrimSpace(out.String()), nil
}

// programs builds the daemon and the monitor, so that the test never sees old ones.
func programs(ctx context.Context, work string) (string, error) {
	dir := filepath.Join(work, "bin")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-tags", "grpcnotrace", "-o", dir+"/", "github.com/cri-runtime/cri-runtime/cmd/...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build daemon: %w: %s", err, out)
	}
	return dir, nil
}

// reexec runs this program's tests in new namespaces. The process namespace ends
// every process that is left when its first one ends.
func reexec(ctx context.Context, s Setting) (int, error) {
	value, err := json.Marshal(s)
	if err != nil {
		return 0, err
	}
	runtime.LockOSThread() // Pdeathsig follows the thread
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), stageEnv+"=init", settingEnv+"="+string(value))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return max(exit.ExitCode(), 1), ctx.Err()
	}
	return 0, err
}

// firstProcess starts the tests, and reaps whoever ends: what lost its parent is ours.
func firstProcess() int {
	for _, step := range []func() error{
		// Away from the host's mounts, but shared among ourselves, as mount propagation wants it.
		func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "") },
		func() error {
			return unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
		},
		func() error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			return netlink.LinkSetUp(lo)
		},
	} {
		if err := step(); err != nil {
			fmt.Fprintln(os.Stderr, "lab: prepare namespaces:", err)
			return 1
		}
	}
	if err := os.Setenv(stageEnv, "test"); err != nil {
		fmt.Fprintln(os.Stderr, "lab: set environment:", err)
		return 1
	}
	child, err := syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab: start tests:", err)
		return 1
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR) || err == nil && pid != child:
		case err != nil || status.Signaled():
			fmt.Fprintln(os.Stderr, "lab: tests ended by", status.Signal(), err)
			return 1
		default:
			return status.ExitStatus()
		}
	}
}

// RemoveCgroups removes the cgroups called name from all hierarchies, deepest first. A
// cgroup is busy for a moment after its last process was killed.
func RemoveCgroups(name string) error {
	roots, err := cgroupRoots()
	if err != nil {
		return err
	}
	var last error
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		last = nil
		for _, root := range roots {
			var dirs []string
			_ = filepath.WalkDir(filepath.Join(root, name), func(p string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, p)
				}
				return nil
			})
			for _, dir := range slices.Backward(dirs) {
				if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
					last = fmt.Errorf("remove cgroup %s: %w", dir, err)
				}
			}
		}
		if last == nil || time.Now().After(deadline) {
			return last
		}
	}
}

// cgroupRoots lists the mount points of all cgroup hierarchies, v1 and v2.
func cgroupRoots() ([]string, error) {
	mounts, err := ReadMounts()
	if err != nil {
		return nil, err
	}
	var roots []string
	for _, m := range mounts {
		if strings.HasPrefix(m.Type, "cgroup") {
			roots = append(roots, m.Point)
		}
	}
	return roots, nil
}
