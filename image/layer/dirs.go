package layer

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// maxHandles bounds the directory handles kept open per layer.
const maxHandles = 128

// beneath resolves without ever leaving the directory it starts at, nor following links.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// dirCache opens parent directories, each once for a run of entries. Their paths come
// from the stage, free of links; the kernel is asked to see to that as well.
type dirCache struct {
	root int
	open map[string]int
}

func openRoot(dir string) (*dirCache, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open layer root: %w", err)
	}
	return &dirCache{root: fd, open: map[string]int{}}, nil
}

// forget closes all handles but the root's.
func (c *dirCache) forget() error {
	var errs []error
	for _, fd := range c.open {
		errs = append(errs, unix.Close(fd))
	}
	clear(c.open)
	return errors.Join(errs...)
}

func (c *dirCache) close() {
	_ = c.forget() // handles of directories: closing loses nothing
	_ = unix.Close(c.root)
}

// room sees to it that the next n handles close none before them.
func (c *dirCache) room(n int) error {
	if len(c.open)+n > maxHandles {
		return c.forget()
	}
	return nil
}

// parent gives a handle of the directory that holds path and path's last element. The
// handle belongs to the cache and lasts until the next call, unless room was made.
func (c *dirCache) parent(path string) (int, string, error) {
	dir, base := split(path)
	if dir == "" {
		return c.root, base, nil
	}
	if fd, ok := c.open[dir]; ok {
		return fd, base, nil
	}
	if err := c.room(1); err != nil {
		return -1, "", err
	}
	fd, err := openat2(c.root, dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return -1, "", fmt.Errorf("open parent: %w", err)
	}
	c.open[dir] = fd
	return fd, base, nil
}

// openat2 opens beneath dir.
func openat2(dir int, path string, flags int) (int, error) {
	for {
		fd, err := unix.Openat2(dir, path, &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: beneath}) // #nosec G115 -- flags are positive
		// EAGAIN: a rename elsewhere raced with the walk; openat2(2) says to try again.
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// openDir opens one directory by its name in a directory, following nothing.
func openDir(parent int, base string) (int, error) {
	fd, err := openat2(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return -1, fmt.Errorf("open directory: %w", err)
	}
	return fd, nil
}
