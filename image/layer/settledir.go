package layer

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/erofs"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// Names for Settle's own use in a layer's root: no entry can be called so, since
// everything that begins with .wh. means something else.
const (
	tempCopy = whiteoutPrefix + "copy"
	tempLink = whiteoutPrefix + "link"
)

// dirTop is a directory.
type dirTop struct {
	root  int
	bytes uint64
}

func (t *dirTop) has(path string) (exists, hides bool, err error) {
	at, err := unix.FcntlInt(uintptr(t.root), unix.F_DUPFD_CLOEXEC, 0) // #nosec G115 -- a descriptor
	if err != nil {
		return false, false, err
	}
	defer func() { _ = unix.Close(at) }()
	dir, base := split(path)
	if dir != "" {
		for name := range strings.SplitSeq(dir, "/") {
			sub, err := openDir(at, name)
			switch {
			case errors.Is(err, unix.ENOENT):
				return false, hides, nil
			case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
				return false, true, nil
			case err != nil:
				return false, false, err
			}
			_ = unix.Close(at)
			at = sub
			hides = hides || hasOpaque(at)
		}
	}
	var st unix.Stat_t
	err = unix.Fstatat(at, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return false, hides, nil
	case err != nil:
		return false, false, err
	case isMark(&st):
		return false, true, nil
	}
	return true, hides, nil
}

// change runs f on the directory that holds path and restores its times: they are those
// of the stream.
func (t *dirTop) change(path string, f func(parent int, base string) error) error {
	dir, base := split(path)
	if dir == "" {
		dir = "."
	}
	parent, err := openat2(t.root, dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOENT) {
		return inTheWay(path)
	} else if err != nil {
		return fmt.Errorf("open parent of %.200q: %w", path, err)
	}
	defer unix.Close(parent) //nolint:errcheck // a directory handle
	var st unix.Stat_t
	if err := unix.Fstat(parent, &st); err != nil {
		return fmt.Errorf("stat directory: %w", err)
	}
	if err := f(parent, base); err != nil {
		return err
	}
	if err := unix.UtimesNanoAt(parent, "", []unix.Timespec{st.Atim, st.Mtim}, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("restore times of directory: %w", err)
	}
	return nil
}

func (t *dirTop) mkdir(path string, n *erofs.Node) error {
	return t.change(path, func(parent int, base string) error {
		if err := unix.Mkdirat(parent, base, 0o700); err != nil {
			return err
		}
		return t.inherit(path, n)
	})
}

func (t *dirTop) inherit(path string, n *erofs.Node) error {
	fd, err := openat2(t.root, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // a directory handle
	return setAttrs(fd, n)
}

func (t *dirTop) copy(names []string, from *lower, n *erofs.Node) error {
	return t.change(tempCopy, func(root int, _ string) error {
		if err := copyUp(from, n, root); err != nil {
			return err
		}
		if from.kind() == unix.S_IFREG {
			t.bytes += uint64(roundUp(n.Size)) // #nosec G115 -- a file's size
		}
		if err := t.linkAll(root, tempCopy, names); err != nil {
			return err
		}
		return unix.Unlinkat(root, tempCopy, 0)
	})
}

func (t *dirTop) link(path string, names []string) error {
	return t.change(path, func(parent int, base string) error { return t.linkAll(parent, base, names) })
}

// linkAll links a file to all names, in place of what is there.
func (t *dirTop) linkAll(dir int, base string, names []string) error {
	for _, name := range names {
		err := t.change(tempLink, func(root int, _ string) error {
			if err := unix.Linkat(dir, base, root, tempLink, 0); errors.Is(err, unix.EPERM) {
				return fmt.Errorf("it is a directory: %w", errdef.ErrInvalid)
			} else if err != nil {
				return fmt.Errorf("link copy: %w", err)
			}
			err := t.change(name, func(parent int, base string) error { return unix.Renameat(root, tempLink, parent, base) })
			if errors.Is(err, unix.EISDIR) {
				return inTheWay(name)
			} else if err != nil {
				return fmt.Errorf("put copy in place: %w", err)
			}
			// rename(2) does nothing when both names are one inode already.
			if err := unix.Unlinkat(root, tempLink, 0); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("remove name of copy: %w", err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// copyUp copies a file, device or symbolic link with owner, mode, attributes and times.
func copyUp(from *lower, n *erofs.Node, dir int) error {
	switch from.kind() {
	case unix.S_IFREG:
		if err := copyData(from, dir); err != nil {
			return err
		}
	case unix.S_IFLNK:
		if err := unix.Symlinkat(n.Target, dir, tempCopy); err != nil {
			return fmt.Errorf("make symbolic link: %w", err)
		}
	default:
		if err := unix.Mknodat(dir, tempCopy, n.Mode&unix.S_IFMT|0o600, int(n.Rdev)); err != nil { // #nosec G115 -- as the kernel gave it
			return fmt.Errorf("make node: %w", err)
		}
	}
	return setAttrsAt(dir, tempCopy, n)
}

func copyData(from *lower, dir int) error {
	r, err := from.open()
	if err != nil {
		return err
	}
	defer r.Close()
	dst, err := unix.Openat(dir, tempCopy, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("make file: %w", err)
	}
	w := os.NewFile(uintptr(dst), tempCopy) // #nosec G115 -- a descriptor
	_, err = io.Copy(w, r)                  // by copy_file_range where the filesystem can share blocks
	if e := w.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("copy file: %w", err)
	}
	return nil
}
