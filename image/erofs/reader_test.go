package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"reflect"
	"slices"
	"strings"
)

// reader is a second opinion on the format. It is written from its definition, shares
// nothing with the writer, and takes an image for wrong where the kernel may not look.
type reader struct {
	img   []byte
	bits  int
	nodes map[uint64]*Node
	links map[*Node]uint32 // as the image tells
	taken []region
}

// region is a part of the image that belongs to one thing.
type region struct{ lo, hi int64 }

func readImage(img []byte, deviceSize int64) (root *Node, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("read image: %v", r)
		}
	}()
	r := &reader{img: img, nodes: map[uint64]*Node{}, links: map[*Node]uint32{}}
	super := r.take(1024, 128)
	r.bits = int(super[12])
	sum := bytes.Clone(img[1024:max(1536, 1<<r.bits)])
	if r.bits == 10 {
		sum = bytes.Clone(img[1024:2048])
	}
	copy(sum[4:8], make([]byte, 4))
	blocks := int64(le.Uint32(super[36:]))
	slot := r.take(int64(le.Uint16(super[88:]))*128, 128)
	switch {
	case le.Uint32(super) != 0xE0F5E1E2:
		return nil, errors.New("magic number")
	case ^le.Uint32(super[4:]) != crc32.Checksum(sum, crc32.MakeTable(crc32.Castagnoli)):
		return nil, errors.New("checksum")
	case blocks<<r.bits != int64(len(img)):
		return nil, fmt.Errorf("%d blocks, %d bytes", blocks, len(img))
	case le.Uint16(super[86:]) != 1:
		return nil, errors.New("devices")
	case int64(le.Uint32(slot[64:])) != (deviceSize+1<<r.bits-1)>>r.bits:
		return nil, fmt.Errorf("%d blocks of the device", le.Uint32(slot[64:]))
	}
	number := uint64(le.Uint16(super[14:]))
	root = r.node(number, number)
	if n := le.Uint64(super[16:]); n != uint64(len(r.nodes)) {
		return nil, fmt.Errorf("%d inodes, told %d", len(r.nodes), n)
	}
	return root, errors.Join(r.checkLinks(), r.checkRegions())
}

// take gives a part of the image, which no other thing may have.
func (r *reader) take(at, size int64) []byte {
	if size > 0 {
		r.taken = append(r.taken, region{at, at + size})
	}
	return r.img[at : at+size]
}

func (r *reader) checkRegions() error {
	slices.SortFunc(r.taken, func(a, b region) int { return int(a.lo - b.lo) })
	for i, t := range r.taken[1:] {
		if before := r.taken[i]; t.lo < before.hi {
			return fmt.Errorf("overlap: %v and %v", before, t)
		}
	}
	return nil
}

func (r *reader) checkLinks() error {
	want := map[*Node]uint32{}
	for _, n := range r.nodes {
		if n.Mode>>12 == 4 {
			want[n] += 2
		}
		for _, c := range n.Children {
			if c.Mode>>12 == 4 {
				want[n]++
			} else {
				want[c]++
			}
		}
	}
	for n, l := range r.links {
		if want[n] != l {
			return fmt.Errorf("mode %o: %d links, want %d", n.Mode, l, want[n])
		}
	}
	return nil
}

// node reads the inode of a number, and all below it.
func (r *reader) node(number, parent uint64) *Node {
	if n := r.nodes[number]; n != nil {
		return n
	}
	at := int64(number) * 32
	b := r.take(at, 64)
	format, icount := le.Uint16(b), int64(le.Uint16(b[2:]))
	n := &Node{
		Mode: uint32(le.Uint16(b[4:])), UID: le.Uint32(b[24:]), GID: le.Uint32(b[28:]),
		Sec: int64(le.Uint64(b[32:])), Nsec: le.Uint32(b[40:]),
	}
	r.nodes[number] = n
	r.links[n] = le.Uint32(b[44:])
	size, u := int64(le.Uint64(b[8:])), le.Uint32(b[16:])
	if format&1 == 0 || format > 15 || !bytes.Equal(b[48:64], make([]byte, 16)) || b[6] != 0 || b[7] != 0 {
		panic(fmt.Sprintf("inode %d: % x", number, b))
	}
	at += 64
	if icount > 0 {
		size := 12 + 4*(icount-1)
		n.Xattr = xattrs(r.take(at, size))
		at += size
	}
	switch n.Mode >> 12 {
	case 8:
		n.Size = size
		if size > 0 && format>>1 != 4 {
			panic("file without chunks")
		} else if size > 0 {
			r.extents(n, (at+7)&^7, u)
		}
	case 4:
		r.dir(n, r.payload(at, size, format>>1, u), number, parent)
	case 10:
		n.Target = string(r.payload(at, size, format>>1, u))
	case 2, 6:
		n.Rdev = uint64(u&0xff) | uint64(u>>8&0xfff)<<8 | uint64(u>>20)<<20
	}
	return n
}

// payload is what the image itself holds of an inode: whole blocks, then perhaps the
// rest behind the inode.
func (r *reader) payload(at, size int64, kind uint16, start uint32) []byte {
	block := int64(1) << r.bits
	from := int64(start) << r.bits
	full := (size + block - 1) &^ (block - 1)
	if kind == 0 {
		return r.take(from, full)[:size]
	}
	if kind != 2 || size == 0 {
		panic(fmt.Sprintf("layout %d of %d bytes", kind, size))
	}
	full -= block
	tail := size - full
	if at>>r.bits != (at+tail-1)>>r.bits {
		panic("inline data cross a block's border")
	}
	return slices.Concat(r.take(from, full), r.take(at, tail))
}

func (r *reader) extents(n *Node, at int64, u uint32) {
	if u&^0x3f != 0 || u&0x20 == 0 {
		panic(fmt.Sprintf("chunk format %x", u))
	}
	chunk := int64(1) << (r.bits + int(u&0x1f))
	for la := int64(0); la < n.Size; la += chunk {
		b := r.take(at, 8)
		at += 8
		block := le.Uint32(b[4:])
		if block == 0xFFFFFFFF {
			continue
		}
		if le.Uint16(b[2:]) != 1 {
			panic("device number")
		}
		n.Extents = append(n.Extents, Extent{la, int64(block) << r.bits, min(chunk, n.Size-la)})
	}
}

func (r *reader) dir(n *Node, b []byte, self, parent uint64) {
	n.Children = map[string]*Node{}
	last, dots := "", 0
	for len(b) > 0 {
		block := b[:min(len(b), 1<<r.bits)]
		b = b[len(block):]
		count := int(le.Uint16(block[8:])) / 12
		for i := range count {
			e := block[12*i:]
			lo, hi := int(le.Uint16(e[8:])), len(block)
			if i+1 < count {
				hi = int(le.Uint16(e[12+8:]))
			}
			name := string(block[lo:hi])
			if i+1 == count && len(b) > 0 {
				name = strings.TrimRight(name, "\x00")
			}
			if name <= last || len(name) > 255 || strings.Contains(name, "\x00") {
				panic(fmt.Sprintf("%q follows %q", name, last))
			}
			last = name
			child := le.Uint64(e)
			if name == "." || name == ".." {
				if dots++; child != map[string]uint64{".": self, "..": parent}[name] {
					panic("wrong " + name)
				}
				continue
			}
			c := r.node(child, self)
			if want := map[uint32]byte{8: 1, 4: 2, 2: 3, 6: 4, 1: 5, 12: 6, 10: 7}[c.Mode>>12]; e[10] != want {
				panic(fmt.Sprintf("%q: type %d, want %d", name, e[10], want))
			}
			n.Children[name] = c
		}
	}
	if dots != 2 {
		panic("no . and ..")
	}
}

func xattrs(b []byte) (out []Xattr) {
	if !bytes.Equal(b[:12], make([]byte, 12)) {
		panic("attribute header")
	}
	for b = b[12:]; len(b) > 0; {
		name, value := int(b[0]), int(le.Uint16(b[2:]))
		prefix := map[byte]string{1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 6: "security."}[b[1]]
		if prefix == "" {
			panic("attribute prefix")
		}
		out = append(out, Xattr{prefix + string(b[4:4+name]), b[4+name : 4+name+value]})
		b = b[(4+name+value+3)&^3:]
	}
	return out
}

// compare tells the first difference of two trees.
func compare(path string, got, want *Node, same map[*Node]*Node) error {
	if g, ok := same[want]; ok || got == nil {
		if g != got || got == nil {
			return fmt.Errorf("%s: another inode", path)
		}
		return nil
	}
	same[want] = got
	if a, b := normal(*got), normal(*want); !reflect.DeepEqual(a, b) {
		return fmt.Errorf("%s: got %.1000s, want %.1000s", path, fmt.Sprintf("%+v", a), fmt.Sprintf("%+v", b))
	}
	if len(got.Children) != len(want.Children) {
		return fmt.Errorf("%s: %d entries, want %d", path, len(got.Children), len(want.Children))
	}
	for name, c := range want.Children {
		if err := compare(path+"/"+name, got.Children[name], c, same); err != nil {
			return err
		}
	}
	return nil
}

// normal is a node alone, in the form that compares.
func normal(n Node) Node {
	n.Children = nil
	n.Extents = merged(n.Extents)
	n.Xattr = slices.SortedFunc(slices.Values(n.Xattr), func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	for i := range n.Xattr {
		n.Xattr[i].Value = append([]byte{}, n.Xattr[i].Value...)
	}
	return n
}

func merged(es []Extent) (out []Extent) {
	for _, e := range es {
		if k := len(out) - 1; k >= 0 && out[k].Start+out[k].Len == e.Start && out[k].Offset+out[k].Len == e.Offset {
			out[k].Len += e.Len
			continue
		}
		out = append(out, e)
	}
	return out
}
