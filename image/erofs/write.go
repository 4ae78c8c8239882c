package erofs

import (
	"fmt"
	"io"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// Options describe the image beside its tree.
type Options struct {
	BlockBits  int      // log2 of the block size, 9 to 12; 0 is 9, the alignment of a tar
	DeviceSize int64    // bytes of the data file
	UUID       [16]byte // of the filesystem
	Epoch      int64    // when it was made, in seconds; no file's time
	MaxSize    int64    // of the image; 0 is 1 GiB
}

// Stats tell what was written.
type Stats struct {
	Inodes int   // a hard link is not one
	Size   int64 // of the image
}

// Write writes the index of the tree at root. Equal trees with equal options give equal
// bytes. What the format cannot hold is errdef.ErrInvalid. The tree is not changed and
// must not change meanwhile.
func Write(w io.Writer, root *Node, o Options) (Stats, error) {
	return Stats{}, fmt.Errorf("write index: %w", errdef.ErrUnimplemented)
}
