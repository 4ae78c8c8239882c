// Package pidfd refers to processes by descriptors, which no pid reuse can fool.
//
// A File belongs to its caller, who closes it. Waiting uses the runtime's poller
// and holds neither a thread nor a goroutine. Nothing is left on disk.
package pidfd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// File is an open pidfd.
type File struct{ f *os.File }

// Open refers to the process pid; errdef.ErrNotFound when there is none.
func Open(pid int) (*File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open pidfd of %d: %w", pid, kind(err))
	}
	return FromFd(fd)
}

// FromFd takes ownership of a pidfd that came from clone3 or over a socket.
func FromFd(fd int) (*File, error) {
	// Without O_NONBLOCK os.NewFile would not use the runtime's poller.
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make pidfd non-blocking: %w", err)
	}
	return &File{f: os.NewFile(uintptr(fd), "pidfd")}, nil
}

// File is the descriptor itself, for passing on. It stays owned by p.
func (p *File) File() *os.File { return p.f }

// Close gives up the reference; waiters return os.ErrClosed.
func (p *File) Close() error { return p.f.Close() }

// Signal sends sig; errdef.ErrNotFound when the process is gone.
func (p *File) Signal(sig unix.Signal) error {
	c, err := p.f.SyscallConn()
	if err != nil {
		return fmt.Errorf("send signal %d: %w", sig, err)
	}
	var e error
	if err := c.Control(func(fd uintptr) { e = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return fmt.Errorf("send signal %d: %w", sig, err)
	}
	if e != nil {
		return fmt.Errorf("send signal %d: %w", sig, kind(e))
	}
	return nil
}

// Wait returns once the process has exited, reaped or not, or with ctx's error.
// Any number may wait, but a cancelled wait lets the others look again.
func (p *File) Wait(ctx context.Context) error {
	c, err := p.f.SyscallConn()
	if err != nil {
		return fmt.Errorf("wait for process: %w", err)
	}
	// A deadline in the past wakes the poller; each waiter then looks at its own ctx.
	stop := context.AfterFunc(ctx, func() { _ = p.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		var e error
		err := c.Read(func(fd uintptr) bool {
			var gone bool
			gone, e = exited(int(fd))
			return gone || e != nil || ctx.Err() != nil
		})
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if ctx.Err() == nil { // another waiter's cancellation
				_ = p.f.SetReadDeadline(time.Time{})
			}
		case err != nil:
			return fmt.Errorf("wait for process: %w", p.closed(err))
		default:
			return errors.Join(e, ctx.Err())
		}
	}
}

// closed turns the poller's private error into os.ErrClosed, as a read does; a pidfd
// has nothing to read.
func (p *File) closed(err error) error {
	if _, e := p.f.Read(make([]byte, 1)); errors.Is(e, os.ErrClosed) {
		return os.ErrClosed
	}
	return err
}

// Exited tells without waiting whether the process has exited.
func (p *File) Exited() (bool, error) {
	c, err := p.f.SyscallConn()
	if err != nil {
		return false, fmt.Errorf("look at process: %w", err)
	}
	var gone bool
	var e error
	if err := c.Control(func(fd uintptr) { gone, e = exited(int(fd)) }); err != nil {
		return false, fmt.Errorf("look at process: %w", err)
	}
	return gone, e
}

func exited(fd int) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("poll pidfd: %w", err)
		}
		return fds[0].Revents&(unix.POLLIN|unix.POLLHUP) != 0, nil
	}
}

// Info is what the kernel knows of the process behind the descriptor.
type Info struct {
	Pid, PPid int
	// Status is the wait status, valid when Reaped: the kernel publishes it when
	// somebody has reaped the process, to whoever still holds a pidfd.
	Status unix.WaitStatus
	Reaped bool
}

// Info asks the kernel (PIDFD_GET_INFO). Kernels before 6.13 do not have the call
// and those before 6.15 not the exit status: errdef.ErrUnimplemented.
func (p *File) Info() (Info, error) {
	c, err := p.f.SyscallConn()
	if err != nil {
		return Info{}, fmt.Errorf("get process info: %w", err)
	}
	raw := unix.PidfdInfo{Mask: unix.PIDFD_INFO_PID | unix.PIDFD_INFO_EXIT}
	var e error
	if err := c.Control(func(fd uintptr) { e = unix.IoctlPidfdInfo(int(fd), &raw) }); err != nil {
		return Info{}, fmt.Errorf("get process info: %w", err)
	}
	if e == unix.EINVAL { // what a kernel says that knows other requests only
		e = unix.ENOTTY
	}
	if e != nil {
		return Info{}, fmt.Errorf("get process info: %w", kind(e))
	}
	return Info{
		Pid: int(raw.Pid), PPid: int(raw.Ppid), Status: unix.WaitStatus(raw.Exit_code),
		Reaped: raw.Mask&unix.PIDFD_INFO_EXIT != 0,
	}, nil
}

func kind(err error) error {
	switch {
	case errors.Is(err, unix.ESRCH):
		return fmt.Errorf("%w: %w", err, errdef.ErrNotFound)
	case errors.Is(err, unix.ENOTTY), errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w: %w", err, errdef.ErrUnimplemented)
	}
	return err
}
