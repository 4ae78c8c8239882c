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
	MaxSize    int64    // of the image; 0 is 1 GiB, which is the most
}

// Stats tell what was written.
type Stats struct {
	Inodes int   // a hard link is not one
	Size   int64 // of the image
}

const maxImage = 1 << 30

func (o *Options) complete() error {
	if o.BlockBits == 0 {
		o.BlockBits = 9
	}
	if o.MaxSize == 0 {
		o.MaxSize = maxImage
	}
	switch {
	case o.BlockBits < 9 || o.BlockBits > 12:
		return fmt.Errorf("block size of 2^%d bytes, want 2^9 to 2^12: %w", o.BlockBits, errdef.ErrInvalid)
	case o.MaxSize < 0 || o.MaxSize > maxImage:
		return fmt.Errorf("at most %d bytes, want up to %d: %w", o.MaxSize, maxImage, errdef.ErrInvalid)
	case o.DeviceSize < 0 || o.DeviceSize>>o.BlockBits >= nullBlock: // block numbers have 32 bits
		return fmt.Errorf("data file of %d bytes: its blocks cannot be numbered: %w", o.DeviceSize, errdef.ErrInvalid)
	}
	return nil
}

// Write writes the index of the tree at root. Equal trees with equal options give equal
// bytes. What the format cannot hold is errdef.ErrInvalid. The tree is not changed and
// must not change meanwhile.
func Write(w io.Writer, root *Node, o Options) (Stats, error) {
	if err := o.complete(); err != nil {
		return Stats{}, fmt.Errorf("write index: %w", err)
	}
	l := &layout{opt: o, block: 1 << o.BlockBits, seen: map[*Node]int32{}}
	if err := l.collect(root); err != nil {
		return Stats{}, fmt.Errorf("write index: %w", err)
	}
	if err := l.place(); err != nil {
		return Stats{}, fmt.Errorf("write index: %w", err)
	}
	if err := l.emit(w); err != nil {
		return Stats{}, fmt.Errorf("write index: %w", err)
	}
	return Stats{Inodes: len(l.inodes), Size: int64(l.blocks) << o.BlockBits}, nil
}
