package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/linux/mount"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// mounted gives a name of the root of the sample's index, which the kernel mounted.
func mounted(t testing.TB, s *sample, o Options) (root string, f *os.File) {
	t.Helper()
	dir := t.TempDir()
	index, data := filepath.Join(dir, "index"), filepath.Join(dir, "data")
	if err := errors.Join(os.WriteFile(index, s.write(t, o), 0o600), os.WriteFile(data, s.data, 0o600)); err != nil {
		t.Fatal(err)
	}
	f = mountIndex(t, index, data)
	t.Cleanup(func() { f.Close() })
	return fmt.Sprintf("/proc/self/fd/%d/", f.Fd()), f
}

func mountIndex(t testing.TB, index, data string) *os.File {
	t.Helper()
	i, err := os.Open(index)
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	d, err := os.Open(data)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	f, err := mount.EROFS(i, d)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// walker compares what the kernel shows with the tree.
type walker struct {
	testing.TB
	s     *sample
	inode map[*Node]uint64
	links map[*Node]uint64 // that the kernel tells
	names map[*Node]uint64 // that were walked
}

func (w *walker) walk(path string, n *Node) {
	w.names[n]++
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		w.Errorf("%v: %v", path, err)
		return
	}
	if was, ok := w.inode[n]; ok && was != st.Ino {
		w.Errorf("%s: inode %d, another name of it has %d", path, st.Ino, was)
	}
	w.inode[n], w.links[n] = st.Ino, st.Nlink
	type stat struct {
		mode, uid, gid uint32
		rdev           uint64
		sec, nsec      int64
	}
	got := stat{st.Mode, st.Uid, st.Gid, st.Rdev, st.Mtim.Sec, st.Mtim.Nsec}
	want := stat{n.Mode, n.UID, n.GID, n.Rdev, n.Sec, int64(n.Nsec)}
	if got != want {
		w.Errorf("%s: got %+v, want %+v", path, got, want)
	}
	w.xattrs(path, n)
	switch n.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		w.file(path, n, st.Size)
	case unix.S_IFLNK:
		if to, err := os.Readlink(path); err != nil || to != n.Target {
			w.Errorf("%s: link to %q, want %q: %v", path, to, n.Target, err)
		}
	case unix.S_IFDIR:
		w.dir(path, n, st.Nlink)
	}
}

func (w *walker) file(path string, n *Node, size int64) {
	if size != n.Size {
		w.Errorf("%s: size %d, want %d", path, size, n.Size)
		return
	}
	if n.Size > 1<<30 {
		w.parts(path, n)
		return
	}
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, w.s.content(n)) {
		w.Errorf("%s: other content: %v", path, err)
	}
}

// parts reads the extents of a file that is too large to read.
func (w *walker) parts(path string, n *Node) {
	f, err := os.Open(path)
	if err != nil {
		w.Error(err)
		return
	}
	defer f.Close()
	for _, e := range n.Extents {
		got := make([]byte, e.Len+1024)
		if _, err := f.ReadAt(got, e.Start-512); err != nil {
			w.Error(err)
		}
		want := slices.Concat(make([]byte, 512), w.s.data[e.Offset:e.Offset+e.Len], make([]byte, 512))
		if !bytes.Equal(got, want) {
			w.Errorf("%s: other content around %d", path, e.Start)
		}
	}
	last := []byte{1}
	if _, err := f.ReadAt(last, n.Size-1); err != nil || last[0] != 0 {
		w.Errorf("%s: last byte %d: %v", path, last[0], err)
	}
}

func (w *walker) dir(path string, n *Node, links uint64) {
	entries, err := os.ReadDir(path)
	if err != nil {
		w.Error(err)
	}
	want := uint64(2)
	for name, child := range n.Children {
		if child.Mode&unix.S_IFMT == unix.S_IFDIR {
			want++
		}
		i, ok := slices.BinarySearchFunc(entries, name, func(e os.DirEntry, name string) int { return strings.Compare(e.Name(), name) })
		if !ok {
			w.Errorf("%s: not listed: %q", path, name)
		} else if e := entries[i]; e.Type() != modeOf(child.Mode) {
			w.Errorf("%s/%s: listed as %v, want %v", path, name, e.Type(), modeOf(child.Mode))
		}
		w.walk(strings.TrimSuffix(path, "/")+"/"+name, child)
	}
	if len(entries) != len(n.Children) {
		w.Errorf("%s: %d entries, want %d", path, len(entries), len(n.Children))
	}
	if links != want {
		w.Errorf("%s: %d links, want %d", path, links, want)
	}
	var st unix.Stat_t
	for _, name := range []string{"\x00", "0missing", "zzzz", "~", "m"} {
		if err := unix.Lstat(path+"/"+strings.Trim(name, "\x00")+"?no", &st); !errors.Is(err, unix.ENOENT) {
			w.Errorf("%s: %q, which is not there: %v", path, name, err)
		}
	}
}

func modeOf(mode uint32) os.FileMode {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return os.ModeDir
	case unix.S_IFLNK:
		return os.ModeSymlink
	case unix.S_IFCHR:
		return os.ModeDevice | os.ModeCharDevice
	case unix.S_IFBLK:
		return os.ModeDevice
	case unix.S_IFIFO:
		return os.ModeNamedPipe
	case unix.S_IFSOCK:
		return os.ModeSocket
	}
	return 0
}

func (w *walker) xattrs(path string, n *Node) {
	buf := make([]byte, 65536)
	got, err := unix.Llistxattr(path, buf)
	if err != nil {
		w.Errorf("%s: list attributes: %v", path, err)
		return
	}
	names := strings.FieldsFunc(string(buf[:got]), func(r rune) bool { return r == 0 })
	var want []string
	for _, x := range n.Xattr {
		want = append(want, x.Name)
		got, err := unix.Lgetxattr(path, x.Name, buf)
		if err != nil || !bytes.Equal(buf[:max(got, 0)], x.Value) {
			w.Errorf("%s: attribute %s: %d bytes, want %d: %v", path, x.Name, got, len(x.Value), err)
		}
	}
	slices.Sort(names)
	slices.Sort(want)
	if !slices.Equal(names, want) {
		w.Errorf("%s: attributes %q, want %q", path, names, want)
	}
	if _, err := unix.Lgetxattr(path, "user.missing", buf); n.Mode&unix.S_IFMT != unix.S_IFLNK && !errors.Is(err, unix.ENODATA) {
		w.Errorf("%s: missing attribute: %v", path, err)
	}
}

// verify walks all below root.
func verify(t testing.TB, root string, s *sample) {
	t.Helper()
	w := &walker{TB: t, s: s, inode: map[*Node]uint64{}, links: map[*Node]uint64{}, names: map[*Node]uint64{}}
	w.walk(root, s.root)
	for n, names := range w.names {
		if n.Mode&unix.S_IFMT != unix.S_IFDIR && w.links[n] != names {
			t.Errorf("inode %d: %d links, want %d", w.inode[n], w.links[n], names)
		}
	}
	other := map[uint64]*Node{}
	for n, i := range w.inode {
		if was := other[i]; was != nil && was != n {
			t.Errorf("inode %d is two files", i)
		}
		other[i] = n
	}
}

func needKernel(t testing.TB) {
	t.Helper()
	testkit.Need(t, testkit.Root, testkit.EROFS, testkit.Kernel(6, 12))
	testkit.Leaks(t)
}

func TestKernelReadsAll(t *testing.T) {
	needKernel(t)
	for _, bits := range []int{9, 10, 12} {
		t.Run(fmt.Sprint(bits), func(t *testing.T) {
			s := everything()
			if bits > 9 {
				s = aligned(1 << bits)
			}
			root, _ := mounted(t, s, Options{BlockBits: bits, Epoch: 1})
			verify(t, root, s)
		})
	}
}

func TestKernelReadsLargeDirectory(t *testing.T) {
	needKernel(t)
	s := newSample()
	large := dir(0o755)
	s.root.Children["large"] = large
	same := s.file(100)
	for i := range 20000 {
		n := *same
		large.Children[fmt.Sprintf("%x", i*i)] = &n
	}
	root, _ := mounted(t, s, Options{})
	verify(t, root, s)
}

func TestKernelReadsEveryTail(t *testing.T) {
	needKernel(t)
	s := tails()
	root, _ := mounted(t, s, Options{})
	verify(t, root, s)
}

// TestChecksumCounts shows that the kernel checks it.
func TestChecksumCounts(t *testing.T) {
	needKernel(t)
	s := everything()
	img := s.write(t, Options{})
	img[1024+48]++ // UUID
	at := t.TempDir()
	index := filepath.Join(at, "index")
	if err := os.WriteFile(index, img, 0o600); err != nil {
		t.Fatal(err)
	}
	i, err := os.Open(index)
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	f, err := mount.EROFS(i, i)
	if !errors.Is(err, unix.EBADMSG) {
		t.Errorf("got %v, want %v", err, unix.EBADMSG)
	}
	if err == nil {
		f.Close()
	}
}
