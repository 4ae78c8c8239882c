package erofs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A sample is a tree and the data file that it points into.
type sample struct {
	root *Node
	data []byte
}

func newSample() *sample {
	return &sample{root: dir(0o755)}
}

func dir(perm uint32) *Node {
	return &Node{Mode: unix.S_IFDIR | perm, Sec: 1700000000, Nsec: 123456789, Children: map[string]*Node{}}
}

func special(mode uint32, dev uint64) *Node { return &Node{Mode: mode, Rdev: dev, Sec: 5} }

func link(target string) *Node {
	return &Node{Mode: unix.S_IFLNK | 0o777, Sec: -77, Nsec: 1, Target: target}
}

// store appends p to the data file, with the header block that a tar has before it.
func (s *sample) store(p []byte) (offset int64) {
	s.data = append(s.data, bytes.Repeat([]byte{'H'}, 512)...)
	offset = int64(len(s.data))
	s.data = append(s.data, p...)
	s.data = append(s.data, make([]byte, -len(s.data)&511)...)
	return offset
}

// file is one in a piece of random bytes.
func (s *sample) file(size int) *Node {
	n := &Node{Mode: unix.S_IFREG | 0o644, UID: 1000, GID: 70000, Sec: 1, Nsec: 999999999, Size: int64(size)}
	if size > 0 {
		n.Extents = []Extent{{0, s.store(noise(size)), int64(size)}}
	}
	return n
}

func noise(size int) []byte {
	b := make([]byte, size)
	r := rand.New(rand.NewPCG(uint64(size), 1))
	for i := range b {
		b[i] = byte(r.Uint32()) | 1 // never zero
	}
	return b
}

// pieces is a file of size bytes with data at the given places only.
func (s *sample) pieces(size int64, at ...Extent) *Node {
	n := &Node{Mode: unix.S_IFREG | 0o600, Size: size}
	for _, e := range at {
		e.Offset = s.store(noise(int(e.Len)))
		n.Extents = append(n.Extents, e)
	}
	return n
}

// content is what a regular file holds.
func (s *sample) content(n *Node) []byte {
	b := make([]byte, n.Size)
	for _, e := range n.Extents {
		copy(b[e.Start:], s.data[e.Offset:e.Offset+e.Len])
	}
	return b
}

func (s *sample) write(t testing.TB, o Options) []byte {
	t.Helper()
	o.DeviceSize = int64(len(s.data))
	var b bytes.Buffer
	stats, err := Write(&b, s.root, o)
	if err != nil {
		t.Fatal(err)
	}
	if stats.Size != int64(b.Len()) {
		t.Errorf("size: told %d, wrote %d", stats.Size, b.Len())
	}
	return b.Bytes()
}

// everything is a tree with all that a layer may hold. Attributes need root to be seen.
func everything() *sample {
	s := newSample()
	c := s.root.Children
	for _, size := range []int{0, 1, 511, 512, 513, 4096, 4097, 1 << 20} {
		c[fmt.Sprintf("file-%d", size)] = s.file(size)
	}
	c["setuid"] = s.file(10)
	c["setuid"].Mode = unix.S_IFREG | 0o6755
	c["sticky"] = dir(0o1777)
	c["empty"] = dir(0o700)
	c["old"] = s.file(3)
	c["old"].Sec, c["old"].Nsec = -1<<33, 17
	c["far"] = s.file(3)
	c["far"].Sec = 1 << 36
	c["owner"] = s.file(3)
	c["owner"].UID, c["owner"].GID = 1<<32-2, 1<<32-3
	addPieces(s, c)
	addSpecial(c)
	addXattrs(s, c)

	hard := s.file(700)
	c["hard-1"], c["hard-2"], c["sticky"].Children["hard-3"] = hard, hard, hard
	fifo := special(unix.S_IFIFO|0o600, 0)
	c["fifo-1"], c["fifo-2"] = fifo, fifo

	names := dir(0o755)
	c["names"] = names
	for _, name := range []string{
		"!", "-", ".a", "...", "a", "a.b", "a-b", "aa", "ab", " ", "\x01", "\xff\xfe", "ü", "new\nline",
		strings.Repeat("x", 255), strings.Repeat("x", 254) + "y", strings.Repeat("x", 254), strings.Repeat("\xff", 255),
	} {
		names.Children[name] = s.file(1)
	}
	deep := c
	for i := range 300 {
		d := dir(0o755)
		deep[fmt.Sprint(i%7)] = d
		deep = d.Children
	}
	deep["bottom"] = s.file(5)
	return s
}

func addPieces(s *sample, c map[string]*Node) {
	c["hole"] = s.pieces(100000)
	c["hole-tail"] = s.pieces(100001, Extent{Len: 512})
	c["hole-head"] = s.pieces(5000, Extent{Start: 4608, Len: 392})
	c["sparse"] = s.pieces(1<<20+7, Extent{Start: 512, Len: 1024}, Extent{Start: 65536, Len: 4096}, Extent{Start: 1 << 20, Len: 7})
	c["huge"] = s.pieces(1<<34, Extent{Start: 1 << 33, Len: 1 << 20})
	c["chunks"] = s.pieces(8*65536, Extent{Start: 0, Len: 65536}, Extent{Start: 65536, Len: 65536}, Extent{Start: 4 * 65536, Len: 65536})
	// Pieces that follow each other in the data file too are one.
	c["joined"] = s.file(3000)
	off := c["joined"].Extents[0].Offset
	c["joined"].Extents = []Extent{{0, off, 1024}, {1024, off + 1024, 512}, {1536, off + 1536, 3000 - 1536}}
	many := s.pieces(300*512 - 100)
	for i := range int64(300) {
		if i%5 != 3 {
			many.Extents = append(many.Extents, Extent{i * 512, s.store(noise(512)), min(512, many.Size-i*512)})
		}
	}
	c["many"] = many
	// Backwards, and two files that share their data.
	c["backwards"] = s.pieces(2048, Extent{Start: 0, Len: 1024}, Extent{Start: 1024, Len: 1024})
	e := c["backwards"].Extents
	e[0].Offset, e[1].Offset = e[1].Offset, e[0].Offset
	same := *c["backwards"]
	c["same-data"] = &same
}

func addSpecial(c map[string]*Node) {
	c["null"] = special(unix.S_IFCHR|0o666, unix.Mkdev(1, 3))
	c["block"] = special(unix.S_IFBLK|0o660, unix.Mkdev(259, 1<<20-1))
	c["char"] = special(unix.S_IFCHR|0o660, unix.Mkdev(1<<12-1, 256))
	c["whiteout"] = special(unix.S_IFCHR, 0)
	c["socket"] = special(unix.S_IFSOCK|0o755, 0)
	c["link"] = link("file-1")
	c["link-absolute"] = link("/proc/self/../self")
	for _, n := range []int{400, 447, 448, 449, 511, 512, 513, 960, 1024, 4095} {
		c[fmt.Sprintf("link-%d", n)] = link(strings.Repeat("l/", n)[:n])
	}
}

func addXattrs(s *sample, c map[string]*Node) {
	all := []Xattr{
		{"user.small", []byte("x")}, {"user.empty", nil}, {"user." + strings.Repeat("n", 250), noise(333)},
		{"trusted.overlay.opaque", []byte("y")}, {"trusted.a", noise(1000)},
		{"security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")},
		{"system.posix_acl_access", []byte("\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xe8\x03\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff")},
	}
	c["x-file"] = s.file(5000)
	c["x-file"].Xattr = all
	c["x-file"].Mode = unix.S_IFREG | 0o644
	c["x-chunks"] = s.pieces(5000, Extent{Start: 4096, Len: 904})
	c["x-chunks"].Xattr = all[:1]
	c["x-dir"] = dir(0o755)
	c["x-dir"].Xattr = all[:5]
	c["x-dir"].Children["below"] = s.file(7)
	c["x-large"] = dir(0o755)
	c["x-large"].Xattr = []Xattr{{"trusted.large", noise(65535)}, {"trusted.more", noise(60000)}}
	c["x-link"] = link("nowhere")
	c["x-link"].Xattr = []Xattr{{"trusted.l", noise(600)}}
	c["x-opaque"] = dir(0o755)
	c["x-opaque"].Xattr = []Xattr{{"trusted.overlay.opaque", []byte("y")}}
	c["x-device"] = special(unix.S_IFCHR|0o600, unix.Mkdev(5, 1))
	c["x-device"].Xattr = []Xattr{{"security.capability2", []byte("v")}}
}
