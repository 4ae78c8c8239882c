package layer

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/erofs"
)

// setAttrsAt sets owner, mode, attributes and times of what was just made under base in
// a directory that only we can write to. None of the calls follows base.
func setAttrsAt(parent int, base string, n *erofs.Node) error {
	if err := unix.Fchownat(parent, base, int(n.UID), int(n.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if !isLink(n) {
		if err := unix.Fchmodat(parent, base, n.Mode&0o7777, 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	if len(n.Xattr) > 0 {
		path := fmt.Sprintf("/proc/self/fd/%d/%s", parent, base)
		for _, x := range n.Xattr {
			if err := xattrErr(x.Name, unix.Lsetxattr(path, x.Name, x.Value, 0)); err != nil {
				return err
			}
		}
	}
	if err := unix.UtimesNanoAt(parent, base, timesOf(n), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

// setAttrs sets owner, mode, attributes and times, in this order: chown clears the set-id
// bits and security.capability.
func setAttrs(fd int, n *erofs.Node) error {
	if err := unix.Fchown(fd, int(n.UID), int(n.GID)); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if err := unix.Fchmod(fd, n.Mode&0o7777); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	for _, x := range n.Xattr {
		if err := xattrErr(x.Name, unix.Fsetxattr(fd, x.Name, x.Value, 0)); err != nil {
			return err
		}
	}
	// With an empty name utimensat works on the handle itself.
	if err := unix.UtimesNanoAt(fd, "", timesOf(n), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

func timesOf(n *erofs.Node) []unix.Timespec {
	ts := unix.Timespec{Sec: n.Sec, Nsec: int64(n.Nsec)}
	return []unix.Timespec{ts, ts}
}

// xattrErr forgives a filesystem that has no such attributes. Overlay's own mark it must
// have.
func xattrErr(name string, err error) error {
	if err == nil || errors.Is(err, unix.EOPNOTSUPP) && !strings.HasPrefix(name, "trusted.") {
		return nil
	}
	return fmt.Errorf("set attribute %.100q: %w", name, err)
}

// fdWriter writes to a descriptor without the poller's and os.File's bookkeeping,
// which counts with ten thousands of small files. At below 0 it writes where the last
// write ended.
type fdWriter struct {
	fd int
	at int64
}

func (w fdWriter) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		var m int
		var err error
		if w.at < 0 {
			m, err = unix.Write(w.fd, p[n:])
		} else {
			m, err = unix.Pwrite(w.fd, p[n:], w.at+int64(n))
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return n, &storeError{fmt.Errorf("write file: %w", err)}
		}
		n += m
	}
	return n, nil
}
