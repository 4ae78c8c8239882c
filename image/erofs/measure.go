package erofs

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// measure checks a node and decides how it is laid out.
func (l *layout) measure(i int32) error {
	d := &l.inodes[i]
	n := d.node
	if err := check(n); err != nil {
		return err
	}
	size, err := xattrSize(n.Xattr)
	if err != nil {
		return err
	}
	d.xattr = size
	switch n.Mode & typeMask {
	case typeDir:
		if err := l.list(i); err != nil {
			return err
		}
		l.measureDir(&l.inodes[i]) // list may have moved it
	case typeLink:
		l.inline(d, int64(len(n.Target)))
	case typeFile:
		return l.measureFile(d)
	}
	return nil
}

// check looks at what does not depend on other nodes. What belongs to another type is
// refused and not ignored: it would be lost.
func check(n *Node) error {
	kind := n.Mode & typeMask
	switch {
	case n.Mode > 0xFFFF || fileType(n.Mode) == 0:
		return fmt.Errorf("mode %#o: %w", n.Mode, errdef.ErrInvalid)
	case n.Nsec >= 1e9:
		return fmt.Errorf("time with %d nanoseconds: %w", n.Nsec, errdef.ErrInvalid)
	case n.Children != nil && kind != typeDir:
		return fmt.Errorf("mode %#o with entries: %w", n.Mode, errdef.ErrInvalid)
	case (n.Size != 0 || n.Extents != nil) && kind != typeFile:
		return fmt.Errorf("mode %#o with data: %w", n.Mode, errdef.ErrInvalid)
	case (n.Target != "") != (kind == typeLink):
		return fmt.Errorf("mode %#o with target %.32q: %w", n.Mode, n.Target, errdef.ErrInvalid)
	case len(n.Target) > maxTarget || strings.Contains(n.Target, "\x00"):
		return fmt.Errorf("target of %d bytes, or with a zero: %w", len(n.Target), errdef.ErrInvalid)
	}
	return checkDevice(n)
}

func checkDevice(n *Node) error {
	kind := n.Mode & typeMask
	if n.Rdev != 0 && kind != typeChar && kind != typeBlock {
		return fmt.Errorf("mode %#o with a device number: %w", n.Mode, errdef.ErrInvalid)
	}
	if _, ok := encodeDevice(n.Rdev); !ok {
		return fmt.Errorf("device number %#x: 12 bits of major and 20 of minor can be kept: %w", n.Rdev, errdef.ErrInvalid)
	}
	return nil
}

// encodeDevice takes stat(2)'s form and gives the kernel's (new_encode_dev).
func encodeDevice(dev uint64) (uint32, bool) {
	major := dev>>8&0xFFF | dev>>32&^0xFFF
	minor := dev&0xFF | dev>>12&^0xFF&0xFFFFFFFF
	if major >= 1<<12 || minor >= 1<<20 {
		return 0, false
	}
	return uint32(minor&0xFF | major<<8 | (minor&^0xFF)<<12), true
}

// inline plans size bytes that the image holds itself.
func (l *layout) inline(d *inode, size int64) {
	d.size = size
	d.full = uint32(size >> l.opt.BlockBits)
	d.tail = int32(size & int64(l.block-1))
	if d.tail > 0 {
		d.kind = flatInline
	}
}

func (l *layout) measureDir(d *inode) {
	var size int64
	for lo := d.lo; lo < d.hi; {
		end, used := l.fit(lo, d.hi)
		d.last = lo
		if size += int64(used); end < d.hi {
			size = align(size, int64(l.block))
		}
		lo = end
	}
	l.inline(d, size)
}

// measureFile finds the largest chunks that the pieces of a file allow: one for a file in
// one piece.
func (l *layout) measureFile(d *inode) error {
	n := d.node
	if n.Size < 0 || n.Size > maxFile {
		return fmt.Errorf("size %d: %w", n.Size, errdef.ErrInvalid)
	}
	var end, device int64 // of the extent before
	borders := int64(0)   // all places where one piece ends and the next begins, or-ed
	for i, e := range n.Extents {
		if err := l.checkExtent(n, i, end); err != nil {
			return fmt.Errorf("extent %d (%d bytes at %d from %d): %w", i, e.Len, e.Start, e.Offset, err)
		}
		if e.Start != end || e.Offset != device {
			borders |= end | e.Start
		}
		end, device = e.Start+e.Len, e.Offset+e.Len
	}
	if n.Size == 0 {
		return nil
	}
	if end < n.Size {
		borders |= end
	}
	d.kind, d.size = chunkBased, n.Size
	most := bits.Len64(uint64(n.Size - 1))
	if borders != 0 {
		most = min(most, bits.TrailingZeros64(uint64(borders)))
	}
	d.shift = uint8(min(max(most-l.opt.BlockBits, 0), maxChunkShift))
	if indexes := l.chunks(d); indexes > l.opt.MaxSize/chunkSize {
		return fmt.Errorf("%d bytes in pieces so small that their index has %d entries: %w", n.Size, indexes, errdef.ErrInvalid)
	}
	return nil
}

// checkExtent checks extent i of n; those before end at end.
func (l *layout) checkExtent(n *Node, i int, end int64) error {
	e := n.Extents[i]
	mask := int64(l.block - 1)
	switch {
	case e.Len <= 0 || e.Start < 0 || e.Offset < 0:
		return fmt.Errorf("negative or empty: %w", errdef.ErrInvalid)
	case e.Start < end:
		return fmt.Errorf("not behind the one before: %w", errdef.ErrInvalid)
	case e.Start > n.Size || e.Len > n.Size-e.Start:
		return fmt.Errorf("beyond the file's size %d: %w", n.Size, errdef.ErrInvalid)
	case e.Offset > l.opt.DeviceSize || e.Len > l.opt.DeviceSize-e.Offset:
		return fmt.Errorf("beyond the data file's size %d: %w", l.opt.DeviceSize, errdef.ErrInvalid)
	case e.Start&mask != 0 || e.Offset&mask != 0:
		return fmt.Errorf("not at a multiple of %d: %w", l.block, errdef.ErrInvalid)
	// What follows a short piece in its block would become visible if the file went on.
	case e.Len&mask != 0 && e.Start+e.Len != n.Size:
		return fmt.Errorf("it ends within a block, and not with the file: %w", errdef.ErrInvalid)
	}
	return nil
}

// chunks is the number of a chunk based inode's indexes.
func (l *layout) chunks(d *inode) int64 {
	return (d.size-1)>>(l.opt.BlockBits+int(d.shift)) + 1
}

// sorted gives the attributes by name, so that their order in the tree does not matter.
func sorted(xs []Xattr) []Xattr {
	if len(xs) < 2 {
		return xs
	}
	return slices.SortedFunc(slices.Values(xs), func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
}

// splitXattr gives the number of the name's prefix, and the rest of it.
func splitXattr(name string) (index uint8, rest string, ok bool) {
	for _, p := range prefixes {
		if p.whole && name == p.name {
			return p.index, "", true
		}
		if rest, ok := strings.CutPrefix(name, p.name); ok && !p.whole && rest != "" {
			return p.index, rest, true
		}
	}
	return 0, "", false
}

// xattrSize checks attributes and gives the bytes that they take.
func xattrSize(xs []Xattr) (int32, error) {
	if len(xs) == 0 {
		return 0, nil
	}
	size, list, before := int64(xattrHeader), 0, ""
	for _, x := range sorted(xs) {
		_, rest, ok := splitXattr(x.Name)
		switch {
		case !ok || len(rest) > maxXattrName || strings.Contains(x.Name, "\x00"):
			return 0, fmt.Errorf("attribute %.300q: no name that can be kept: %w", x.Name, errdef.ErrInvalid)
		case len(x.Value) > maxXattrValue:
			return 0, fmt.Errorf("attribute %s: %d bytes, at most %d: %w", x.Name, len(x.Value), maxXattrValue, errdef.ErrInvalid)
		case x.Name == before:
			return 0, fmt.Errorf("attribute %s: given twice: %w", x.Name, errdef.ErrInvalid)
		}
		before = x.Name
		size += align(int64(xattrEntry+len(rest)+len(x.Value)), xattrEntry)
		list += len(x.Name) + 1
	}
	if size > maxXattrSize || list > maxXattrList {
		return 0, fmt.Errorf("%d attributes of %d bytes, with names of %d: at most %d and %d: %w",
			len(xs), size, list, maxXattrSize, maxXattrList, errdef.ErrInvalid)
	}
	return int32(size), nil
}
