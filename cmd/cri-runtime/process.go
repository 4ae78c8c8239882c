package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
)

const (
	// lockName is the file by which a daemon owns a state directory.
	lockName = "lock"
	// lockWait is how long a daemon that is gone may seem to hold it.
	lockWait  = time.Second
	lockRetry = 10 * time.Millisecond
)

// lock makes sure that one daemon works on a state directory. The kernel gives the
// lock back when the daemon is killed, and all that it had forked has executed: until
// then a child holds the descriptor too, close-on-exec or not (flock(2)).
func lock(ctx context.Context, state string) (release func(), err error) {
	if err := os.MkdirAll(state, 0o711); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	path := filepath.Join(state, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	if err := lockFile(ctx, f); err != nil {
		f.Close()
		return nil, fmt.Errorf("another cri-runtime works on %s: %w", state, err)
	}
	return func() { f.Close() }, nil
}

// lockFile tries for lockWait and returns the last refusal.
func lockFile(ctx context.Context, f *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	retry := time.NewTicker(lockRetry)
	defer retry.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			return err
		}
	}
}

// notify tells systemd, if it started us (sd_notify(3)).
func notify(state string) {
	addr := os.Getenv("NOTIFY_SOCKET")
	if addr == "" {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: addr, Net: "unixgram"})
	if err != nil {
		klog.Background().Error(err, "Service manager not told", "state", state)
		return
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write([]byte(state)); err != nil {
		klog.Background().Error(err, "Service manager not told", "state", state)
	}
}

// addLogFlags takes klog's -v and -vmodule.
func addLogFlags(cmd *cobra.Command) {
	var fs flag.FlagSet
	klog.InitFlags(&fs)
	for _, name := range []string{"v", "vmodule"} {
		cmd.Flags().AddGoFlag(fs.Lookup(name))
	}
}

// removeCgroups takes away our parent cgroup, the monitor's in it included.
func (n *node) removeCgroups(ctx context.Context) error {
	g, err := n.cgroups.Open(cgroup.Path(n.config.CgroupParent))
	if errors.Is(err, errdef.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer g.Close()
	return g.Remove(ctx)
}

// forgetOldBoot empties a state directory that another boot of the machine has left:
// on tmpfs there is none, but nobody forces an operator to use tmpfs, and records of
// processes of another boot must not be believed.
func forgetOldBoot(ctx context.Context, state string) error {
	now, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("read boot id: %w", err)
	}
	mark := filepath.Join(state, "boot-id")
	then, err := os.ReadFile(mark)
	if err == nil && bytes.Equal(now, then) {
		return nil
	}
	if err == nil {
		klog.FromContext(ctx).Info("State of a former boot dropped", "directory", state)
		entries, err := os.ReadDir(state)
		if err != nil {
			return fmt.Errorf("drop state of a former boot: %w", err)
		}
		for _, e := range entries {
			if e.Name() == lockName {
				continue
			}
			if err := os.RemoveAll(filepath.Join(state, e.Name())); err != nil {
				return fmt.Errorf("drop state of a former boot: %w", err)
			}
		}
	}
	if err := os.WriteFile(mark, now, 0o600); err != nil {
		return fmt.Errorf("mark state directory: %w", err)
	}
	return nil
}
