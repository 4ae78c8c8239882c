package layer

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// maxHandles bounds the directory handles kept open per layer.
const maxHandles = 128

// beneath resolves without ever leaving the directory it starts at, nor following links.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// inRoot follows links as a process in the container would.
const inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// dirCache opens parent directories, each once for a run of entries.
type dirCache struct {
	root int
	open map[string]int
	made func(path string) // told of each directory made on the way
}

func openRoot(dir string) (*dirCache, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open layer root: %w", err)
	}
	return &dirCache{root: fd, open: map[string]int{}, made: func(string) {}}, nil
}

// forget closes all handles but the root's.
func (c *dirCache) forget() error {
	var errs []error
	for p, fd := range c.open {
		errs = append(errs, unix.Close(fd))
		delete(c.open, p)
	}
	return errors.Join(errs...)
}

func (c *dirCache) close() {
	_ = c.forget() // handles of directories: closing loses nothing
	_ = unix.Close(c.root)
}

// parent gives a handle of the directory that holds path, made if need be, and path's
// last element. The handle belongs to the cache and lasts until the next call.
func (c *dirCache) parent(path string) (int, string, error) {
	dir, base := split(path)
	fd, err := c.dir(dir)
	return fd, base, err
}

func split(path string) (dir, base string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}

func (c *dirCache) dir(path string) (int, error) {
	if path == "" {
		return c.root, nil
	}
	if fd, ok := c.open[path]; ok {
		return fd, nil
	}
	if len(c.open) >= maxHandles {
		if err := c.forget(); err != nil {
			return -1, err
		}
	}
	fd, err := openat2(c.root, path, unix.O_RDONLY|unix.O_DIRECTORY, beneath)
	switch {
	case errors.Is(err, unix.ELOOP):
		// A link of this layer on the way, such as lib -> usr/lib: follow it inside.
		if fd, err = openat2(c.root, path, unix.O_RDONLY|unix.O_DIRECTORY, inRoot); err != nil {
			return -1, fmt.Errorf("parent is a symbolic link that leads to no directory of this layer: %w: %w", err, errdef.ErrInvalid)
		}
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		if fd, err = c.make(path); err != nil {
			return -1, err
		}
	case err != nil:
		return -1, fmt.Errorf("open parent: %w", err)
	}
	c.open[path] = fd
	return fd, nil
}

// make makes a directory that the stream uses without having described it.
func (c *dirCache) make(path string) (int, error) {
	dir, base := split(path)
	up, err := c.dir(dir)
	if err != nil {
		return -1, err
	}
	white := false
	err = unix.Mkdirat(up, base, 0o755)
	if errors.Is(err, unix.EEXIST) && !isDirAt(up, base) {
		// A file, or a whiteout, of this layer in a parent's place: the later entry wins.
		white = isWhiteout(up, base)
		if err = unix.Unlinkat(up, base, 0); err == nil {
			err = unix.Mkdirat(up, base, 0o755)
		}
	}
	if err != nil {
		return -1, fmt.Errorf("make parent %.200q: %w", path, err)
	}
	fd, err := openDir(up, base)
	if err != nil {
		return -1, err
	}
	if err := unix.Fchmod(fd, 0o755); err != nil { // whatever our umask is
		_ = unix.Close(fd)
		return -1, fmt.Errorf("make parent %.200q: %w", path, err)
	}
	if white {
		if err := opaque(fd); err != nil {
			_ = unix.Close(fd)
			return -1, err
		}
	}
	c.made(path)
	return fd, nil
}

// lookupParent is parent for a path that must exist; the caller closes the handle.
func (c *dirCache) lookupParent(path string) (int, string, error) {
	dir, base := split(path)
	if dir == "" {
		dir = "."
	}
	fd, err := openat2(c.root, dir, unix.O_PATH|unix.O_DIRECTORY, inRoot)
	return fd, base, err
}

func openat2(dir int, path string, flags int, resolve uint64) (int, error) {
	for {
		fd, err := unix.Openat2(dir, path, &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve}) // #nosec G115 -- flags are positive
		// EAGAIN: a rename elsewhere raced with the walk; openat2(2) says to try again.
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// openDir opens one directory by its name in a directory, following nothing.
func openDir(parent int, base string) (int, error) {
	fd, err := openat2(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, beneath)
	if err != nil {
		return -1, fmt.Errorf("open directory: %w", err)
	}
	return fd, nil
}

func isDirAt(parent int, base string) bool {
	var st unix.Stat_t
	return unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

func isWhiteout(parent int, base string) bool {
	var st unix.Stat_t
	return unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

func isDir(root int, path string) bool {
	fd, err := openat2(root, path, unix.O_PATH|unix.O_DIRECTORY, beneath)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}

// setTimes sets the times of a directory, unless a later entry replaced it.
func setTimes(root int, path string, t time.Time) error {
	if path == "" {
		path = "."
	}
	fd, err := openat2(root, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, inRoot)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			return nil
		}
		return fmt.Errorf("open directory: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // a directory handle
	return setTimesFd(fd, t)
}
