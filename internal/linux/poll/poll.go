// Package poll waits for the kernel to report something on a file descriptor, and
// gives up when the caller does.
//
// A waiting call occupies one thread; it is meant for short waits such as "until
// this cgroup is empty". Nothing is left on disk.
package poll

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Wait returns when one of fds is ready, with Revents set, or with ctx's cause.
func Wait(ctx context.Context, fds []unix.PollFd) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("make eventfd: %w", err)
	}
	// The write must be over before the number can be used by another file.
	wrote := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(wrote)
		one := [8]byte{1}
		_, _ = unix.Write(wake, one[:])
	})
	defer func() {
		if !stop() {
			<-wrote
		}
		_ = unix.Close(wake)
	}()
	all := append([]unix.PollFd{{Fd: int32(wake), Events: unix.POLLIN}}, fds...)
	for {
		_, err := unix.Poll(all, -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("poll: %w", err)
		}
		copy(fds, all[1:])
		for i := range fds {
			if fds[i].Revents != 0 {
				return nil
			}
		}
		return ctx.Err()
	}
}

// Pause waits for d, or until ctx ends. It is for the few states that the kernel
// changes without telling anybody; each caller says which.
func Pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
