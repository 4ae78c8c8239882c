// Package layer applies the tar stream of an image layer to a directory, as a lower
// directory for overlay.
//
// The stream is hostile. Every name is resolved by openat2 from a handle of the layer's
// root and cannot leave it; metadata is set through handles or on names that were just
// made in a directory nobody else can reach. It refuses "..", hard links to what neither
// the layer nor those below have, owners that overflow, entries of unknown type and layers above a size. Attributes
// that overlay itself obeys are dropped. It starts no goroutine, syncs nothing, and leaves
// a half-filled directory when it fails: the caller deletes it.
package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	aufsPrefix     = ".wh..wh." // bookkeeping of aufs, means nothing to overlay

	opaqueAttr = "trusted.overlay.opaque"

	block = 4096 // what a file's last block, an inode or a small directory occupies, roughly
)

// Options bound what a layer may do.
type Options struct {
	// MaxBytes bounds the sum of file sizes, holes included: a bomb stops there.
	MaxBytes int64
	// MaxEntries bounds the number of entries.
	MaxEntries int
}

// Result describes an applied layer.
type Result struct {
	Bytes, Inodes uint64
	// Open is what Settle has to add from the layers below.
	Open
	// Root holds the attributes of the image's root directory, if the stream has them.
	Root *Attr
	// OpaqueRoot says that nothing of the layers below is to be seen.
	OpaqueRoot bool
}

// Attr is what a directory takes over from another.
type Attr struct {
	Mode     uint32 `json:"mode"` // permission bits with set-id and sticky
	UID, GID uint32
	Mtime    time.Time `json:"mtime"`
}

type applier struct {
	ctx     context.Context //nolint:containedctx // lives as long as one Apply
	dirs    *dirCache
	opt     Options
	total   int64
	entries int
	res     Result
	implied map[string]bool
	mtimes  map[string]time.Time // of directories, set last: filling them changes them
	order   []string             // the keys of mtimes in order of appearance
	buf     []byte
}

// Apply unpacks the tar stream r into the empty directory dir. It reads r to its end.
func Apply(ctx context.Context, dir string, r io.Reader, opt Options) (*Result, error) {
	cache, err := openRoot(dir)
	if err != nil {
		return nil, err
	}
	defer cache.close()
	a := &applier{ctx: ctx, dirs: cache, opt: opt, implied: map[string]bool{},
		mtimes: map[string]time.Time{}, buf: make([]byte, 256<<10)}
	cache.made = func(path string) {
		a.implied[path] = true
		a.res.Implied = append(a.res.Implied, path)
		a.count(block)
	}
	if err := a.run(tar.NewReader(r)); err != nil {
		return nil, err
	}
	// What follows the end marker belongs to the digest.
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, a.buf); err != nil {
		return nil, fmt.Errorf("read layer: %w", err)
	}
	if err := a.finish(); err != nil {
		return nil, err
	}
	return &a.res, nil
}

func (a *applier) run(tr *tar.Reader) error {
	for {
		if err := a.ctx.Err(); err != nil {
			return fmt.Errorf("apply layer: %w", err)
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		} else if errors.Is(err, tar.ErrHeader) {
			return fmt.Errorf("read layer: %w: %w", err, errdef.ErrInvalid)
		} else if err != nil {
			return fmt.Errorf("read layer: %w", err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := a.entry(h, tr); err != nil {
			return fmt.Errorf("apply layer entry %.200q: %w", h.Name, err)
		}
	}
}

func (a *applier) entry(h *tar.Header, r io.Reader) error {
	if a.entries++; a.opt.MaxEntries > 0 && a.entries > a.opt.MaxEntries {
		return fmt.Errorf("more than %d entries: %w", a.opt.MaxEntries, errdef.ErrExhausted)
	}
	path, err := cleanPath(h.Name)
	if err != nil {
		return err
	}
	if path == "" {
		return a.root(h)
	}
	if err := checkOwner(h); err != nil {
		return err
	}
	if _, base := split(path); strings.HasPrefix(base, whiteoutPrefix) {
		return a.whiteout(path, base)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return a.directory(path, h)
	case tar.TypeReg, '\x00', tar.TypeCont, tar.TypeGNUSparse: // '\x00' is a regular file of old
		return a.replace(path, func(parent int, base string) error { return a.file(parent, base, h, r) })
	case tar.TypeLink:
		return a.link(path, h)
	case tar.TypeSymlink:
		return a.replace(path, func(parent int, base string) error { return a.symlink(parent, base, h) })
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return a.replace(path, func(parent int, base string) error { return a.node(parent, base, h) })
	}
	return fmt.Errorf("entry type %q is not supported: %w", h.Typeflag, errdef.ErrInvalid)
}

// replace runs create, and again after removing what stands in the way. The handle
// that create gets is good for that one call.
func (a *applier) replace(path string, create func(parent int, base string) error) error {
	parent, base, err := a.dirs.parent(path)
	if err != nil {
		return err
	}
	if err := create(parent, base); !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := a.remove(path); err != nil {
		return fmt.Errorf("replace: %w", err)
	}
	if parent, base, err = a.dirs.parent(path); err != nil {
		return err
	}
	return create(parent, base)
}

// remove deletes what an earlier entry of the same layer made.
func (a *applier) remove(path string) error {
	parent, base, err := a.dirs.parent(path)
	if err != nil {
		return err
	}
	if err := unix.Unlinkat(parent, base, 0); !errors.Is(err, unix.EISDIR) {
		return err
	}
	r, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", parent))
	if err != nil {
		return fmt.Errorf("open parent: %w", err)
	}
	// Handles below path would keep working on a deleted tree.
	err = a.dirs.forget()
	if e := r.RemoveAll(base); err == nil {
		err = e
	}
	if e := r.Close(); err == nil {
		err = e
	}
	return err
}

// root takes the attributes of the image's root directory.
func (a *applier) root(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return fmt.Errorf("the root is not a directory: %w", errdef.ErrInvalid)
	}
	if err := checkOwner(h); err != nil {
		return err
	}
	at := attrOf(h)
	a.res.Root = &at
	if err := setAttrs(a.dirs.root, h); err != nil {
		return err
	}
	a.mtime("", h.ModTime)
	return nil
}

func (a *applier) mtime(path string, t time.Time) {
	if _, ok := a.mtimes[path]; !ok {
		a.order = append(a.order, path)
	}
	a.mtimes[path] = t
}

// whiteout turns the layer format's deletion marks into overlay's.
func (a *applier) whiteout(path, base string) error {
	parent, _, err := a.dirs.parent(path)
	if err != nil {
		return err
	}
	if path == opaqueMarker {
		// Overlay merges the roots of all layers whatever their attributes say.
		a.res.OpaqueRoot = true
		return nil
	}
	if base == opaqueMarker {
		return opaque(parent)
	}
	if strings.HasPrefix(base, aufsPrefix) {
		return nil
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("whiteout of no name: %w", errdef.ErrInvalid)
	}
	err = unix.Mknodat(parent, name, unix.S_IFCHR, 0)
	if err == nil {
		a.count(0)
		return nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make whiteout: %w", err)
	}
	// The mark is about the layers below; what this layer has of that name stays.
	fd, err := openDir(parent, name)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	} else if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // a directory handle
	return opaque(fd)
}

func opaque(fd int) error {
	if err := unix.Fsetxattr(fd, opaqueAttr, []byte("y"), 0); err != nil {
		return fmt.Errorf("make directory opaque: %w", err)
	}
	return nil
}

func (a *applier) count(bytes uint64) {
	a.res.Bytes += bytes
	a.res.Inodes++
}

// finish sets the times of directories, last since filling a directory changes them.
func (a *applier) finish() error {
	if err := a.dirs.forget(); err != nil {
		return err
	}
	live := a.res.Implied[:0]
	for _, p := range a.res.Implied {
		if a.implied[p] && isDir(a.dirs.root, p) {
			live = append(live, p)
		}
	}
	a.res.Implied = live
	for _, p := range slices.Backward(a.order) {

		if err := setTimes(a.dirs.root, p, a.mtimes[p]); err != nil {
			return fmt.Errorf("set times of %.200q: %w", p, err)
		}
	}
	return nil
}

// cleanPath makes a name relative to the root: "" is the root itself. ".." is refused
// even where it would stay inside, since no builder writes it.
func cleanPath(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", fmt.Errorf("NUL in name: %w", errdef.ErrInvalid)
	}
	var parts []string
	for p := range strings.SplitSeq(name, "/") {
		switch {
		case p == "" || p == ".":
		case p == "..":
			return "", fmt.Errorf("name leads upwards: %w", errdef.ErrInvalid)
		case len(p) > 255:
			return "", fmt.Errorf("name of %d bytes: %w", len(p), errdef.ErrInvalid)
		default:
			parts = append(parts, p)
		}
	}
	if s := strings.Join(parts, "/"); len(s) < unix.PathMax {
		return s, nil
	}
	return "", fmt.Errorf("path of %d bytes: %w", len(name), errdef.ErrInvalid)
}
