// Package stage is where the benchmarks of whole runtimes take place: network, mount,
// process and IPC namespaces of their own, cgroups that count, programs that are started
// and waited for, a registry on loopback; and what the machine did meanwhile.
//
// It refuses to work without root. Outside starts the program again as its inner half
// and removes the work directory and the cgroups when that has ended, however it has: no
// process, mount, link or namespace outlives the inner half's process namespace. Start's
// caller owns the process. Nothing stays on disk.
package stage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The environment of the processes that a benchmark starts of itself.
const (
	roleEnv    = "CRI_BENCH_ROLE"
	settingEnv = "CRI_BENCH_SETTING"

	roleInit     = "init"
	roleInner    = "inner"
	roleRegistry = "registry"
)

// Work is what the outer half prepares.
type Work struct {
	Dir    string // on the disk that was asked for; removed at the end
	Memory string // on a tmpfs that everybody on the machine sees; removed too
	Cgroup string // name of the cgroups that all others go below
}

// Play does the part of a process that a benchmark started of itself, and says whether
// this is one. The inner half gets its setting decoded into the given value.
func Play(ctx context.Context, setting any, inner func(context.Context) error) (bool, error) {
	value := os.Getenv(settingEnv)
	switch os.Getenv(roleEnv) {
	case roleInit:
		return true, reap(ctx)
	case roleRegistry:
		return true, serveImages(ctx, value)
	case roleInner:
		if err := json.Unmarshal([]byte(value), setting); err != nil {
			return true, fmt.Errorf("decode setting: %w", err)
		}
		if err := prepare(); err != nil {
			return true, fmt.Errorf("prepare namespaces: %w", err)
		}
		return true, inner(ctx)
	}
	return false, nil
}

// Outside makes a work directory below disk and runs the inner half in new namespaces.
// The process namespace ends every process that is left when its first one ends.
func Outside(ctx context.Context, disk string, setting func(Work) any) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("root is needed: namespaces, mounts and cgroups of its own")
	}
	if err := sweep(disk); err != nil {
		return err
	}
	w, unlock, err := newWork(disk)
	if err != nil {
		return err
	}
	defer unlock()
	defer func() { err = errors.Join(err, w.remove()) }()
	value, err := json.Marshal(setting(w))
	if err != nil {
		return fmt.Errorf("encode setting: %w", err)
	}
	runtime.LockOSThread() // Pdeathsig follows the thread
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), roleEnv+"="+roleInit, settingEnv+"="+string(value))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := cmd.Run(); err != nil {
		return errors.Join(ctx.Err(), fmt.Errorf("measure: %w", err))
	}
	return nil
}

const shm, workPrefix, lockFile = "/dev/shm", "cri-bench.", "lock"

// newWork makes the directories of a run. Their lock is held as long as the outer half lives.
func newWork(disk string) (w Work, unlock func(), err error) {
	if w.Dir, err = os.MkdirTemp(disk, workPrefix); err != nil {
		return w, nil, fmt.Errorf("make work directory: %w", err)
	}
	w.Cgroup = filepath.Base(w.Dir)
	w.Memory = filepath.Join(shm, w.Cgroup)
	lock, err := os.OpenFile(filepath.Join(w.Dir, lockFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return w, nil, errors.Join(fmt.Errorf("lock work directory: %w", err), w.remove())
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return w, nil, errors.Join(fmt.Errorf("lock work directory: %w", err), lock.Close(), w.remove())
	}
	if err := os.Mkdir(w.Memory, 0o755); err != nil {
		return w, nil, errors.Join(fmt.Errorf("make work directory: %w", err), lock.Close(), w.remove())
	}
	return w, func() { _ = lock.Close() }, nil
}

func (w Work) remove() error {
	return errors.Join(RemoveCgroups(w.Cgroup), os.RemoveAll(w.Memory), os.RemoveAll(w.Dir))
}

// sweep removes what an outer half left that was killed: its processes, mounts and
// namespaces have ended with it.
func sweep(disk string) error {
	locks, _ := filepath.Glob(filepath.Join(disk, workPrefix+"*", lockFile))
	var errs []error
	for _, name := range locks {
		lock, err := os.Open(name)
		if err != nil {
			continue // just removed by its owner
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			dir := filepath.Dir(name)
			errs = append(errs, Work{Dir: dir, Memory: filepath.Join(shm, filepath.Base(dir)), Cgroup: filepath.Base(dir)}.remove())
		}
		errs = append(errs, lock.Close())
	}
	return errors.Join(errs...)
}

// reap is the first process of the namespace: it starts the inner half, and waits for
// the orphans of all others, as shims and monitors are.
func reap(ctx context.Context) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	signal.Ignore(unix.SIGINT, unix.SIGTERM) // its child hears of them, and ends
	env := slices.DeleteFunc(os.Environ(), func(s string) bool { return s == roleEnv+"="+roleInit })
	child, err := syscall.ForkExec(program, os.Args[:1], &syscall.ProcAttr{Env: append(env, roleEnv+"="+roleInner), Files: []uintptr{0, 1, 2}})
	if err != nil {
		return fmt.Errorf("start the inner half: %w", err)
	}
	for {
		var status unix.WaitStatus
		switch pid, err := unix.Wait4(-1, &status, 0, nil); {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for the inner half: %w", err)
		case pid == child && status.Exited() && status.ExitStatus() == 0:
			return nil
		case pid == child:
			return errors.Join(ctx.Err(), fmt.Errorf("the inner half ended with %d, signal %v", status.ExitStatus(), status.Signal()))
		}
	}
}

// prepare makes the namespaces usable.
func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to itself: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	return nil
}

// RemoveMounts unmounts all at a path and below it.
func RemoveMounts(path string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(path))
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	var errs []error
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m.Mountpoint, 0); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m.Mountpoint, err))
		}
	}
	return errors.Join(errs...)
}

// WriteFiles makes configuration files, and their directories. All may be run: some are
// programs.
func WriteFiles(files map[string]string) error {
	for name, body := range files {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return fmt.Errorf("configure: %w", err)
		}
		if err := os.WriteFile(name, []byte(body), 0o755); err != nil {
			return fmt.Errorf("configure: %w", err)
		}
	}
	return nil
}
