package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/layer"
)

// directory keeps a layer as a tree of files.
type directory struct{ s *Store }

func (d directory) unpack(ctx context.Context, l *Layer, r io.Reader) error {
	dir := d.s.layerDir(l.Name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make layer directory: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // #nosec G302 -- below a directory of ours that is 0700
		return fmt.Errorf("make layer directory: %w", err)
	}
	res, err := layer.Apply(ctx, dir, r, d.s.opt.Layer)
	if err != nil {
		return err
	}
	l.Bytes, l.Inodes, l.Root, l.OpaqueRoot = res.Bytes+4096, res.Inodes+1, res.Root, res.OpaqueRoot
	if res.Any() {
		l.open = &unfinished{open: res.Open}
	}
	return nil
}

func (d directory) finish(l *Layer, below []string) (finished, error) {
	bytes, err := layer.Settle(d.s.layerDir(l.Name), below, l.open.open, d.s.opt.Layer.MaxBytes)
	return finished{bytes: l.Bytes + bytes}, err
}

// sync writes out the files of all layers with one call: per file it would cost seconds.
func (d directory) sync([]*Layer) error {
	f, err := os.Open(d.s.opt.Root)
	if err != nil {
		return fmt.Errorf("sync layers: %w", err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync layers: %w: %w", err, ErrDamaged)
	}
	return nil
}

func (d directory) verify(ctx context.Context, l *Layer, deep bool) error {
	dir := d.s.layerDir(l.Name)
	fi, err := os.Lstat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && !fi.IsDir():
		return fmt.Errorf("there is no tree: %w", ErrDamaged)
	case err != nil:
		return fmt.Errorf("look at tree: %w", err)
	case !deep:
		return nil
	}
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil && e.Type().IsRegular() {
			err = readThrough(path)
		}
		if errors.Is(err, unix.EIO) || errors.Is(err, unix.EUCLEAN) || errors.Is(err, unix.EBADMSG) {
			return fmt.Errorf("%w: %w", err, ErrDamaged)
		}
		return err
	})
}

func readThrough(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(io.Discard, f)
	return err
}

func (directory) mount(*Layer, bool) (*os.File, error) { return nil, nil } //nolint:nilnil // its directory is in place
