package snapshot

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/cri-runtime/cri-runtime/image/layer"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// Format is how a layer's files are kept. One store may hold layers of each: the choice
// is that of new ones.
type Format string

// The formats. Auto is EROFS where a trial at Open shows that this kernel and the
// filesystem of Options.Root can do it, else Directory.
const (
	Auto      Format = "auto"
	EROFS     Format = "erofs"     // the layer's tar, and an index of it that the kernel mounts
	Directory Format = "directory" // a tree of files
)

// ErrDamaged says that a layer is not what was stored. It has been marked: an image of
// it has to be pulled again.
var ErrDamaged = fmt.Errorf("layer is damaged: %w", errdef.ErrNotFound)

// format keeps layers in one way. Its files are in l/ and begin with the layer's name.
type format interface {
	// unpack fills in what it finds in the stream. What it makes before it fails is the
	// caller's to delete.
	unpack(ctx context.Context, l *Layer, r io.Reader) error
	// finish completes a layer that unpack left open with what those below have, whose
	// directories come top first. It changes nothing in l but gives what has to be.
	finish(l *Layer, below []string) (finished, error)
	// sync makes the files durable. ErrDamaged says that the kernel could not write them
	// out. It says so once, and takes them for written from then on.
	sync(ls []*Layer) error
	// verify looks for damage: deep reads everything, else in no time.
	verify(ctx context.Context, l *Layer, deep bool) error
	// mount gives the layer as a detached mount; nil when its directory is in place.
	// Check says that what the kernel is to read has to be compared with the record.
	mount(l *Layer, check bool) (*os.File, error)
}

// finished is what became of a layer.
type finished struct {
	bytes uint64
	files *Files
}

// unfinished is what a layer needs until Publish has finished it.
type unfinished struct {
	open    layer.Open     // of a tree
	indexed *layer.Indexed // of a tar
}

// Format tells how the layer is kept.
func (l *Layer) Format() Format {
	if l.EROFS != nil {
		return EROFS
	}
	return Directory
}

func (s *Store) formatOf(l *Layer) format { return s.formats[l.Format()] }

// suffixes are what the formats put behind a layer's name.
var suffixes = []string{"", tarSuffix, indexSuffix}

// trashLayer sets aside whatever files a layer has.
func (s *Store) trashLayer(name string) error {
	var paths []string
	for _, x := range suffixes {
		paths = append(paths, s.layerDir(name)+x)
	}
	return s.trash.put(paths...)
}
