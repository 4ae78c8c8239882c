// Package layer reads the tar stream of an image layer, into a directory or into a tree
// for an EROFS index, as a lower layer for overlay.
//
// The stream is hostile. One stage checks each entry and applies it to a tree in memory,
// where links are followed as in the root of a container, never out of it; what is to be
// kept goes to one of two sinks, by real paths: a directory (Apply) or the tar itself as
// the data of the tree (Index). Both accept the same streams and show the same files. It
// refuses "..", hard links to what neither the layer nor those below have, owners that
// overflow, attributes that the kernel would refuse, entries of unknown type and layers
// above a size. Attributes that overlay itself obeys are dropped. It starts no goroutine,
// syncs nothing, and leaves a half-filled directory or file when it fails: the caller
// deletes it.
package layer

import "time"

const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	aufsPrefix     = ".wh..wh." // bookkeeping of aufs, means nothing to overlay

	overlayAttrs = "trusted.overlay."
	opaqueAttr   = overlayAttrs + "opaque"
	// originAttr without a value makes overlay look for whiteouts when it lists a directory that
	// only one layer has: it means "copied up, from where is not known" (b79e05aaa166). Overlay
	// itself leaves no whiteouts in such directories, image builders do.
	originAttr = overlayAttrs + "origin"

	block = 4096 // what a file's last block, an inode or a small directory occupies, roughly
)

// Options bound what a layer may do.
type Options struct {
	// MaxBytes bounds the sum of file sizes, holes included, and the length of the stream:
	// a bomb stops there.
	MaxBytes int64
	// MaxEntries bounds the number of entries, with the directories that they imply.
	MaxEntries int
}

// Result describes a layer.
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

// Open says what a layer leaves to those below it.
type Open struct {
	// Implied holds the directories, parents first, that the stream used without
	// describing them. Their attributes are those of the layers below, if any has them.
	Implied []string
	// Links holds the hard links to files of the layers below.
	Links []Link
}

// Any tells whether the layer depends on those below it.
func (o Open) Any() bool { return len(o.Implied) > 0 || len(o.Links) > 0 }

// Link is a hard link to a file that only a lower layer has. On overlay, link(2) copies
// the target up and links the copy: both names are in the upper layer then.
type Link struct {
	Target string // as far as this layer tells free of symbolic links
	// Own says that the target's own place gets the copy: no later entry took it.
	Own   bool
	Names []string // the links
}
