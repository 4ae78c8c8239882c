package layer

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/cri-runtime/cri-runtime/image/erofs"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// Indexed is a layer whose data stay in the uncompressed tar, described by a tree for
// an EROFS index.
type Indexed struct {
	// Result counts as bytes what the file occupies; the index comes on top.
	Result
	// Tree is complete unless Open says that SettleTree has to finish it.
	Tree *erofs.Node
	// TarSize is the length of the stream: so many bytes of the file hash to the diffID.
	TarSize int64
	// Size is that of the whole file, a multiple of 4 KiB: behind the stream comes what
	// it holds in no usable form, the spill.
	Size int64
}

// Index writes the tar stream r as it is to the empty file tar, which must be open for
// reading and writing, and describes what it holds by a tree. It reads r to its end,
// accepts what Apply accepts and describes what Apply makes. After an error the file is
// worth nothing.
func Index(ctx context.Context, tar *os.File, r io.Reader, opt Options) (*Indexed, error) {
	return nil, fmt.Errorf("index layer: %w", errdef.ErrUnimplemented)
}

// SettleTree is Settle for an indexed layer: it completes the tree from the root
// directories of the layers below, topmost first. The data of files that they give away
// are appended to tar. It gives the bytes added to the file, at most limit if that is not 0.
func SettleTree(x *Indexed, lowers []string, tar *os.File, limit int64) (bytes uint64, err error) {
	return 0, fmt.Errorf("settle layer: %w", errdef.ErrUnimplemented)
}
