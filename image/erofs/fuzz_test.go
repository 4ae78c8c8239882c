package erofs

import (
	"bytes"
	"errors"
	"flag"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// maker takes the decisions of a random tree from the fuzzer's bytes.
type maker struct {
	in    []byte
	s     *sample
	nodes []*Node
	dirs  []*Node
	wild  bool // also what the format cannot hold
}

func (m *maker) next() int {
	if len(m.in) == 0 {
		return 0
	}
	b := m.in[0]
	m.in = m.in[1:]
	return int(b)
}

func (m *maker) number() int { return m.next()<<8 | m.next() }

// few is true once in n times at most, and never without input.
func (m *maker) few(n int) bool { return m.next()%n == n-1 }

// oneOf gives an odd value where those may be, else one of the others.
func oneOf[T any](m *maker, odd T, others ...T) T {
	if m.wild && m.few(16) {
		return odd
	}
	return others[m.next()%len(others)]
}

func (m *maker) name() string {
	n := 1 + m.next()%8
	switch m.next() % 8 {
	case 6:
		n = 255 - m.next()%3
	case 7:
		n = 60 + m.next()
	}
	n = min(n, oneOf(m, 256, 255))
	b := make([]byte, n)
	c := m.next()
	for i := range b {
		b[i] = byte("ab.-_~\x01\xff"[(c+i*m.next())%8])
	}
	name := string(b)
	if !m.wild {
		name = strings.TrimLeft(name, ".") + "n"
		name = name[:min(len(name), 255)]
	}
	return oneOf(m, "a/b", name)
}

func (m *maker) node() *Node {
	perm := uint32(m.number()) & 0o7777
	n := &Node{
		UID: uint32(m.number()) << (m.next() % 17), GID: uint32(m.next()),
		Sec: int64(m.number()-1<<15) << (m.next() % 30), Nsec: uint32(oneOf(m, 1e9, 0, m.number(), 999999999)),
	}
	switch m.next() % 8 {
	case 0, 1, 2:
		n.Mode = unix.S_IFREG | perm
		m.file(n)
	case 3, 4:
		n.Mode = unix.S_IFDIR | perm
		n.Children = map[string]*Node{}
		m.dirs = append(m.dirs, n)
	case 5:
		n.Mode = unix.S_IFLNK | 0o777
		n.Target = strings.Repeat("t", oneOf(m, 4096, 1+m.next(), 1+m.number()%4095))
	case 6:
		n.Mode = oneOf(m, 0, uint32(unix.S_IFCHR), unix.S_IFBLK) | perm
		n.Rdev = unix.Mkdev(uint32(m.number())%oneOf(m, 1<<16, uint32(1<<12)), uint32(m.number())<<(m.next()%5))
	case 7:
		n.Mode = oneOf(m, 0o170000, uint32(unix.S_IFIFO), unix.S_IFSOCK) | perm
	}
	for range m.next() % 4 {
		prefix := oneOf(m, "system.", "user.", "trusted.", "security.x", "trusted.overlay.")
		x := Xattr{prefix + strings.Repeat("n", 1+m.next()%200), noise(m.next() << (m.next() % 9) % 65535)}
		if kind := n.Mode & unix.S_IFMT; strings.HasPrefix(x.Name, "user.") && kind != unix.S_IFREG && kind != unix.S_IFDIR {
			continue // the kernel would not show it
		}
		if m.wild || !slices.ContainsFunc(n.Xattr, func(y Xattr) bool { return x.Name == y.Name }) {
			n.Xattr = append(n.Xattr, x)
		}
	}
	return n
}

// file makes up pieces: some follow each other, some leave a hole.
func (m *maker) file(n *Node) {
	blocks := int64(len(m.s.data) / 512)
	for range m.next() % 6 {
		e := Extent{Start: (n.Size + 511) &^ 511, Len: 512 * int64(1+m.next()%16)}
		if m.few(3) {
			e.Start += 512 * int64(m.next()) << (m.next() % 5)
		}
		if k := len(n.Extents) - 1; k >= 0 && m.few(2) {
			e.Offset = n.Extents[k].Offset + n.Extents[k].Len
		} else {
			e.Offset = 512 * (int64(m.number()) % blocks)
		}
		if !m.wild && e.Offset+e.Len > int64(len(m.s.data)) {
			continue
		}
		e.Offset += oneOf(m, 1, int64(0))
		n.Extents = append(n.Extents, e)
		n.Size = e.Start + e.Len
	}
	if k := len(n.Extents) - 1; k >= 0 && m.few(2) {
		cut := int64(m.number() % 511)
		n.Extents[k].Len -= cut
		n.Size -= oneOf(m, 0, cut)
	} else if m.few(4) {
		n.Size += int64(m.number())
	}
}

// tree makes up to 100 inodes, each with a name in some directory.
func (m *maker) tree() {
	m.dirs = []*Node{m.s.root}
	for i := 0; len(m.in) > 0 && i < 100; i++ {
		parent := m.dirs[m.next()%len(m.dirs)]
		if m.few(5) && len(m.nodes) > 0 {
			n := m.nodes[m.next()%len(m.nodes)]
			if m.wild || n.Mode&unix.S_IFMT != unix.S_IFDIR {
				parent.Children[m.name()] = n
			}
			continue
		}
		n := m.node()
		name := m.name()
		if old := parent.Children[name]; old != nil {
			continue
		}
		parent.Children[name] = n
		m.nodes = append(m.nodes, n)
	}
}

func made(in, data []byte, wild bool) *sample {
	s := newSample()
	s.data = data
	m := &maker{in: in, s: s, wild: wild}
	m.tree()
	return s
}

// FuzzWrite: a tree is written so that a reader finds it again, or refused; one of what
// the format can hold is never refused. Seeds are also read by the kernel.
func FuzzWrite(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 40 {
		in := make([]byte, 50*(1+i))
		for j := range in {
			in[j] = byte(r.Uint32())
		}
		f.Add(in, i%4 == 3)
	}
	data := noise(64 << 10)
	fuzzing := flag.Lookup("test.fuzz").Value.String() != ""
	kernel := !fuzzing && testkit.Root.Check() == nil && testkit.EROFS.Check() == nil && testkit.Kernel(6, 12).Check() == nil
	f.Fuzz(func(t *testing.T, in []byte, wild bool) {
		s := made(in, data, wild)
		size := int64(len(s.data))
		var b bytes.Buffer
		_, err := Write(&b, s.root, Options{DeviceSize: size})
		if err != nil && (!wild || !errors.Is(err, errdef.ErrInvalid)) {
			t.Fatal(err)
		}
		if err != nil {
			return
		}
		got, err := readImage(b.Bytes(), size)
		if err == nil {
			err = compare("", got, s.root, map[*Node]*Node{})
		}
		if err != nil {
			t.Fatal(err)
		}
		if kernel {
			root, _ := mounted(t, s, Options{})
			verify(t, root, s)
		}
	})
}
