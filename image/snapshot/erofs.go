package snapshot

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/content"
	img "github.com/cri-runtime/cri-runtime/image/erofs"
	"github.com/cri-runtime/cri-runtime/image/layer"
	"github.com/cri-runtime/cri-runtime/internal/linux/mount"
)

const (
	tarSuffix   = ".tar"
	indexSuffix = ".idx"
)

// erofs keeps a layer as its tar and an index of it.
type erofs struct {
	opt  layer.Options
	path func(name string) string
	dir  string // that holds the files
	// missing says why this kernel cannot mount layers, if it cannot.
	missing error
}

func (e *erofs) unpack(ctx context.Context, l *Layer, r io.Reader) (err error) {
	tar, err := os.OpenFile(e.path(l.Name)+tarSuffix, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make tar of layer: %w", err)
	}
	defer closing(&err, tar, "write tar of layer")
	x, err := layer.Index(ctx, tar, r, e.opt)
	if err != nil {
		return err
	}
	l.Inodes, l.Root, l.OpaqueRoot = 2, x.Root, x.OpaqueRoot
	l.EROFS = &Files{Tar: x.TarSize, Data: x.Size}
	l.Bytes = occupied(l.EROFS)
	if x.Any() {
		l.open = &unfinished{indexed: x}
		return nil
	}
	if l.EROFS, err = e.index(l.Name, x, tar); err != nil {
		return err
	}
	l.Bytes = occupied(l.EROFS)
	return nil
}

func (e *erofs) finish(l *Layer, below []string) (f finished, err error) {
	tar, err := os.OpenFile(e.path(l.Name)+tarSuffix, os.O_RDWR, 0)
	if err != nil {
		return f, fmt.Errorf("open tar of layer: %w", err)
	}
	defer closing(&err, tar, "write tar of layer")
	if _, err := layer.SettleTree(l.open.indexed, below, tar, e.opt.MaxBytes); err != nil {
		return f, err
	}
	if f.files, err = e.index(l.Name, l.open.indexed, tar); err != nil {
		return f, err
	}
	f.bytes = occupied(f.files)
	return f, nil
}

// index writes the index of a complete tree.
func (e *erofs) index(name string, x *layer.Indexed, tar *os.File) (_ *Files, err error) {
	out, err := os.OpenFile(e.path(name)+indexSuffix, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make index of layer: %w", err)
	}
	defer closing(&err, out, "write index of layer")
	h := sha256.New()
	w := bufio.NewWriterSize(io.MultiWriter(out, h), 256<<10)
	st, err := img.Write(w, x.Tree, img.Options{DeviceSize: x.Size})
	if err != nil {
		return nil, err
	}
	if err := w.Flush(); err != nil {
		return nil, fmt.Errorf("write index of layer: %w", err)
	}
	f := &Files{Tar: x.TarSize, Data: x.Size, Index: st.Size, Sum: digest.NewDigest(digest.SHA256, h)}
	if f.Data > f.Tar {
		h := sha256.New()
		if err := hashInto(h, tar, f.Tar, f.Data); err != nil {
			return nil, err
		}
		f.Rest = digest.NewDigest(digest.SHA256, h)
	}
	return f, nil
}

func hashInto(h hash.Hash, f *os.File, from, to int64) error {
	n, err := io.Copy(h, io.NewSectionReader(f, from, to-from))
	if err == nil && n < to-from {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("read tar of layer: %w", err)
	}
	return nil
}

func occupied(f *Files) uint64 {
	const page = 4096
	return uint64((f.Data+page-1)/page*page + (f.Index+page-1)/page*page) // #nosec G115 -- lengths of files
}

// closing closes a file that was written, whose error may be the first that tells.
func closing(err *error, f *os.File, what string) {
	if e := f.Close(); *err == nil && e != nil {
		*err = fmt.Errorf("%s: %w", what, e)
	}
}

// sync writes out each file, and the directory that names them.
func (e *erofs) sync(ls []*Layer) error {
	var paths []string
	for _, l := range ls {
		paths = append(paths, e.path(l.Name)+tarSuffix, e.path(l.Name)+indexSuffix)
	}
	for _, p := range append(paths, e.dir) {
		f, err := os.Open(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted meanwhile: no record will be written, or it goes again
		} else if err != nil {
			return fmt.Errorf("sync layers: %w", err)
		}
		err = unix.Fdatasync(int(f.Fd()))
		f.Close()
		if err != nil {
			return fmt.Errorf("sync %s: %w: %w", p, err, ErrDamaged)
		}
	}
	return nil
}

func (e *erofs) verify(ctx context.Context, l *Layer, deep bool) error {
	if e.missing != nil {
		// As good as damaged: its image has to be pulled again, into directories.
		return fmt.Errorf("%w: %w", e.missing, ErrDamaged)
	}
	index, tar, err := e.open(l)
	if err != nil {
		return err
	}
	defer index.Close()
	defer tar.Close()
	if !deep {
		return checkMagic(index)
	}
	if err := checkSum(&stoppable{ctx, index}, l.EROFS.Index, l.EROFS.Sum); err != nil {
		return fmt.Errorf("index: %w", err)
	}
	if err := checkSum(&stoppable{ctx, io.LimitReader(tar, l.EROFS.Tar)}, l.EROFS.Tar, l.DiffID); err != nil {
		return fmt.Errorf("tar: %w", err)
	}
	if rest := l.EROFS.Data - l.EROFS.Tar; rest > 0 {
		if err := checkSum(&stoppable{ctx, tar}, rest, l.EROFS.Rest); err != nil {
			return fmt.Errorf("behind the tar: %w", err)
		}
	}
	return nil
}

// open opens the files and checks their lengths.
func (e *erofs) open(l *Layer) (index, tar *os.File, err error) {
	if index, err = openSized(e.path(l.Name)+indexSuffix, l.EROFS.Index); err != nil {
		return nil, nil, err
	}
	if tar, err = openSized(e.path(l.Name)+tarSuffix, l.EROFS.Data); err != nil {
		return nil, nil, errors.Join(err, index.Close())
	}
	return index, tar, nil
}

func openSized(path string, size int64) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", err, ErrDamaged)
	} else if err != nil {
		return nil, fmt.Errorf("open file of layer: %w", err)
	}
	fi, err := f.Stat()
	if err == nil && (fi.Size() != size || !fi.Mode().IsRegular()) {
		err = fmt.Errorf("%s has %d bytes, want %d: %w", path, fi.Size(), size, ErrDamaged)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// checkMagic looks at the superblock's first bytes: blocks that were never written out
// are zeros.
func checkMagic(index *os.File) error {
	var b [4]byte
	if _, err := index.ReadAt(b[:], 1024); err != nil || !bytes.Equal(b[:], []byte{0xE2, 0xE1, 0xF5, 0xE0}) {
		return fmt.Errorf("index begins with %x, %w: %w", b, errors.Join(err), ErrDamaged)
	}
	return nil
}

func checkSum(r io.Reader, size int64, want digest.Digest) error {
	v, err := content.Verify(r, want, size)
	if err == nil {
		err = v.Drain()
	}
	if errors.Is(err, content.ErrMismatch) || errors.Is(err, unix.EIO) {
		return fmt.Errorf("%w: %w", err, ErrDamaged)
	}
	return err
}

// stoppable is a reader that ends with its context.
type stoppable struct {
	ctx context.Context //nolint:containedctx // of one call
	r   io.Reader
}

func (s *stoppable) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.r.Read(p)
}

// mount mounts a layer. The kernel is no judge of a damaged index, so what it gets is
// compared with the recorded sum first: 1 ms for each MiB, once in the life of a process.
func (e *erofs) mount(l *Layer, check bool) (*os.File, error) {
	index, tar, err := e.open(l)
	if err != nil {
		return nil, err
	}
	defer index.Close()
	defer tar.Close()
	if check {
		if err := checkSum(index, l.EROFS.Index, l.EROFS.Sum); err != nil {
			return nil, fmt.Errorf("index: %w", err)
		}
	}
	return mount.EROFS(index, tar)
}

func openTar(path string, size int64) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open tar of layer: %w", err)
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, 0, size), f}, nil
}
