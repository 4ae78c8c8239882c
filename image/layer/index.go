package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/cri-runtime/cri-runtime/image/erofs"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// sector is what archive/tar aligns data to, and the block size of an index.
const sector = 512

// Indexed is a layer whose data stay in the uncompressed tar, described by a tree for
// an EROFS index.
type Indexed struct {
	// Result counts as bytes what the file occupies; the index comes on top.
	Result
	// Tree is complete unless Open says that SettleTree has to finish it.
	Tree *erofs.Node
	// TarSize is the length of the stream: so many bytes of the file hash to the diffID.
	TarSize int64
	// Size is that of the whole file, a multiple of 4 KiB and never 0: behind the stream
	// comes what it holds in no usable form, the spill.
	Size int64
}

// Index writes the tar stream r as it is to the empty file tar, which must be open for
// reading and writing, and describes what it holds by a tree. It reads r to its end,
// accepts what Apply accepts and describes what Apply makes. After an error the file is
// worth nothing.
func Index(ctx context.Context, tar *os.File, r io.Reader, opt Options) (*Indexed, error) {
	src := &stream{ctx: ctx, r: r, limit: opt.MaxBytes}
	in := newTee(src, tar)
	k := &keeper{in: in}
	s := &stage{tree: newTree(), opt: opt, sink: k}
	if err := s.run(ctx, src, in); err != nil {
		return nil, kindOf(err)
	}
	s.res.Bytes = uint64(k.size) // #nosec G115 -- a file's size
	return &Indexed{Result: s.res, Tree: s.root, TarSize: in.size(), Size: k.size}, nil
}

// keeper is the sink that leaves data where they are.
type keeper struct {
	in     *tee
	size   int64          // of the file in the end
	sparse []sparse       // to be spilled, in the stream's order
	slab   []erofs.Extent // room for the next files
}

type sparse struct {
	node  *erofs.Node
	entry int
}

func (k *keeper) make(string, *erofs.Node) error       { return nil }
func (k *keeper) link(_, _ string) error               { return nil }
func (k *keeper) remove(_ string, n *erofs.Node) error { return nil }

func (k *keeper) file(_ string, n *erofs.Node, b body) error {
	switch {
	case n.Size == 0 && !b.sparse:
	case b.sparse || k.in.off%sector != 0:
		k.sparse = append(k.sparse, sparse{n, b.entry})
	default:
		if len(k.slab) == 0 {
			k.slab = make([]erofs.Extent, 128)
		}
		n.Extents = k.slab[:1:1]
		k.slab = k.slab[1:]
		n.Extents[0] = erofs.Extent{Offset: k.in.off, Len: n.Size}
	}
	return nil
}

func (k *keeper) finish(*erofs.Node) error {
	s := newSpill(k.in.file, k.in.size())
	if err := k.spill(s); err != nil {
		return err
	}
	k.size = s.end
	return nil
}

// spill writes sparse files out. archive/tar keeps their maps to itself, and before the
// end nobody knows where the stream ends: so the file is read again.
func (k *keeper) spill(s *spill) error {
	if len(k.sparse) > 0 {
		if err := k.spillFrom(s, io.NewSectionReader(k.in.file, 0, k.in.size())); err != nil {
			return fmt.Errorf("lay out sparse files: %w", err)
		}
	}
	return s.close()
}

func (k *keeper) spillFrom(s *spill, file io.Reader) error {
	tr := tar.NewReader(file)
	for entry := 0; len(k.sparse) > 0; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("entry %d is not there: %w", k.sparse[0].entry, errdef.ErrInvalid)
		} else if err != nil {
			return spillErr(err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if entry++; entry != k.sparse[0].entry {
			continue
		}
		n := k.sparse[0].node
		if n.Extents, err = s.add(tr, n.Size); err != nil {
			return spillErr(err)
		}
		k.sparse = k.sparse[1:]
	}
	return nil
}

// spillErr says that the stream is damaged, unless reading or writing the file failed.
func spillErr(err error) error {
	_, read := errors.AsType[*fs.PathError](err)
	if _, write := errors.AsType[*storeError](err); read || write {
		return err
	}
	return fmt.Errorf("%w: %w", err, errdef.ErrInvalid)
}
