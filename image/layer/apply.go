package layer

import (
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/erofs"
)

// Apply unpacks the tar stream r into the empty directory dir. It reads r to its end.
func Apply(ctx context.Context, dir string, r io.Reader, opt Options) (*Result, error) {
	cache, err := openRoot(dir)
	if err != nil {
		return nil, err
	}
	defer cache.close()
	src := &stream{ctx: ctx, r: r, limit: opt.MaxBytes}
	s := &stage{tree: newTree(), opt: opt, sink: &directory{dirs: cache, src: src, buf: make([]byte, 256<<10)}}
	if err := s.run(ctx, src, src); err != nil {
		return nil, kindOf(err)
	}
	return &s.res, nil
}

// directory is the sink that makes files.
type directory struct {
	dirs *dirCache
	src  *stream
	buf  []byte
}

func (d *directory) make(path string, n *erofs.Node) error {
	parent, base, err := d.dirs.parent(path)
	if err != nil {
		return err
	}
	switch n.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		// The rest comes last: filling a directory changes its times, and a default ACL
		// would be handed down.
		if err := unix.Mkdirat(parent, base, 0o700); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		return nil
	case unix.S_IFLNK:
		err = unix.Symlinkat(n.Target, parent, base)
	default:
		err = unix.Mknodat(parent, base, n.Mode&unix.S_IFMT|0o600, int(n.Rdev)) // #nosec G115 -- as mknod(2) takes it
	}
	if err != nil {
		return fmt.Errorf("make link or device: %w", err)
	}
	return setAttrsAt(parent, base, n)
}

func (d *directory) file(path string, n *erofs.Node, b body) error {
	parent, base, err := d.dirs.parent(path)
	if err != nil {
		return err
	}
	fd, err := unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("make file: %w", err)
	}
	if err = d.fill(fd, n.Size, b); err == nil {
		err = setAttrs(fd, n)
	}
	if e := unix.Close(fd); err == nil && e != nil {
		err = fmt.Errorf("close file: %w", e)
	}
	return err
}

func (d *directory) fill(fd int, size int64, b body) error {
	if !b.sparse {
		_, err := io.CopyBuffer(fdWriter{fd, -1}, struct{ io.Reader }{b.Reader}, d.buf)
		return dataErr(d.src, err)
	}
	err := eachRun(b, size, d.buf, func(at int64, p []byte) error {
		_, err := fdWriter{fd, at}.Write(p)
		return err
	})
	if err != nil {
		return dataErr(d.src, err)
	}
	if err := unix.Ftruncate(fd, size); err != nil {
		return fmt.Errorf("extend file: %w", err)
	}
	return nil
}

func (d *directory) link(old, path string) error {
	if err := d.dirs.room(2); err != nil {
		return err
	}
	from, name, err := d.dirs.parent(old)
	if err != nil {
		return err
	}
	parent, base, err := d.dirs.parent(path)
	if err != nil {
		return err
	}
	// Without AT_SYMLINK_FOLLOW a link is linked, never what it points to.
	if err := unix.Linkat(from, name, parent, base, 0); err != nil {
		return fmt.Errorf("make hard link: %w", err)
	}
	return nil
}

func (d *directory) remove(path string, n *erofs.Node) error {
	parent, base, err := d.dirs.parent(path)
	if err != nil {
		return err
	}
	if !isDir(n) {
		return unix.Unlinkat(parent, base, 0)
	}
	r, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", parent))
	if err != nil {
		return fmt.Errorf("open parent: %w", err)
	}
	// Handles below path would keep working on a deleted tree.
	err = d.dirs.forget()
	if e := r.RemoveAll(base); err == nil {
		err = e
	}
	if e := r.Close(); err == nil {
		err = e
	}
	return err
}

// finish sets what directories are, the innermost first: nothing changes them any more.
func (d *directory) finish(root *erofs.Node) error {
	if err := d.dirs.forget(); err != nil {
		return err
	}
	if err := d.finishBelow("", root); err != nil {
		return err
	}
	return setAttrs(d.dirs.root, root)
}

func (d *directory) finishBelow(path string, n *erofs.Node) error {
	for name, c := range n.Children {
		if !isDir(c) {
			continue
		}
		sub := join(path, name)
		if err := d.finishBelow(sub, c); err != nil {
			return err
		}
		if err := d.finishOne(sub, c); err != nil {
			return fmt.Errorf("finish directory %.200q: %w", sub, err)
		}
	}
	return nil
}

func (d *directory) finishOne(path string, n *erofs.Node) error {
	fd, err := openat2(d.dirs.root, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // a directory handle
	return setAttrs(fd, n)
}
