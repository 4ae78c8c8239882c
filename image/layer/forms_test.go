package layer

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/erofs"
	"github.com/cri-runtime/cri-runtime/internal/linux/mount"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

var testLimits = Options{MaxBytes: 1 << 20, MaxEntries: 1000}

// form is a layer in one of its two forms.
type form interface {
	apply(t testing.TB, r io.Reader, opt Options) (*Result, error)
	settle(t testing.TB, lowers []string, limit int64) (uint64, error)
	root(t testing.TB) string // what the kernel shows
}

// forms makes layers to be tested.
var forms = map[string]func(testing.TB) form{
	"directory": func(t testing.TB) form { return &dirForm{dir: t.TempDir()} },
	"index":     func(t testing.TB) form { return &indexForm{file: tempFile(t)} },
}

// both runs a test over both forms.
func both(t *testing.T, f func(t *testing.T, make func(testing.TB) form)) {
	testkit.Need(t, testkit.Root, testkit.EROFS)
	testkit.Leaks(t)
	for name, make := range forms {
		t.Run(name, func(t *testing.T) { f(t, make) })
	}
}

func tempFile(t testing.TB) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "tar"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

type dirForm struct {
	dir string
	res *Result
}

func (d *dirForm) apply(t testing.TB, r io.Reader, opt Options) (res *Result, err error) {
	d.res, err = Apply(t.Context(), d.dir, r, opt)
	return d.res, err
}

func (d *dirForm) settle(_ testing.TB, lowers []string, limit int64) (uint64, error) {
	return Settle(d.dir, lowers, d.res.Open, limit)
}

func (d *dirForm) root(testing.TB) string { return d.dir }

type indexForm struct {
	file *os.File
	x    *Indexed
	at   string
}

func (i *indexForm) apply(t testing.TB, r io.Reader, opt Options) (*Result, error) {
	var err error
	if i.x, err = Index(t.Context(), i.file, r, opt); err != nil {
		return nil, err
	}
	return &i.x.Result, nil
}

func (i *indexForm) settle(_ testing.TB, lowers []string, limit int64) (uint64, error) {
	return SettleTree(i.x, lowers, i.file, limit)
}

func (i *indexForm) root(t testing.TB) string {
	t.Helper()
	if i.at != "" {
		return i.at
	}
	if st, err := i.file.Stat(); err != nil || st.Size() != i.x.Size {
		t.Fatalf("data file: %v, %v, want %d bytes", st, err, i.x.Size)
	}
	index := tempFile(t)
	if _, err := erofs.Write(index, i.x.Tree, erofs.Options{DeviceSize: i.x.Size}); err != nil {
		t.Fatal(err)
	}
	m, err := mount.EROFS(index, i.file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	i.at = fmt.Sprintf("/proc/self/fd/%d/.", m.Fd())
	return i.at
}

func apply(t testing.TB, f form, es ...entry) (*Result, error) {
	t.Helper()
	return f.apply(t, bytes.NewReader(build(t, es...)), testLimits)
}

func mustApply(t testing.TB, f form, es ...entry) *Result {
	t.Helper()
	res, err := apply(t, f, es...)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// layerOf is the root of a layer made of entries, settled on nothing.
func layerOf(t testing.TB, f form, es ...entry) string {
	t.Helper()
	mustApply(t, f, es...)
	return f.root(t)
}

// dump writes down all that the kernel shows of a tree; equal inodes get equal numbers.
func dump(t testing.TB, root string) string {
	t.Helper()
	var out []string
	inodes := map[uint64]int{}
	err := filepath.Walk(root, func(p string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		st := stat(t, p)
		line := fmt.Sprintf("/%s %o %d:%d dev %d mtime %d.%d", strings.TrimPrefix(strings.TrimPrefix(p+"/", filepath.Clean(root)+"/"), "./"), st.Mode, st.Uid, st.Gid, st.Rdev, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " -> " + to
		case unix.S_IFREG:
			f, err := os.Open(p)
			if err != nil {
				return err
			}
			h := sha256.New()
			n, err := io.Copy(h, f)
			f.Close()
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d of %d bytes %x", n, st.Size, h.Sum(nil)[:8])
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if _, ok := inodes[st.Ino]; !ok {
				inodes[st.Ino] = len(inodes)
			}
			line += fmt.Sprintf(" links %d inode %d", st.Nlink, inodes[st.Ino])
		}
		out = append(out, line+listXattrs(t, p))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, "\n")
}

func listXattrs(t testing.TB, p string) (out string) {
	t.Helper()
	list, v := make([]byte, 1<<16), make([]byte, 1<<16)
	n, err := unix.Llistxattr(p, list)
	if err != nil {
		t.Fatalf("list attributes of %s: %v", p, err)
	}
	names := strings.Split(string(list[:n]), "\x00")
	slices.Sort(names)
	for _, name := range names {
		if name == "" || name == "security.selinux" {
			continue
		}
		n, err := unix.Lgetxattr(p, name, v)
		if err != nil {
			t.Fatalf("attribute %s of %s: %v", name, p, err)
		}
		out += fmt.Sprintf(" %s=%x", name, v[:n])
	}
	return out
}

// dumpTree is dump for a tree that nobody mounts.
func dumpTree(t testing.TB, root *erofs.Node, data io.ReaderAt) string {
	t.Helper()
	w := &treeDump{data: data, names: map[*erofs.Node]int{}, inodes: map[*erofs.Node]int{}}
	w.count(root)
	w.walk(t, "", root)
	return strings.Join(w.out, "\n")
}

type treeDump struct {
	data   io.ReaderAt
	names  map[*erofs.Node]int
	inodes map[*erofs.Node]int
	out    []string
}

func (w *treeDump) count(n *erofs.Node) {
	for _, c := range n.Children {
		w.names[c]++
		w.count(c)
	}
}

func (w *treeDump) walk(t testing.TB, path string, n *erofs.Node) {
	t.Helper()
	line := fmt.Sprintf("/%s %o %d:%d dev %d mtime %d.%d", strings.TrimPrefix(path+"/", "/"), n.Mode, n.UID, n.GID, n.Rdev, n.Sec, n.Nsec)
	switch n.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		line += " -> " + n.Target
	case unix.S_IFREG:
		b := make([]byte, n.Size)
		for _, e := range n.Extents {
			if e.Offset%512 != 0 || e.Start%512 != 0 {
				t.Errorf("%s: extent %+v is not aligned", path, e)
			}
			if _, err := w.data.ReadAt(b[e.Start:e.Start+e.Len], e.Offset); err != nil {
				t.Fatalf("%s: extent %+v: %v", path, e, err)
			}
		}
		h := sha256.Sum256(b)
		line += fmt.Sprintf(" %d of %d bytes %x", len(b), n.Size, h[:8])
	}
	if !isDir(n) {
		if _, ok := w.inodes[n]; !ok {
			w.inodes[n] = len(w.inodes)
		}
		line += fmt.Sprintf(" links %d inode %d", w.names[n], w.inodes[n])
	}
	for _, x := range n.Xattr {
		line += fmt.Sprintf(" %s=%x", x.Name, x.Value)
	}
	w.out = append(w.out, line)
	names := []string{}
	for name := range n.Children {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		w.walk(t, join(path, name), n.Children[name])
	}
}
