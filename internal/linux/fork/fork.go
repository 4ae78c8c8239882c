// Package fork makes children that run nothing: they hold new namespaces, or exit so
// that somebody can look at how.
//
// A child belongs to the caller, who ends it. It also ends when this process does.
package fork

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Child is a forked copy of this process that waits in its new namespaces for the
// end of a pipe and then exits. It never returns to Go code.
type Child struct {
	Pid  int
	gate int // the write end
}

// Start forks with the given CLONE_NEW flags. The fork copies page tables,
// which costs about 1 ms for each 100 MiB of this process; pods with a user
// namespace are rare enough.
func Start(flags int) (Child, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return Child{}, fmt.Errorf("make pipe: %w", err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// No signal may run the Go runtime's handler in the copy.
	var old uint64
	all := ^uint64(0)
	if err := sigmask(&all, &old); err != nil {
		return Child{}, errors.Join(err, unix.Close(p[0]), unix.Close(p[1]))
	}
	pid, errno := forkWaiter(uintptr(flags)|uintptr(unix.SIGCHLD), uintptr(p[0]), uintptr(p[1]))
	err := errors.Join(sigmask(&old, nil), unix.Close(p[0]))
	if errno != 0 {
		return Child{}, errors.Join(fmt.Errorf("clone: %w", errno), err, unix.Close(p[1]))
	}
	c := Child{Pid: int(pid), gate: p[1]}
	if err != nil {
		return Child{}, errors.Join(err, c.End())
	}
	return c, nil
}

// End lets the child exit and reaps it.
func (c Child) End() error {
	if err := unix.Close(c.gate); err != nil {
		return fmt.Errorf("close gate of child: %w", err)
	}
	for {
		// SIGCHLD-ignoring processes and reapers of everything get ECHILD.
		_, err := unix.Wait4(c.Pid, nil, 0, nil)
		switch err {
		case unix.EINTR:
		case nil, unix.ECHILD:
			return nil
		default:
			return fmt.Errorf("reap child: %w", err)
		}
	}
}

// forkWaiter is the fork and, in the copy, all that is ever run: raw system calls
// only, since the copy has one thread and the runtime's other ones hold its locks.
// It exits when the last write end of the pipe closes, thus also when we die.
//
//go:norace
//go:nosplit
//go:noinline
func forkWaiter(flags, read, write uintptr) (uintptr, unix.Errno) {
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, flags, 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	var b [1]byte
	_, _, _ = unix.RawSyscall(unix.SYS_CLOSE, write, 0, 0)
	for {
		_, _, e := unix.RawSyscall(unix.SYS_READ, read, uintptr(unsafe.Pointer(&b[0])), 1)
		if e != unix.EINTR {
			break
		}
	}
	for {
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
}

func sigmask(set, old *uint64) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK,
		uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), 8, 0, 0)
	if errno != 0 {
		return fmt.Errorf("set signal mask: %w", errno)
	}
	return nil
}
