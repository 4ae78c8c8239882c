package erofs

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// layout is the image in the making: first every inode is found, then each gets its
// place, then all is written from front to back.
//
// The superblock and the device table come first, then the inodes, breadth first, so
// that those of a directory's files lie together, then the blocks of directories and
// symbolic links that are too long to follow their inode.
type layout struct {
	opt     Options
	block   int
	seen    map[*Node]int32
	inodes  []inode
	entries []entry // of all directories
	size    int64   // of the inodes, with all that comes before them
	blocks  uint32  // of the image
}

// inode is what is known of a node beside itself.
type inode struct {
	node   *Node
	parent int32 // of directories
	links  uint32
	lo, hi int32 // of directories: their entries
	last   int32 // of directories: the first entry of the last block

	at    int64  // place of the inode
	size  int64  // i_size
	tail  int32  // bytes that follow the inode
	start uint32 // first block
	full  uint32 // blocks that the image itself holds
	xattr int32  // bytes of extended attributes
	kind  uint8  // of layout
	shift uint8  // log2 of blocks per chunk
}

type entry struct {
	name  string
	inode int32
}

// collect finds all inodes and orders the directories. It goes by a queue, not by
// recursion: how deep a tree is, its author decides.
func (l *layout) collect(root *Node) error {
	if root == nil || root.Mode&typeMask != typeDir {
		return fmt.Errorf("the root is no directory: %w", errdef.ErrInvalid)
	}
	l.add(root, 0)
	for i := 0; i < len(l.inodes); i++ {
		if err := l.measure(int32(i)); err != nil {
			return fmt.Errorf("%q: %w", l.path(int32(i)), err)
		}
	}
	return nil
}

func (l *layout) add(n *Node, parent int32) int32 {
	i := int32(len(l.inodes))
	l.seen[n] = i
	l.inodes = append(l.inodes, inode{node: n, parent: parent})
	return i
}

// list makes a directory's entries. Their order is that of their names' bytes, which is
// what the kernel's binary search wants; "." and ".." have no special place.
func (l *layout) list(i int32) error {
	n := l.inodes[i].node
	names := make([]string, 0, len(n.Children)+2)
	names = append(names, ".", "..")
	for name := range n.Children {
		if err := checkName(name); err != nil {
			return err
		}
		names = append(names, name)
	}
	slices.Sort(names)
	l.entries = reserve(l.entries, len(names))
	l.inodes = reserve(l.inodes, len(names))
	lo := int32(len(l.entries))
	l.inodes[i].links++ // its name, or the root's ".."
	for _, name := range names {
		child := i
		switch name {
		case ".":
			l.inodes[i].links++
		case "..":
			child = l.inodes[i].parent
		default:
			var err error
			if child, err = l.child(i, n.Children[name]); err != nil {
				return fmt.Errorf("entry %q: %w", name, err)
			}
		}
		l.entries = append(l.entries, entry{name, child})
	}
	l.inodes[i].lo, l.inodes[i].hi = lo, int32(len(l.entries))
	return nil
}

// reserve makes room for n more by doubling: append's smaller steps copy more.
func reserve[T any](s []T, n int) []T {
	if len(s)+n <= cap(s) {
		return s
	}
	return slices.Grow(s, max(n, len(s)))
}

// child counts a name of n in the directory dir.
func (l *layout) child(dir int32, n *Node) (int32, error) {
	if n == nil {
		return 0, fmt.Errorf("no inode: %w", errdef.ErrInvalid)
	}
	isDir := n.Mode&typeMask == typeDir
	i, ok := l.seen[n]
	switch {
	case ok && isDir:
		return 0, fmt.Errorf("a directory has one name only: %w", errdef.ErrInvalid)
	case !ok:
		i = l.add(n, dir)
	}
	if isDir {
		l.inodes[dir].links++ // its ".."
	} else {
		l.inodes[i].links++
	}
	return i, nil
}

func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("entry %q: not a name: %w", name, errdef.ErrInvalid)
	case len(name) > maxName:
		return fmt.Errorf("entry %.32q...: name of %d bytes, at most %d: %w", name, len(name), maxName, errdef.ErrInvalid)
	case strings.IndexByte(name, 0) >= 0 || strings.IndexByte(name, '/') >= 0:
		return fmt.Errorf("entry %q: name with a slash or zero: %w", name, errdef.ErrInvalid)
	}
	return nil
}

// path names an inode in an error.
func (l *layout) path(i int32) string {
	var names []string
	for i != 0 && len(names) < 64 {
		dir := &l.inodes[l.inodes[i].parent]
		for _, e := range l.entries[dir.lo:dir.hi] {
			if e.inode == i && e.name != "." && e.name != ".." {
				names = append(names, e.name)
				break
			}
		}
		i = l.inodes[i].parent
	}
	slices.Reverse(names)
	return "/" + strings.Join(names, "/")
}

// fit gives the end of the directory block that begins with entry lo, and its length.
func (l *layout) fit(lo, hi int32) (end int32, used int) {
	for end = lo; end < hi; end++ {
		n := direntSize + len(l.entries[end].name)
		if used+n > l.block {
			break
		}
		used += n
	}
	return end, used
}

// place gives each inode its place, and then each block.
func (l *layout) place() error {
	l.size = checksumEnd(l.opt.BlockBits)
	for i := range l.inodes {
		d := &l.inodes[i]
		head := inodeSize + int64(d.xattr)
		d.at = l.inodeAt(head, int64(d.tail))
		if d.kind == flatInline && d.at-l.size > int64(l.block)-int64(d.tail) || d.at < 0 {
			// The gap before it would be larger than what a block of its own wastes.
			d.kind, d.tail = flatPlain, 0
			d.full++
			d.at = l.inodeAt(head, 0)
		}
		l.size = d.at + head + int64(d.tail)
		if d.kind == chunkBased {
			l.size = align(d.at+head, chunkSize) + chunkSize*l.chunks(d)
		}
		if l.size > l.opt.MaxSize {
			return l.tooLarge()
		}
	}
	next := align(l.size, int64(l.block)) >> l.opt.BlockBits
	for i := range l.inodes {
		d := &l.inodes[i]
		if d.full == 0 {
			continue
		}
		d.start = uint32(next)
		if next += int64(d.full); next<<l.opt.BlockBits > l.opt.MaxSize {
			return l.tooLarge()
		}
	}
	l.blocks = uint32(next)
	return nil
}

func (l *layout) tooLarge() error {
	return fmt.Errorf("it would be larger than %d bytes: %w", l.opt.MaxSize, errdef.ErrInvalid)
}

// inodeAt finds the place of the next inode: it may cross the border of a block, but what
// follows it inline may not. It is negative when there is none.
func (l *layout) inodeAt(head, tail int64) int64 {
	block := int64(l.block)
	at := align(l.size, nodeUnit)
	for range l.block / nodeUnit {
		if (at+head)%block+tail <= block {
			return at
		}
		at += nodeUnit
	}
	return -1
}

// checksumEnd is where the block ends that the superblock's checksum covers. Nothing
// but the superblock and the device table lies in it.
func checksumEnd(blockBits int) int64 {
	size := int64(1) << blockBits
	if size > superOffset {
		return size
	}
	return superOffset + size
}

func align(n, to int64) int64 { return (n + to - 1) &^ (to - 1) }
