package namespace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/fork"
	"github.com/cri-runtime/cri-runtime/internal/linux/thread"
)

// pinned are the kinds that Pin can make, in the order in which it binds them.
var pinned = [...]Kind{User, Net, IPC, UTS}

// Pin makes the namespaces of s and binds each to dir/KIND; the result holds these
// paths. The directory is made if need be. On failure nothing is left but dir's
// parents. The loopback link is not brought up here.
func Pin(dir string, s Spec) (map[Kind]string, error) {
	return pin(dir, s, func(out map[Kind]string) error {
		if s.User != nil {
			return s.pinChild(out)
		}
		return visit(s.kinds(), func() error {
			if err := unix.Unshare(s.flags()); err != nil {
				return fmt.Errorf("make namespaces: %w", err)
			}
			if err := bind(ofProcess("/proc/thread-self"), out); err != nil {
				return err
			}
			return s.setUp()
		})
	})
}

// pin calls put to make the files that it is told of into pins.
func pin(dir string, s Spec, put func(out map[Kind]string) error) (_ map[Kind]string, err error) {
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("pin namespaces: %w", err)
	}
	// The parent is there but for the first time.
	if err := unix.Mkdir(dir, 0o700); err != nil && os.MkdirAll(dir, 0o700) != nil {
		return nil, fmt.Errorf("pin namespaces: make %s: %w", dir, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, Unpin(dir))
		}
	}()
	out := map[Kind]string{}
	for _, k := range pinned {
		if s.wants(k) {
			out[k] = filepath.Join(dir, string(k))
		}
	}
	if len(out) == 0 {
		return out, nil
	}
	return out, put(out)
}

// pinChild has the namespaces made by a child, because a process with several
// threads cannot enter a new user namespace, and the others must be owned by it.
func (s Spec) pinChild(out map[Kind]string) error {
	c, err := fork.Start(s.flags())
	if err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	proc := "/proc/" + strconv.Itoa(c.Pid)
	err = s.User.write(proc)
	if err == nil {
		err = bind(ofProcess(proc), out)
	}
	if err = errors.Join(err, c.End()); err != nil {
		return err
	}
	if !s.UTS && len(s.Sysctls) == 0 {
		return nil
	}
	// Sysctls may change the thread's user, too: it is not used again.
	return thread.Throwaway(func() error {
		for _, k := range []Kind{Net, IPC, UTS} {
			if path, ok := out[k]; ok {
				if err := enter(path, k); err != nil {
					return err
				}
			}
		}
		return s.setUp()
	})
}

// setUp runs on a thread inside the namespaces.
func (s Spec) setUp() error {
	if s.Hostname != "" {
		if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
			return fmt.Errorf("set host name %q: %w", s.Hostname, err)
		}
	}
	owner := 0
	if s.User != nil {
		owner = s.User.root()
	}
	return writeSysctls(s.Sysctls, owner)
}

func (s Spec) check() error {
	if s.Hostname != "" && !s.UTS {
		return fmt.Errorf("host name %q without a uts namespace: %w", s.Hostname, errdef.ErrInvalid)
	}
	if len(s.Hostname) > 64 {
		return fmt.Errorf("host name %q: longer than the kernel's 64 bytes: %w", s.Hostname, errdef.ErrInvalid)
	}
	if s.User != nil {
		if err := s.User.check(); err != nil {
			return err
		}
	}
	for name := range s.Sysctls {
		if err := CheckSysctl(name, s.Net, s.IPC, s.UTS); err != nil {
			return err
		}
	}
	return nil
}

func (s Spec) wants(k Kind) bool {
	switch k {
	case Net:
		return s.Net
	case IPC:
		return s.IPC
	case UTS:
		return s.UTS
	case User:
		return s.User != nil
	case PID, Mount, Cgroup: // never a pod's
	}
	return false
}

func (s Spec) flags() (flags int) {
	for _, k := range pinned {
		if s.wants(k) {
			flags |= k.Flag()
		}
	}
	return flags
}

// kinds are those that visit can return from.
func (s Spec) kinds() (kinds []Kind) {
	for _, k := range []Kind{Net, IPC, UTS} {
		if s.wants(k) {
			kinds = append(kinds, k)
		}
	}
	return kinds
}

// ofProcess names the namespaces of a process by its directory in /proc.
func ofProcess(proc string) func(Kind) string {
	return func(k Kind) string { return proc + "/ns/" + string(k) }
}

// bind puts namespaces on their files.
func bind(src func(Kind) string, out map[Kind]string) error {
	for k, path := range out {
		if err := unix.Mknod(path, unix.S_IFREG|0o600, 0); err != nil && err != unix.EEXIST {
			return fmt.Errorf("pin %s namespace: make %s: %w", k, path, err)
		}
		if err := unix.Mount(src(k), path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("pin %s namespace on %s: %w", k, path, err)
		}
	}
	return nil
}

// Unpin releases what Pin made, and dir if nothing else is in it. It is
// idempotent. A namespace in use by a process lives on until the process ends.
func Unpin(dir string) error {
	var errs []error
	for _, k := range pinned {
		path := filepath.Join(dir, string(k))
		if err := unpin(path); err != nil {
			errs = append(errs, fmt.Errorf("unpin %s: %w", path, err))
		}
	}
	if err := unix.Rmdir(dir); err != nil && err != unix.ENOENT && err != unix.ENOTEMPTY {
		errs = append(errs, fmt.Errorf("unpin: remove %s: %w", dir, err))
	}
	return errors.Join(errs...)
}

// unpin unmounts until nothing is left: a crash between two Pin calls on one directory
// stacks the mounts. The file can be deleted when it is no mount point any more, so the
// second question is only asked where there are two.
func unpin(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == unix.ENOENT {
			return nil
		}
		mounted := err == nil
		if err != nil && err != unix.EINVAL { // EINVAL: not a mount point
			return err
		}
		err = unix.Unlink(path)
		if err == nil || err == unix.ENOENT {
			return nil
		}
		if err != unix.EBUSY || !mounted {
			return fmt.Errorf("delete: %w", err)
		}
	}
}
