package layer

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/erofs"
)

// stack is the layers below, topmost first, as handles of their roots.
type stack []int

func openStack(dirs []string) (stack, error) {
	var s stack
	for _, d := range dirs {
		fd, err := unix.Open(d, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			s.close()
			return nil, fmt.Errorf("open root of lower layer %s: %w", d, err)
		}
		s = append(s, fd)
	}
	return s, nil
}

func (s stack) close() {
	for _, fd := range s {
		_ = unix.Close(fd)
	}
}

// lower is what a stack of layers has under a path. The handle is the receiver's.
type lower struct {
	dir  int // the directory that holds it
	base string
	path string // free of links
	st   unix.Stat_t
}

func (l *lower) close() { _ = unix.Close(l.dir) }

func (l *lower) kind() uint32 { return l.st.Mode & unix.S_IFMT }

// proc names it for calls that take no handle.
func (l *lower) proc() string { return fmt.Sprintf("/proc/self/fd/%d/%s", l.dir, l.base) }

// find looks a path up in the merged view of the layers: a whiteout, something other
// than a directory on the way, or an opaque directory hides what is below. With follow,
// links on the way are followed as in the root of a container; without, nothing is behind
// them. Nothing found is nil.
func (s stack) find(path string, follow bool) (*lower, error) {
	l, err := s.findPath(path, follow)
	if err != nil {
		return nil, fmt.Errorf("look up %.200q in the lower layers: %w", path, err)
	}
	return l, nil
}

func (s stack) findPath(path string, follow bool) (*lower, error) {
	w := &lowerWalk{roots: s, at: s, todo: strings.Split(path, "/")}
	defer func() { w.at.leave(s) }()
	for len(w.todo) > 0 {
		name := w.todo[0]
		w.todo = w.todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			if err := w.up(); err != nil {
				return nil, err
			}
			continue
		}
		hit, sub, err := w.at.look(name)
		if hit == nil || err != nil {
			return nil, err
		}
		hit.path = join(strings.Join(w.done, "/"), name)
		if len(w.todo) == 0 {
			sub.close()
			return hit, nil
		}
		kind := hit.kind()
		switch {
		case kind == unix.S_IFDIR:
			w.at.leave(s)
			w.at, w.done = sub, append(w.done, name)
		case kind == unix.S_IFLNK && follow && w.links < maxLinks:
			err = w.follow(hit)
		default:
			hit.close()
			return nil, nil //nolint:nilnil // hidden by it
		}
		hit.close()
		if err != nil {
			return nil, err
		}
	}
	return nil, nil //nolint:nilnil // the root
}

// lowerWalk is a way through the merged view.
type lowerWalk struct {
	roots, at  stack
	done, todo []string
	links      int
}

func (w *lowerWalk) up() (err error) {
	w.done = w.done[:max(len(w.done)-1, 0)]
	w.at, err = w.roots.again(w.at, w.done)
	return err
}

func (w *lowerWalk) follow(link *lower) error {
	w.links++
	to, err := os.Readlink(link.proc())
	if err != nil {
		return fmt.Errorf("read symbolic link: %w", err)
	}
	if strings.HasPrefix(to, "/") {
		w.at.leave(w.roots)
		w.at, w.done = w.roots, nil
	}
	w.todo = slices.Concat(strings.Split(to, "/"), w.todo)
	return nil
}

// leave closes the handles of a directory in the layers, unless they are the roots.
func (s stack) leave(roots stack) {
	if len(s) > 0 && (len(roots) == 0 || &s[0] != &roots[0]) {
		s.close()
	}
}

// again gives up at and walks to a path free of links.
func (s stack) again(at stack, path []string) (stack, error) {
	at.leave(s)
	at = s
	for _, name := range path {
		hit, sub, err := at.look(name)
		at.leave(s)
		if err != nil {
			return nil, err
		}
		if hit != nil {
			hit.close()
		}
		at = sub
	}
	return at, nil
}

// look finds a name in a directory of the merged view; if it is a directory, sub is what
// it is made of.
func (s stack) look(name string) (hit *lower, sub stack, err error) {
	defer func() {
		if err != nil {
			sub.close()
			if hit != nil {
				hit.close()
			}
			hit, sub = nil, nil
		}
	}()
	for _, dir := range s {
		var st unix.Stat_t
		switch err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENAMETOOLONG):
			continue
		case err != nil:
			return hit, sub, err
		}
		if isMark(&st) {
			return hit, sub, nil
		}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		if hit == nil {
			fd, err := unix.FcntlInt(uintptr(dir), unix.F_DUPFD_CLOEXEC, 0) // #nosec G115 -- a descriptor
			if err != nil {
				return hit, sub, err
			}
			hit = &lower{dir: fd, base: name, st: st}
		}
		if !isDir {
			return hit, sub, nil
		}
		fd, err := openDir(dir, name)
		if err != nil {
			return hit, sub, err
		}
		if sub = append(sub, fd); hasOpaque(fd) {
			return hit, sub, nil
		}
	}
	return hit, sub, nil
}

func isMark(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

func hasOpaque(fd int) bool {
	var v [1]byte
	n, err := unix.Fgetxattr(fd, opaqueAttr, v[:])
	return err == nil && n == 1 && v[0] == 'y'
}

// node describes it, without data or children.
func (l *lower) node() (*erofs.Node, error) {
	n := &erofs.Node{Mode: l.st.Mode, UID: l.st.Uid, GID: l.st.Gid, Sec: l.st.Mtim.Sec, Nsec: uint32(l.st.Mtim.Nsec)} // #nosec G115 -- below 1e9
	var err error
	switch l.kind() {
	case unix.S_IFREG:
		n.Size = l.st.Size
	case unix.S_IFLNK:
		if n.Target, err = os.Readlink(l.proc()); err != nil {
			return nil, fmt.Errorf("read symbolic link: %w", err)
		}
	case unix.S_IFDIR:
		n.Children = map[string]*erofs.Node{}
	default:
		n.Rdev = l.st.Rdev
	}
	n.Xattr, err = l.xattrs()
	return n, err
}

// xattrs reads what a layer may set; overlay's own marks stay below.
func (l *lower) xattrs() ([]erofs.Xattr, error) {
	list := make([]byte, 64<<10) // the kernel's bound
	n, err := unix.Llistxattr(l.proc(), list)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	var out []erofs.Xattr
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(string(list[:n]), "\x00") {
		if !mayCarry(name) {
			continue
		}
		n, err := unix.Lgetxattr(l.proc(), name, value)
		if err != nil {
			return nil, fmt.Errorf("read attribute %.100q: %w", name, err)
		}
		out = append(out, erofs.Xattr{Name: name, Value: slices.Clone(value[:n])})
	}
	sortXattrs(out)
	return out, nil
}

// open opens a regular file.
func (l *lower) open() (*os.File, error) {
	fd, err := openat2(l.dir, l.base, unix.O_RDONLY|unix.O_NOFOLLOW)
	if err != nil {
		return nil, fmt.Errorf("open file: %w", err)
	}
	return os.NewFile(uintptr(fd), l.base), nil // #nosec G115 -- a descriptor
}
