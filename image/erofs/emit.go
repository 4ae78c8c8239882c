package erofs

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

var le = binary.LittleEndian

// output counts what goes out. Errors stay in the bufio.Writer until the last Flush.
type output struct {
	*bufio.Writer
	at    int64
	index [chunkSize]byte
	zero  [4096]byte
}

func (o *output) put(p []byte) {
	n, _ := o.Write(p)
	o.at += int64(n)
}

// until fills with zeros.
func (o *output) until(at int64) {
	for o.at < at {
		n, err := o.Write(o.zero[:min(at-o.at, int64(len(o.zero)))])
		if o.at += int64(n); err != nil {
			return // of the Writer, which keeps it
		}
	}
}

// emit writes what place has laid out, from front to back.
func (l *layout) emit(w io.Writer) error {
	o := &output{Writer: bufio.NewWriterSize(w, 128<<10)}
	o.until(superOffset)
	o.put(l.head())
	var buf []byte
	for i := range l.inodes {
		d := &l.inodes[i]
		o.until(d.at)
		buf = l.appendInode(buf[:0], int32(i))
		buf = appendXattrs(buf, d.node.Xattr)
		if d.kind == flatInline {
			buf = l.appendTail(buf, d)
		}
		o.put(buf)
		if d.kind == chunkBased {
			l.putChunks(o, d)
		}
	}
	if o.at != l.size && o.Flush() == nil {
		panic("erofs: inodes take other space than planned")
	}
	for i := range l.inodes {
		d := &l.inodes[i]
		if d.full == 0 {
			continue
		}
		o.until(int64(d.start) << l.opt.BlockBits)
		l.putBlocks(o, d)
	}
	o.until(int64(l.blocks) << l.opt.BlockBits)
	if err := o.Flush(); err != nil {
		return fmt.Errorf("after %d bytes: %w", o.at, err)
	}
	return nil
}

// head is the superblock, the device table and the rest of the checksummed block.
func (l *layout) head() []byte {
	b := make([]byte, checksumEnd(l.opt.BlockBits)-superOffset)
	le.PutUint32(b[0:], superMagic)
	le.PutUint32(b[8:], compatChecksum|compatMtime)
	b[12] = uint8(l.opt.BlockBits)
	le.PutUint16(b[14:], uint16(l.number(0)))
	le.PutUint64(b[16:], uint64(len(l.inodes)))
	le.PutUint64(b[24:], uint64(l.opt.Epoch))
	le.PutUint32(b[36:], l.blocks)
	copy(b[48:64], l.opt.UUID[:])
	le.PutUint32(b[80:], incompatChunked|incompatDeviceTable)
	le.PutUint16(b[86:], 1) // further devices
	le.PutUint16(b[88:], slotOffset/slotSize)
	slot := b[slotOffset-superOffset:]
	le.PutUint32(slot[64:], uint32((l.opt.DeviceSize+int64(l.block)-1)>>l.opt.BlockBits))
	// The kernel's CRC is not inverted at the end, as the usual one is.
	le.PutUint32(b[4:], ^crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func (l *layout) number(i int32) uint64 { return uint64(l.inodes[i].at / nodeUnit) }

func (l *layout) appendInode(b []byte, i int32) []byte {
	d := &l.inodes[i]
	n := d.node
	icount := uint16(0)
	if d.xattr > 0 {
		icount = uint16((d.xattr-xattrHeader)/4 + 1)
	}
	b = le.AppendUint16(b, extended|uint16(d.kind)<<1)
	b = le.AppendUint16(b, icount)
	b = le.AppendUint16(b, uint16(n.Mode))
	b = le.AppendUint16(b, 0)
	b = le.AppendUint64(b, uint64(d.size))
	b = le.AppendUint32(b, place32(d))
	b = le.AppendUint32(b, uint32(i+1)) // for 32 bit stat only
	b = le.AppendUint32(b, n.UID)
	b = le.AppendUint32(b, n.GID)
	b = le.AppendUint64(b, uint64(n.Sec))
	b = le.AppendUint32(b, n.Nsec)
	b = le.AppendUint32(b, d.links)
	return append(b, make([]byte, 16)...)
}

// place32 is the field of an inode that means another thing for each type.
func place32(d *inode) uint32 {
	switch d.node.Mode & typeMask {
	case typeChar, typeBlock:
		dev, _ := encodeDevice(d.node.Rdev)
		return dev
	case typeFile:
		if d.kind == chunkBased {
			return chunkIndexes | uint32(d.shift)
		}
	}
	return d.start
}

func appendXattrs(b []byte, xs []Xattr) []byte {
	if len(xs) == 0 {
		return b
	}
	b = append(b, make([]byte, xattrHeader)...) // no name filter, nothing shared
	for _, x := range sorted(xs) {
		index, rest, _ := splitXattr(x.Name)
		b = append(b, uint8(len(rest)), index)
		b = le.AppendUint16(b, uint16(len(x.Value)))
		b = append(b, rest...)
		b = append(b, x.Value...)
		b = append(b, make([]byte, -(len(rest)+len(x.Value))&3)...)
	}
	return b
}

func (l *layout) putChunks(o *output, d *inode) {
	o.until(align(o.at, chunkSize))
	rest := d.node.Extents
	for c := range l.chunks(d) {
		at := c << (l.opt.BlockBits + int(d.shift))
		for len(rest) > 0 && rest[0].Start+rest[0].Len <= at {
			rest = rest[1:]
		}
		device, block := uint16(0), uint32(nullBlock)
		if len(rest) > 0 && rest[0].Start <= at {
			device, block = 1, uint32((rest[0].Offset+at-rest[0].Start)>>l.opt.BlockBits)
		}
		index := le.AppendUint16(o.index[:0], 0)
		index = le.AppendUint16(index, device)
		o.put(le.AppendUint32(index, block))
	}
}

// appendTail appends what follows an inode: its last block.
func (l *layout) appendTail(b []byte, d *inode) []byte {
	if d.node.Mode&typeMask == typeLink {
		return append(b, d.node.Target[len(d.node.Target)-int(d.tail):]...)
	}
	return l.appendDir(b, d.last, d.hi)
}

// putBlocks writes the blocks of an inode that has some of its own.
func (l *layout) putBlocks(o *output, d *inode) {
	begin := int64(d.start) << l.opt.BlockBits
	end := begin + int64(d.full)<<l.opt.BlockBits
	if d.node.Mode&typeMask == typeLink {
		o.put([]byte(d.node.Target[:min(d.size, end-begin)]))
		return
	}
	var buf []byte
	for lo := d.lo; lo < d.hi && begin < end; begin += int64(l.block) {
		hi, _ := l.fit(lo, d.hi)
		buf = l.appendDir(buf[:0], lo, hi)
		o.until(begin)
		o.put(buf)
		lo = hi
	}
}

// appendDir appends a directory block: the entries, then their names.
func (l *layout) appendDir(b []byte, lo, hi int32) []byte {
	name := direntSize * int(hi-lo)
	for _, e := range l.entries[lo:hi] {
		b = le.AppendUint64(b, l.number(e.inode))
		b = le.AppendUint16(b, uint16(name))
		b = append(b, fileType(l.inodes[e.inode].node.Mode), 0)
		name += len(e.name)
	}
	for _, e := range l.entries[lo:hi] {
		b = append(b, e.name...)
	}
	return b
}
