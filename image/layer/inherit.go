package layer

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Open says what a layer leaves to those below it.
type Open struct {
	// Implied holds the directories, parents first, that the stream used without
	// describing them. Their attributes are those of the layers below, if any has them.
	Implied []string
	// Links holds the hard links to files of the layers below.
	Links []Link
}

// Any tells whether the layer depends on those below it.
func (o Open) Any() bool { return len(o.Implied) > 0 || len(o.Links) > 0 }

// Settle completes the layer in dir from the layers below it, topmost first, as a merged
// view would show them: hard links get a copy of their target, as overlay's link(2) makes
// it, and implied directories get owner, mode and times. It gives the bytes added, at
// most limit if that is not 0. After an error the layer is worth nothing.
func Settle(dir string, below []string, o Open, limit int64) (bytes uint64, err error) {
	top, err := openRoot(dir)
	if err != nil {
		return 0, err
	}
	defer top.close()
	var roots []int
	defer func() {
		for _, fd := range roots {
			_ = unix.Close(fd)
		}
	}()
	for _, d := range below {
		c, err := openRoot(d)
		if err != nil {
			return 0, err
		}
		roots = append(roots, c.root)
	}
	if bytes, err = settleLinks(top, roots, o.Links, limit); err != nil {
		return 0, err
	}
	// Children first, so that a parent's time is not touched after it was set.
	for _, path := range slices.Backward(o.Implied) {
		from, err := locate(roots, path)
		if err != nil {
			return 0, err
		}
		if from == nil {
			continue
		}
		_ = unix.Close(from.dir)
		if from.st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		if err := copyAttrs(top.root, path, &from.st); err != nil {
			return 0, fmt.Errorf("inherit attributes of %.200q: %w", path, err)
		}
	}
	return bytes, nil
}

// lower is what a stack of layers has under a path. The handle is the receiver's.
type lower struct {
	dir  int // the directory that holds it
	base string
	st   unix.Stat_t
}

// locate looks a path up in a stack of layers as overlay does: a whiteout, something
// other than a directory on the way, or an opaque directory hides what is below. It
// follows no links: builders write real paths. Nothing found is nil.
func locate(roots []int, path string) (*lower, error) {
	dir, base := split(path)
	for _, root := range roots {
		fd, hidden, err := openIn(root, dir)
		if err != nil {
			return nil, fmt.Errorf("look up %.200q in a lower layer: %w", path, err)
		}
		if fd >= 0 {
			l := &lower{dir: fd, base: base}
			err = unix.Fstatat(fd, base, &l.st, unix.AT_SYMLINK_NOFOLLOW)
			if err == nil && (l.st.Mode&unix.S_IFMT != unix.S_IFCHR || l.st.Rdev != 0) {
				return l, nil
			}
			_ = unix.Close(fd)
			if err != nil && !errors.Is(err, unix.ENOENT) {
				return nil, fmt.Errorf("look up %.200q in a lower layer: %w", path, err)
			}
			hidden = hidden || err == nil // a whiteout
		}
		if hidden {
			return nil, nil //nolint:nilnil // deleted
		}
	}
	return nil, nil //nolint:nilnil // no layer has it
}

// openIn opens a directory of one layer, "" being its root; -1 when it has none. Hidden
// says that the layers below are not to be asked.
func openIn(root int, path string) (fd int, hidden bool, err error) {
	if fd, err = unix.FcntlInt(uintptr(root), unix.F_DUPFD_CLOEXEC, 0); err != nil { // #nosec G115 -- a descriptor
		return -1, false, err
	}
	if path == "" {
		return fd, false, nil
	}
	for name := range strings.SplitSeq(path, "/") {
		sub, err := openDir(fd, name)
		_ = unix.Close(fd)
		switch {
		case errors.Is(err, unix.ENOENT):
			return -1, hidden, nil
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
			return -1, true, nil
		case err != nil:
			return -1, false, err
		}
		fd = sub
		var v [1]byte
		if n, err := unix.Fgetxattr(fd, opaqueAttr, v[:]); err == nil && n == 1 && v[0] == 'y' {
			hidden = true
		}
	}
	return fd, hidden, nil
}

func copyAttrs(root int, path string, st *unix.Stat_t) error {
	fd, err := openat2(root, path, unix.O_RDONLY|unix.O_DIRECTORY, beneath)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // a directory handle
	if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, st.Mode&0o7777); err != nil {
		return err
	}
	return unix.UtimesNanoAt(fd, "", []unix.Timespec{st.Atim, st.Mtim}, unix.AT_EMPTY_PATH)
}

// MakeDir makes a directory with the given attributes, whatever the umask is.
func MakeDir(path string, at Attr) error {
	if err := unix.Mkdir(path, 0o700); err != nil {
		return fmt.Errorf("make directory %s: %w", path, err)
	}
	c, err := openRoot(path)
	if err != nil {
		return err
	}
	defer c.close()
	if err := unix.Fchown(c.root, int(at.UID), int(at.GID)); err != nil {
		return fmt.Errorf("set owner of %s: %w", path, err)
	}
	if err := unix.Fchmod(c.root, at.Mode); err != nil {
		return fmt.Errorf("set mode of %s: %w", path, err)
	}
	return nil
}
