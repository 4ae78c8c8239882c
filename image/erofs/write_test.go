package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

func readBack(t testing.TB, img []byte, s *sample) {
	t.Helper()
	got, err := readImage(img, int64(len(s.data)))
	if err != nil {
		t.Fatal(err)
	}
	if err := compare("", got, s.root, map[*Node]*Node{}); err != nil {
		t.Error(err)
	}
}

func TestReadBack(t *testing.T) {
	for bits := 9; bits <= 12; bits++ {
		t.Run(fmt.Sprint(bits), func(t *testing.T) {
			s := everything()
			if bits > 9 {
				s = aligned(1 << bits)
			}
			readBack(t, s.write(t, Options{BlockBits: bits}), s)
		})
	}
}

// aligned is a sample of files whose data lie at multiples of a larger block.
func aligned(block int64) *sample {
	s := everything()
	s.data = append(s.data, make([]byte, -int64(len(s.data))&(block-1))...)
	for name, n := range s.root.Children {
		if len(n.Extents) > 1 || len(n.Extents) == 1 && n.Extents[0].Len != n.Size {
			delete(s.root.Children, name)
		}
	}
	seen := map[*Node]bool{}
	var move func(n *Node)
	move = func(n *Node) {
		if seen[n] {
			return
		}
		seen[n] = true
		for i, e := range n.Extents {
			n.Extents[i].Offset = int64(len(s.data))
			s.data = append(s.data, s.data[e.Offset:e.Offset+e.Len]...)
			s.data = append(s.data, make([]byte, -int64(len(s.data))&(block-1))...)
		}
		for _, c := range n.Children {
			move(c)
		}
	}
	move(s.root)
	s.root.Children["holes"] = &Node{Mode: unix.S_IFREG, Size: 5*block + 3, Extents: []Extent{{block, block, 2 * block}}}
	return s
}

func TestSameTreeSameBytes(t *testing.T) {
	o := Options{UUID: [16]byte{1, 2}, Epoch: 7}
	first := everything().write(t, o)
	for range 5 {
		s := everything()
		x := slices.Clone(s.root.Children["x-file"].Xattr)
		x[0], x[3] = x[3], x[0]
		s.root.Children["x-file"].Xattr = x
		if !bytes.Equal(first, s.write(t, o)) {
			t.Fatal("the bytes differ")
		}
	}
	o.UUID[3] = 1
	if bytes.Equal(first, everything().write(t, o)) {
		t.Error("the UUID is not in the image")
	}
}

func TestLargeDirectory(t *testing.T) {
	for _, n := range []int{1, 20000} {
		root, size := many(n, n)
		var b bytes.Buffer
		if _, err := Write(&b, root, Options{DeviceSize: size}); err != nil {
			t.Fatal(err)
		}
		got, err := readImage(b.Bytes(), size)
		if err == nil {
			err = compare("", got, root, map[*Node]*Node{})
		}
		if err != nil {
			t.Errorf("%d entries: %v", n, err)
		}
	}
}

// tails has directories and links of each length, so that every place of an inode in its
// block and every way of laying it out occurs.
func tails() *sample {
	s := newSample()
	s.root.Children["l0"] = link("x")
	for i := range 700 {
		d := dir(0o755)
		for j := range i / 250 {
			d.Children[strings.Repeat("m", 240)+fmt.Sprint(j)] = s.root.Children["l0"]
		}
		if i > 0 {
			s.root.Children[fmt.Sprintf("l%d", i)] = link(strings.Repeat("t", i))
			d.Children[strings.Repeat("n", 1+i%250)] = link(strings.Repeat("u", i))
		}
		if i%3 == 0 {
			d.Xattr = []Xattr{{"user.x", noise(i)}}
		}
		s.root.Children[fmt.Sprintf("d%d", i)] = d
	}
	return s
}

func TestEveryTail(t *testing.T) {
	s := tails()
	for _, bits := range []int{9, 12} {
		readBack(t, s.write(t, Options{BlockBits: bits}), s)
	}
}

func TestRefused(t *testing.T) {
	file := func(size int64, es ...Extent) *Node {
		return &Node{Mode: unix.S_IFREG | 0o644, Size: size, Extents: es}
	}
	with := func(x ...Xattr) *Node { return &Node{Mode: unix.S_IFREG, Xattr: x} }
	twice := dir(0o755)
	cycle := dir(0o755)
	cycle.Children["below"] = dir(0o755)
	cycle.Children["below"].Children["above"] = cycle
	var list []Xattr
	for i := range 9000 {
		list = append(list, Xattr{fmt.Sprintf("user.%04d", i), nil})
	}
	for name, c := range map[string]struct {
		n    *Node
		name string
		want string // in the error
	}{
		"no inode":             {nil, "n", `"/": entry "n": no inode`},
		"cycle":                {cycle, "n", `"/n/below": entry "above": a directory has one name`},
		"long name":            {file(0), strings.Repeat("a", 256), "name of 256 bytes"},
		"slash":                {file(0), "a/b", "slash"},
		"zero in name":         {file(0), "a\x00", "zero"},
		"dots":                 {file(0), "..", "not a name"},
		"empty name":           {file(0), "", "not a name"},
		"no type":              {&Node{Mode: 0o644}, "n", `"/n": mode`},
		"large mode":           {&Node{Mode: 1<<16 | unix.S_IFREG}, "n", "mode"},
		"nanoseconds":          {&Node{Mode: unix.S_IFIFO, Nsec: 1e9}, "n", "nanoseconds"},
		"file with entries":    {&Node{Mode: unix.S_IFREG, Children: map[string]*Node{}}, "n", "with entries"},
		"directory with size":  {&Node{Mode: unix.S_IFDIR, Size: 1}, "n", "with data"},
		"fifo with device":     {&Node{Mode: unix.S_IFIFO, Rdev: 1}, "n", "device number"},
		"large major":          {&Node{Mode: unix.S_IFCHR, Rdev: unix.Mkdev(1<<12, 0)}, "n", "device number"},
		"large minor":          {&Node{Mode: unix.S_IFBLK, Rdev: unix.Mkdev(0, 1<<20)}, "n", "device number"},
		"empty target":         {&Node{Mode: unix.S_IFLNK}, "n", "target"},
		"long target":          {link(strings.Repeat("a", 4096)), "n", "target of 4096"},
		"zero in target":       {link("a\x00"), "n", "zero"},
		"file with target":     {&Node{Mode: unix.S_IFREG, Target: "a"}, "n", "target"},
		"negative size":        {file(-1), "n", "size -1"},
		"enormous size":        {file(1 << 60), "n", "size"},
		"extent beyond file":   {file(100, Extent{0, 0, 101}), "n", "beyond the file"},
		"extent of empty file": {file(0, Extent{0, 0, 0}), "n", "empty"},
		"extent beyond device": {file(1<<20, Extent{0, 1 << 20, 1 << 20}), "n", "beyond the data file"},
		"extent overflows":     {file(1<<20, Extent{0, 1 << 62, 1 << 20}), "n", "beyond the data file"},
		"negative offset":      {file(512, Extent{0, -512, 512}), "n", "negative"},
		"negative start":       {file(512, Extent{-512, 0, 512}), "n", "negative"},
		"offset not aligned":   {file(512, Extent{0, 511, 512}), "n", "multiple of 512"},
		"start not aligned":    {file(1024, Extent{256, 0, 512}), "n", "multiple of 512"},
		"short extent":         {file(1024, Extent{0, 0, 100}), "n", "ends within a block"},
		"overlap":              {file(2048, Extent{0, 0, 1024}, Extent{512, 1024, 512}), "n", "extent 1"},
		"too many chunks":      {file(1<<50, Extent{512, 0, 512}), "n", "index has"},
		"attribute prefix":     {with(Xattr{"system.nfs4_acl", nil}), "n", "attribute"},
		"attribute of nothing": {with(Xattr{"user.", nil}), "n", "attribute"},
		"attribute name":       {with(Xattr{"user." + strings.Repeat("a", 256), nil}), "n", "attribute"},
		"attribute value":      {with(Xattr{"user.a", make([]byte, 65536)}), "n", "65536 bytes"},
		"attribute twice":      {with(Xattr{"user.a", nil}, Xattr{"user.b", nil}, Xattr{"user.a", nil}), "n", "twice"},
		"attributes too large": {with(Xattr{"user.a", make([]byte, 65535)}, Xattr{"user.b", make([]byte, 65535)}, Xattr{"user.c", make([]byte, 65535)}, Xattr{"user.d", make([]byte, 65535)}, Xattr{"user.e", make([]byte, 99)}), "n", "attributes"},
		"attribute names":      {with(list...), "n", "attributes"},
		"directory twice":      {twice, "n", "one name"},
	} {
		t.Run(name, func(t *testing.T) {
			root := dir(0o755)
			root.Children[c.name] = c.n
			if c.n == twice {
				root.Children["again"] = twice
			}
			_, err := Write(io.Discard, root, Options{DeviceSize: 1 << 20})
			if !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want invalid with %q", err, c.want)
			}
		})
	}
}

func TestOptionsRefused(t *testing.T) {
	root, _ := many(1000, 1000)
	for name, c := range map[string]struct {
		root *Node
		o    Options
	}{
		"no root":     {nil, Options{}},
		"file":        {&Node{Mode: unix.S_IFREG}, Options{}},
		"block":       {dir(0), Options{BlockBits: 13}},
		"small block": {dir(0), Options{BlockBits: 8}},
		"device":      {dir(0), Options{DeviceSize: -1}},
		"device size": {dir(0), Options{DeviceSize: 1 << 41}},
		"max size":    {dir(0), Options{MaxSize: -1}},
		"too large":   {root, Options{DeviceSize: 1 << 30, MaxSize: 100000}},
	} {
		if _, err := Write(io.Discard, c.root, c.o); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%s: got %v, want invalid", name, err)
		}
	}
}

type full struct{ room int }

func (w *full) Write(p []byte) (int, error) {
	n := min(len(p), w.room)
	w.room -= n
	if n < len(p) {
		return n, unix.ENOSPC
	}
	return n, nil
}

func TestWriteErrorComesBack(t *testing.T) {
	root, size := many(6000, 60)
	for room := 0; room < 800000; room += 100000 {
		if _, err := Write(&full{room}, root, Options{DeviceSize: size}); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("room for %d bytes: got %v, want %v", room, err, unix.ENOSPC)
		}
	}
}
