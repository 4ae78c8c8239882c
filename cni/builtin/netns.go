package builtin

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/nl"
)

// openNetNS opens the network namespace at path; nil means that it is gone. A plain
// file is what a reboot leaves of a pinned namespace.
func openNetNS(path string) (*os.File, error) {
	if path == "" {
		return nil, nil //nolint:nilnil // documented
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // documented
	}
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || st.Type != unix.NSFS_MAGIC && st.Type != unix.PROC_SUPER_MAGIC {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// mustNetNS is openNetNS for commands that need the namespace.
func mustNetNS(path string) (*os.File, error) {
	f, err := openNetNS(path)
	if err == nil && f == nil {
		err = fmt.Errorf("network namespace %q: %w", path, errdef.ErrNotFound)
	}
	return f, err
}

// inside calls f on a thread that is in the namespace. A thread that cannot come back
// is not given back to the scheduler: it ends with the goroutine.
func inside(ns *os.File, f func() error) error {
	done := make(chan error, 1)
	go func() { // ends before inside returns: done is waited for
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- fmt.Errorf("open own network namespace: %w", err)
			return
		}
		defer home.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		err = f()
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
			done <- errors.Join(err, fmt.Errorf("leave network namespace: %w", back))
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// Loopback brings lo up in the namespace at path. The kernel then adds its addresses.
func Loopback(path string) error {
	ns, err := mustNetNS(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	var c *nl.Conn
	err = inside(ns, func() (err error) {
		c, err = nl.Open(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return fmt.Errorf("open route socket in %s: %w", ns.Name(), err)
	}
	var b nl.Batch
	loopbackUp(&b)
	if err = errors.Join(c.Do(&b), c.Close()); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// loopbackUp brings lo up. It is made first in every namespace, so its index is 1.
func loopbackUp(b *nl.Batch) { b.Link(unix.RTM_NEWLINK, 0, 1, unix.IFF_UP, unix.IFF_UP) }

// A sysctl below /proc/sys/net. Those files show the namespace of the reading thread.
type sysctl struct {
	path, value string
}

// write is for what has another value by default, and sets without looking.
func (s sysctl) write() error {
	fd, err := unix.Open("/proc/sys/net/"+s.path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil // a kernel without the feature
	}
	if err != nil {
		return fmt.Errorf("open sysctl %s: %w", s.path, err)
	}
	defer unix.Close(fd) //nolint:errcheck // a write to procfs is done when it returns
	if _, err := unix.Write(fd, []byte(s.value)); err != nil {
		return fmt.Errorf("set sysctl %s: %w", s.path, err)
	}
	return nil
}

// set writes the value unless it is there already. Plain system calls: package os makes
// a dozen of each.
func (s sysctl) set() error {
	fd, err := unix.Open("/proc/sys/net/"+s.path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open sysctl %s: %w", s.path, err)
	}
	defer unix.Close(fd) //nolint:errcheck // a write to procfs is done when it returns
	var old [32]byte
	if k, err := unix.Read(fd, old[:]); err == nil && string(old[:k]) == s.value+"\n" {
		return nil
	}
	if _, err := unix.Pwrite(fd, []byte(s.value), 0); err != nil {
		return fmt.Errorf("set sysctl %s: %w", s.path, err)
	}
	return nil
}

func mustNet(s string) net.IPNet {
	ip, n, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	n.IP = ip
	return *n
}
