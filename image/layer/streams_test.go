package layer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/erofs"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// sparseTree makes files with holes, and what surrounds them in a tar.
func sparseTree(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for name, pieces := range map[string]map[int64]string{
		"before":        {0: "x"},
		"holes":         {0: "start", 300 << 10: strings.Repeat("middle", 2000), 600 << 10: "end"},
		"hole at start": {128 << 10: "end"},
		"hole at end":   {0: "start", 256 << 10: ""},
		"only a hole":   {400 << 10: ""},
		"unaligned":     {100: "a", 70001: "b", 90 << 10: strings.Repeat("c", 5001)},
		"zz after":      {0: strings.Repeat("y", 5000)},
	} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for at, s := range pieces {
			if _, err := f.WriteAt([]byte(s), at); err != nil {
				t.Fatal(err)
			}
			if fi, err := f.Stat(); err != nil || fi.Size() < at {
				if err := f.Truncate(at); err != nil {
					t.Fatal(err)
				}
			}
		}
		f.Close()
	}
	if err := os.Link(dir+"/holes", dir+"/holes too"); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestSparse reads what GNU tar writes of files with holes, in all its forms.
func TestSparse(t *testing.T) {
	testkit.Need(t, testkit.Root, testkit.EROFS, testkit.Tool("tar"))
	testkit.Leaks(t)
	dir := sparseTree(t)
	for _, how := range [][]string{{"--format=gnu"}, {"--format=posix", "--sparse-version=0.0"}, {"--format=posix", "--sparse-version=0.1"}, {"--format=posix", "--sparse-version=1.0"}} {
		t.Run(strings.Join(how, ""), func(t *testing.T) {
			args := append(slices.Clone(how), "-C", dir, "--numeric-owner", "--sort=name", "-S", "-c", ".")
			data, err := exec.CommandContext(t.Context(), "tar", args...).Output()
			if err != nil {
				t.Fatal(err)
			}
			if len(data) > 200<<10 {
				t.Fatalf("tar kept the holes: %d bytes", len(data))
			}
			refused := map[string]bool{}
			limits := testLimits
			testLimits.MaxBytes = 4 << 20
			defer func() { testLimits = limits }()
			compare(t, data, refused)
			if len(refused) > 0 {
				t.Error("refused")
			}
			f := forms["index"](t).(*indexForm)
			if _, err := f.apply(t, bytes.NewReader(data), testLimits); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"holes", "hole at start", "hole at end", "only a hole", "unaligned", "before", "zz after"} {
				got, err := os.ReadFile(f.root(t) + "/" + name)
				if err != nil {
					t.Fatal(err)
				}
				if want, err := os.ReadFile(dir + "/" + name); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %d bytes differ from %d", name, len(got), len(want))
				}
			}
			if spilled := f.x.Size - f.x.TarSize; spilled > 100<<10 {
				t.Errorf("spilled %d bytes: the holes went along", spilled)
			}
			d := forms["directory"](t).(*dirForm)
			if _, err := d.apply(t, bytes.NewReader(data), testLimits); err != nil {
				t.Fatal(err)
			}
			if st := stat(t, d.dir+"/only a hole"); st.Blocks > 16 {
				t.Errorf("a hole takes %d blocks in the directory", st.Blocks)
			}
		})
	}
}

// TestSparseCut damages sparse files: both forms have to notice.
func TestSparseCut(t *testing.T) {
	testkit.Need(t, testkit.Root, testkit.Tool("tar"))
	dir := sparseTree(t)
	data, err := exec.CommandContext(t.Context(), "tar", "--format=posix", "-C", dir, "-S", "-c", "holes", "unaligned").Output()
	if err != nil {
		t.Fatal(err)
	}
	for cut := 0; cut < len(data); cut += 512 * 3 {
		_, aErr := Apply(t.Context(), t.TempDir(), bytes.NewReader(data[:cut]), Options{})
		_, bErr := Index(t.Context(), tempFile(t), bytes.NewReader(data[:cut]), Options{})
		if (aErr == nil) != (bErr == nil) {
			t.Errorf("cut at %d: directory %v, index %v", cut, aErr, bErr)
		}
	}
}

// TestGNUTar reads the formats that GNU tar writes: long names and links, old headers.
func TestGNUTar(t *testing.T) {
	testkit.Need(t, testkit.Root, testkit.EROFS, testkit.Tool("tar"))
	testkit.Leaks(t)
	dir := t.TempDir()
	deep := filepath.Join(dir, strings.Repeat("d", 120), strings.Repeat("e", 120))
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{dir + "/f", deep + "/" + strings.Repeat("n", 200), deep + "/.hidden"} {
		if err := os.WriteFile(f, []byte(f), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(strings.Repeat("t/", 300), deep+"/s"); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(deep+"/.hidden", dir+"/again"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(dir+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"gnu", "oldgnu", "posix"} {
		t.Run(format, func(t *testing.T) {
			data, err := exec.CommandContext(t.Context(), "tar", "--format="+format, "-C", dir, "-c", ".").Output()
			if err != nil {
				t.Fatal(err)
			}
			refused := map[string]bool{}
			compare(t, data, refused)
			f := forms["index"](t)
			if _, err := f.apply(t, bytes.NewReader(data), testLimits); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(f.root(t) + strings.TrimPrefix(deep, dir) + "/" + strings.Repeat("n", 200)); err != nil || len(got) == 0 {
				t.Errorf("long name: %v", err)
			}
		})
	}
}

// estargz packs a tar as eStargz does: each piece a gzip member of its own, a table of
// contents as the last entry, and a footer that is an empty member.
func estargz(t testing.TB, es []entry) []byte {
	t.Helper()
	toc := entry{"stargz.index.json", tar.TypeReg, `{"version":1,"entries":[]}`, nil}
	var b bytes.Buffer
	for _, e := range append(append([]entry{file(".prefetch.landmark", "\x0f")}, es...), toc) {
		one := build(t, e)
		member(t, &b, one[:len(one)-1024], nil)
	}
	member(t, &b, make([]byte, 1024), nil)
	member(t, &b, nil, []byte("SG\x16\x00"+fmt.Sprintf("%016xSTARGZ", b.Len())))
	return b.Bytes()
}

func member(t testing.TB, b *bytes.Buffer, data, extra []byte) {
	t.Helper()
	w := gzip.NewWriter(b)
	w.Extra = extra
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// chunked packs a tar as zstd:chunked does: a frame per piece, then skippable frames
// with the manifest and the footer.
func chunked(t testing.TB, data []byte) []byte {
	t.Helper()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	var out []byte
	for p := range slices.Chunk(data, 700) {
		out = enc.EncodeAll(p, out)
	}
	for _, s := range []string{"manifest", "footer GNUlInUx"} {
		out = append(out, 0x50, 0x2a, 0x4d, 0x18)
		out = binary.LittleEndian.AppendUint32(out, uint32(len(s)))
		out = append(out, s...)
	}
	return out
}

// TestSeekableForms reads layers that were made to be fetched in pieces as what they are
// besides: gzip and zstd.
func TestSeekableForms(t *testing.T) { both(t, testSeekableForms) }

func testSeekableForms(t *testing.T, make func(testing.TB) form) {
	es := []entry{dir("d/"), file("d/a", strings.Repeat("body ", 1000)), link("b", "d/a")}
	plain := build(t, es...)
	skip := chunked(t, nil)
	for name, tc := range map[string]struct {
		packed []byte
		want   string // the names on top
	}{
		"eStargz":                     {estargz(t, es), ".prefetch.landmark b d stargz.index.json"},
		"zstd:chunked":                {chunked(t, plain), "b d"},
		"skippable frames come first": {append(bytes.Clone(skip), chunked(t, plain)...), "b d"},
		"plain":                       {plain, "b d"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := Decompress(bytes.NewReader(tc.packed))
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			f := make(t)
			if _, err := f.apply(t, r, testLimits); err != nil {
				t.Fatal(err)
			}
			names, err := os.ReadDir(f.root(t))
			if err != nil {
				t.Fatal(err)
			}
			got := []string{}
			for _, n := range names {
				got = append(got, n.Name())
			}
			if s := strings.Join(got, " "); s != tc.want {
				t.Errorf("got %q, want %q", s, tc.want)
			}
			if b, err := os.ReadFile(f.root(t) + "/b"); err != nil || len(b) != 5000 {
				t.Errorf("file behind it: %d bytes, %v", len(b), err)
			}
		})
	}
}

// dribble gives a stream in pieces of odd sizes.
type dribble struct {
	r io.Reader
	n int
}

func (d *dribble) Read(p []byte) (int, error) {
	d.n = d.n*7%1009 + 1
	return d.r.Read(p[:min(len(p), d.n)])
}

// TestIndexOfLargeStream crosses the pieces that are written, without root.
func TestIndexOfLargeStream(t *testing.T) {
	var es []entry
	for i := range 40 {
		es = append(es, file(fmt.Sprintf("d/%02d", i), strings.Repeat(fmt.Sprintf("%04d", i), 30000+i)))
	}
	data := append(build(t, es...), bytes.Repeat([]byte("tail"), 1<<19)...)
	f := tempFile(t)
	x, err := Index(t.Context(), f, &dribble{r: bytes.NewReader(data)}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if x.TarSize != int64(len(data)) {
		t.Errorf("size: got %d, want %d", x.TarSize, len(data))
	}
	kept := make([]byte, len(data))
	if _, err := f.ReadAt(kept, 0); err != nil || !bytes.Equal(kept, data) {
		t.Errorf("the file is not the stream: %v", err)
	}
	for i, e := range es {
		n := lookup(x.Tree, e.name)
		got := make([]byte, n.Size)
		if len(n.Extents) != 1 {
			t.Fatalf("%s: got %d extents", e.name, len(n.Extents))
		}
		if _, err := f.ReadAt(got, n.Extents[0].Offset); err != nil || string(got) != es[i].body {
			t.Errorf("%s: its extent is not its data: %v", e.name, err)
		}
	}
}

// TestIndexOfEmptyStream gives a file that can be mounted nevertheless.
func TestIndexOfEmptyStream(t *testing.T) {
	x, err := Index(t.Context(), tempFile(t), bytes.NewReader(nil), Options{})
	if err != nil || x.TarSize != 0 || x.Size != block || len(x.Tree.Children) != 0 {
		t.Errorf("got %+v, %v", x, err)
	}
}

// TestDiskFull fills a small filesystem in the middle of a file and by their number.
func TestDiskFull(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	many := []entry{}
	for i := range 300 {
		many = append(many, file(fmt.Sprintf("d%d/f", i), "x"))
	}
	for name, es := range map[string][]entry{"one file": {file("x", strings.Repeat("x", 300<<10))}, "many": many} {
		t.Run(name, func(t *testing.T) {
			at := t.TempDir()
			if err := unix.Mount("tmpfs", at, "tmpfs", 0, "size=128k,nr_inodes=100"); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := unix.Unmount(at, 0); err != nil {
					t.Errorf("unmount: %v", err)
				}
			}()
			data := build(t, es...)
			if err := os.Mkdir(at+"/l", 0o700); err != nil {
				t.Fatal(err)
			}
			if _, err := Apply(t.Context(), at+"/l", bytes.NewReader(data), Options{}); !errors.Is(err, errdef.ErrExhausted) || !errors.Is(err, unix.ENOSPC) {
				t.Errorf("apply: got %v", err)
			}
			f, err := os.OpenFile(at+"/tar", os.O_RDWR|os.O_CREATE, 0o600)
			if err != nil {
				if err := os.RemoveAll(at + "/l"); err != nil {
					t.Fatal(err)
				}
				if f, err = os.OpenFile(at+"/tar", os.O_RDWR|os.O_CREATE, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			defer f.Close()
			if _, err := Index(t.Context(), f, bytes.NewReader(data), Options{}); !errors.Is(err, errdef.ErrExhausted) || !errors.Is(err, unix.ENOSPC) {
				t.Errorf("index: got %v", err)
			}
		})
	}
}

// TestLargestXattrs holds the limits of the checks against the writer's; most filesystems
// of directories hold less.
func TestLargestXattrs(t *testing.T) {
	es := []entry{{"x", tar.TypeReg, "", attrs("user.1", strings.Repeat("v", maxXattr), "user.2", strings.Repeat("v", maxXattr), "user.3", strings.Repeat("v", maxXattr))},
		{"y/", tar.TypeDir, "", attrs("user."+strings.Repeat("n", 250), "v", "user.empty", "")}}
	f := forms["index"](t).(*indexForm)
	mustApply(t, f, es...)
	if _, err := erofs.Write(io.Discard, f.x.Tree, erofs.Options{DeviceSize: f.x.Size}); err != nil {
		t.Errorf("what the checks accept the writer refuses: %v", err)
	}
}
