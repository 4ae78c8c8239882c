package layer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

var when = time.Unix(1600000000, 123)

func header(name string, kind byte) *tar.Header {
	return &tar.Header{Name: name, Typeflag: kind, Mode: 0o644, ModTime: when, Format: tar.FormatPAX}
}

// entry is a header with a body; edit adjusts the header.
type entry struct {
	name string
	kind byte
	body string
	edit func(*tar.Header)
}

func build(t testing.TB, es ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range es {
		h := header(e.name, e.kind)
		h.Size = int64(len(e.body))
		if e.edit != nil {
			e.edit(h)
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("write header of %q: %v", e.name, err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func to(target string) func(*tar.Header) { return func(h *tar.Header) { h.Linkname = target } }

func stat(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("lstat %s: %v", path, err)
	}
	return st
}

func TestAttributes(t *testing.T) { both(t, testAttributes) }

func testAttributes(t *testing.T, make func(testing.TB) form) {
	f := make(t)
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	res := mustApply(t, f,
		entry{"./", tar.TypeDir, "", func(h *tar.Header) { h.Mode, h.Uid = 0o711, 5 }},
		entry{"d/", tar.TypeDir, "", func(h *tar.Header) { h.Mode, h.Uid, h.Gid = 0o1770, 1000, 1001 }},
		entry{"/d/file", tar.TypeReg, "body", func(h *tar.Header) {
			h.Mode, h.Uid, h.Gid = 0o6755, 3, 4
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.x": "1", "SCHILY.xattr.security.capability": capability,
				"SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.security.selinux": "x"}
		}},
		entry{"d/link", tar.TypeLink, "", to("d/file")},
		entry{"d/sym", tar.TypeSymlink, "", to("/nowhere")},
		entry{"d/fifo", tar.TypeFifo, "", nil},
		entry{"d/null", tar.TypeChar, "", func(h *tar.Header) { h.Devmajor, h.Devminor, h.Mode = 1, 3, 0o666 }},
		entry{"d/" + strings.Repeat("n", 200), tar.TypeReg, "long", nil},
		entry{"empty", tar.TypeReg, "", nil})

	dir := f.root(t)
	if res.Root == nil || res.Root.Mode != 0o711 || res.Root.UID != 5 {
		t.Errorf("root: got %+v", res.Root)
	}
	if len(res.Implied) != 0 {
		t.Errorf("implied: got %v, want none", res.Implied)
	}
	if st := stat(t, dir+"/d"); st.Mode != unix.S_IFDIR|0o1770 || st.Uid != 1000 || st.Gid != 1001 || st.Mtim.Sec != when.Unix() {
		t.Errorf("d: got %+v", st)
	}
	st := stat(t, dir+"/d/file")
	if st.Mode != unix.S_IFREG|0o6755 || st.Uid != 3 || st.Gid != 4 || st.Nlink != 2 || st.Mtim.Nano() != when.UnixNano() {
		t.Errorf("file: got %+v", st)
	}
	if st := stat(t, dir+"/d/null"); st.Mode != unix.S_IFCHR|0o666 || st.Rdev != unix.Mkdev(1, 3) {
		t.Errorf("null: got %+v", st)
	}
	if st := stat(t, dir+"/d/sym"); st.Mode&unix.S_IFMT != unix.S_IFLNK || st.Mtim.Sec != when.Unix() {
		t.Errorf("sym: got %+v", st)
	}
	got := listXattrs(t, dir+"/d/file")
	for name, want := range map[string]bool{"user.x": true, "security.capability": true, "trusted.overlay.redirect": false, "user.overlay.opaque": false} {
		if has := strings.Contains(got, name+"="); has != want {
			t.Errorf("attribute %s: got %v, want %v", name, has, want)
		}
	}
	if res.Inodes != 7 || res.Bytes < 2*block {
		t.Errorf("size: got %d inodes, %d bytes", res.Inodes, res.Bytes)
	}
}

// needOverlayOver: overlays over detached mounts came with 6.15.
func needOverlayOver(t *testing.T, layer string) {
	t.Helper()
	if strings.HasPrefix(layer, "/proc/") {
		testkit.Need(t, testkit.Kernel(6, 15))
	}
}

// merge merges layers, bottom first, and gives the mount point.
func merge(t *testing.T, layers ...string) string {
	t.Helper()
	testkit.Need(t, testkit.Overlay)
	at := t.TempDir()
	lower := ""
	for _, l := range layers {
		needOverlayOver(t, l)
		lower = l + ":" + lower
	}
	lower += t.TempDir() // overlay wants two
	if err := unix.Mount("overlay", at, "overlay", 0, "lowerdir="+strings.TrimSuffix(lower, ":")); err != nil {
		t.Fatalf("mount overlay of %s: %v", lower, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return at
}

func listing(t *testing.T, dir string) string {
	t.Helper()
	var out []string
	err := filepath.Walk(dir, func(p string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		if p != dir {
			rel := strings.TrimPrefix(p, dir+"/")
			if fi.IsDir() {
				rel += "/"
			} else if fi.Mode().IsRegular() {
				b, err := os.ReadFile(p)
				if err != nil {
					return err
				}
				rel += "=" + string(b)
			}
			out = append(out, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, " ")
}

func TestMergedView(t *testing.T) { both(t, testMergedView) }

func testMergedView(t *testing.T, make func(testing.TB) form) {
	lower := []entry{{"d/", tar.TypeDir, "", nil}, {"d/a", tar.TypeReg, "1", nil}, {"d/b", tar.TypeReg, "1", nil}, {"f", tar.TypeReg, "1", nil}}
	for name, tc := range map[string]struct {
		upper []entry
		want  string
	}{
		"whiteout":                            {[]entry{{"d/.wh.a", tar.TypeReg, "", nil}}, "d/ d/b=1 f=1"},
		"whiteout of a directory":             {[]entry{{".wh.d", tar.TypeReg, "", nil}}, "f=1"},
		"whiteout in a new directory":         {[]entry{{"n/.wh.a", tar.TypeReg, "", nil}, {"n/b", tar.TypeReg, "2", nil}}, "d/ d/a=1 d/b=1 f=1 n/ n/b=2"},
		"whiteout before its new directory":   {[]entry{{"n/.wh.a", tar.TypeReg, "", nil}, {"n/", tar.TypeDir, "", nil}, {"n/b", tar.TypeReg, "2", nil}}, "d/ d/a=1 d/b=1 f=1 n/ n/b=2"},
		"whiteout in an opaque directory":     {[]entry{{"d/.wh.a", tar.TypeReg, "", nil}, {"d/.wh..wh..opq", tar.TypeReg, "", nil}, {"d/c", tar.TypeReg, "2", nil}}, "d/ d/c=2 f=1"},
		"opaque marker first":                 {[]entry{{"d/", tar.TypeDir, "", nil}, {"d/.wh..wh..opq", tar.TypeReg, "", nil}, {"d/c", tar.TypeReg, "2", nil}}, "d/ d/c=2 f=1"},
		"opaque marker last":                  {[]entry{{"d/c", tar.TypeReg, "2", nil}, {"d/.wh..wh..opq", tar.TypeReg, "", nil}}, "d/ d/c=2 f=1"},
		"whiteout then the file":              {[]entry{{"d/.wh.a", tar.TypeReg, "", nil}, {"d/a", tar.TypeReg, "2", nil}}, "d/ d/a=2 d/b=1 f=1"},
		"file then its whiteout":              {[]entry{{"d/a", tar.TypeReg, "2", nil}, {"d/.wh.a", tar.TypeReg, "", nil}}, "d/ d/a=2 d/b=1 f=1"},
		"whiteout then a directory":           {[]entry{{".wh.d", tar.TypeReg, "", nil}, {"d/", tar.TypeDir, "", nil}, {"d/c", tar.TypeReg, "2", nil}}, "d/ d/c=2 f=1"},
		"whiteout then an implied directory":  {[]entry{{".wh.d", tar.TypeReg, "", nil}, {"d/c", tar.TypeReg, "2", nil}}, "d/ d/c=2 f=1"},
		"directory then its whiteout":         {[]entry{{"d/", tar.TypeDir, "", nil}, {"d/c", tar.TypeReg, "2", nil}, {".wh.d", tar.TypeReg, "", nil}}, "d/ d/c=2 f=1"},
		"file over directory":                 {[]entry{{"d", tar.TypeReg, "2", nil}}, "d=2 f=1"},
		"directory over file":                 {[]entry{{"f/", tar.TypeDir, "", nil}, {"f/x", tar.TypeReg, "2", nil}}, "d/ d/a=1 d/b=1 f/ f/x=2"},
		"duplicate file":                      {[]entry{{"f", tar.TypeReg, "2", nil}, {"f", tar.TypeReg, "3", nil}}, "d/ d/a=1 d/b=1 f=3"},
		"file to directory within the layer":  {[]entry{{"n", tar.TypeReg, "2", nil}, {"n/", tar.TypeDir, "", nil}, {"n/x", tar.TypeReg, "3", nil}}, "d/ d/a=1 d/b=1 f=1 n/ n/x=3"},
		"directory to file within the layer":  {[]entry{{"n/x", tar.TypeReg, "2", nil}, {"n", tar.TypeReg, "3", nil}}, "d/ d/a=1 d/b=1 f=1 n=3"},
		"through a link of the layer":         {[]entry{{"usr/lib/", tar.TypeDir, "", nil}, {"lib", tar.TypeSymlink, "", to("/usr/lib")}, {"lib/x", tar.TypeReg, "2", nil}}, "d/ d/a=1 d/b=1 f=1 lib usr/ usr/lib/ usr/lib/x=2"},
		"aufs bookkeeping":                    {[]entry{{".wh..wh.plnk", tar.TypeReg, "", nil}}, "d/ d/a=1 d/b=1 f=1"},
		"hard link to itself and over a file": {[]entry{{"x", tar.TypeReg, "2", nil}, {"x", tar.TypeLink, "", to("x")}, {"y", tar.TypeReg, "3", nil}, {"y", tar.TypeLink, "", to("/x")}}, "d/ d/a=1 d/b=1 f=1 x=2 y=2"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := listing(t, merge(t, layerOf(t, make(t), lower...), layerOf(t, make(t), tc.upper...))); got != tc.want {
				t.Errorf("merged: got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestHostileLayers(t *testing.T) { both(t, testHostileLayers) }

func testHostileLayers(t *testing.T, make func(testing.TB) form) {
	big := func(h *tar.Header) { h.Uid = 1 << 32 }
	for name, es := range map[string][]entry{
		"upwards":                       {{"../out", tar.TypeReg, "x", nil}},
		"upwards inside":                {{"a/../../out", tar.TypeReg, "x", nil}},
		"through an upward link":        {{"l", tar.TypeSymlink, "", to("../OUT")}, {"l/out", tar.TypeReg, "x", nil}},
		"through an absolute link":      {{"l", tar.TypeSymlink, "", to("/OUT")}, {"l/out", tar.TypeReg, "x", nil}},
		"directory through a link":      {{"l", tar.TypeSymlink, "", to("/OUT")}, {"l/sub/x", tar.TypeDir, "", nil}},
		"whiteout through a link":       {{"l", tar.TypeSymlink, "", to("/OUT")}, {"l/.wh.canary", tar.TypeReg, "", nil}},
		"opaque through a link":         {{"l", tar.TypeSymlink, "", to("/OUT")}, {"l/.wh..wh..opq", tar.TypeReg, "", nil}},
		"through a chain of links":      {{"a", tar.TypeSymlink, "", to("b")}, {"b", tar.TypeSymlink, "", to("/OUT")}, {"a/out", tar.TypeReg, "x", nil}},
		"hard link out":                 {{"h", tar.TypeLink, "", to("/OUT/canary")}},
		"hard link upwards":             {{"h", tar.TypeLink, "", to("../canary")}},
		"hard link through a link":      {{"l", tar.TypeSymlink, "", to("/OUT")}, {"h", tar.TypeLink, "", to("l/canary")}},
		"hard link to the root":         {{"h", tar.TypeLink, "", to("/")}},
		"whiteout of dot":               {{".wh..", tar.TypeReg, "", nil}},
		"whiteout of dot dot":           {{".wh...", tar.TypeReg, "", nil}},
		"whiteout of nothing":           {{".wh.", tar.TypeReg, "", nil}},
		"owner beyond 32 bits":          {{"f", tar.TypeReg, "", big}},
		"root that is a file":           {{".", tar.TypeReg, "", nil}},
		"file in place of its own root": {{"/", tar.TypeSymlink, "", to("/OUT")}},
		"too many bytes":                {{"f", tar.TypeReg, strings.Repeat("x", 600<<10), nil}, {"g", tar.TypeReg, strings.Repeat("x", 600<<10), nil}},
	} {
		t.Run(name, func(t *testing.T) {
			top := t.TempDir()
			out, dir := filepath.Join(top, "OUT"), filepath.Join(top, "layer")
			for _, d := range []string{out, dir} {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			for _, f := range []string{top + "/canary", out + "/canary"} {
				if err := os.WriteFile(f, []byte("alive"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			es = slices.Clone(es)
			for i := range es { // links aim at the real place
				if es[i].edit != nil {
					inner := es[i].edit
					es[i].edit = func(h *tar.Header) { inner(h); h.Linkname = strings.Replace(h.Linkname, "/OUT", out, 1) }
				}
			}
			f := make(t)
			if d, ok := f.(*dirForm); ok {
				d.dir = dir
			}
			_, err := apply(t, f, es...)
			if err == nil {
				_, err = f.settle(t, []string{t.TempDir()}, 0)
			}
			if err == nil {
				t.Error("apply: got no error")
			} else if !errors.Is(err, errdef.ErrInvalid) && !errors.Is(err, errdef.ErrExhausted) {
				t.Errorf("apply: got kind of %v", err)
			}
			checkOutside(t, top)
		})
	}
}

// checkOutside fails when something beside the layer changed.
func checkOutside(t testing.TB, top string) {
	t.Helper()
	es, err := os.ReadDir(top)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range es {
		names = append(names, e.Name())
	}
	outs, err := os.ReadDir(filepath.Join(top, "OUT"))
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(names, len(outs)); got != "[OUT canary layer] 1" {
		t.Errorf("outside the layer: got %s", got)
	}
	for _, f := range []string{"canary", "OUT/canary"} {
		st := stat(t, filepath.Join(top, f))
		b, err := os.ReadFile(filepath.Join(top, f))
		if err != nil || string(b) != "alive" || st.Nlink != 1 || st.Mode != unix.S_IFREG|0o600 {
			t.Errorf("%s: got %q, %+v, %v", f, b, st, err)
		}
	}
}

func TestImpliedDirectoriesInherit(t *testing.T) { both(t, testImpliedDirectoriesInherit) }

func testImpliedDirectoriesInherit(t *testing.T, make func(testing.TB) form) {
	owner := func(h *tar.Header) { h.Mode, h.Uid, h.Gid = 0o1777, 11, 12 }
	a := layerOf(t, make(t), entry{"tmp/", tar.TypeDir, "", owner}, entry{"gone/", tar.TypeDir, "", owner}, entry{"gone/x/", tar.TypeDir, "", owner})
	b := layerOf(t, make(t), entry{".wh.gone", tar.TypeReg, "", nil})
	f := make(t)
	res := mustApply(t, f, entry{"tmp/x", tar.TypeReg, "", nil}, entry{"gone/x/y", tar.TypeReg, "", nil}, entry{"new/y", tar.TypeReg, "", nil})
	if got := fmt.Sprint(res.Implied); got != "[tmp gone gone/x new]" {
		t.Errorf("implied: got %s", got)
	}
	if _, err := f.settle(t, []string{b, a}, 0); err != nil {
		t.Fatal(err)
	}
	c := f.root(t)
	if st := stat(t, c+"/tmp"); st.Mode != unix.S_IFDIR|0o1777 || st.Uid != 11 || st.Mtim.Sec != when.Unix() {
		t.Errorf("tmp: got %+v", st)
	}
	for _, d := range []string{"/gone", "/gone/x", "/new"} {
		if st := stat(t, c+d); st.Mode != unix.S_IFDIR|0o755 || st.Uid != 0 {
			t.Errorf("%s: got mode %o, owner %d, want those of nothing", d, st.Mode, st.Uid)
		}
	}
}

func TestDamagedStreams(t *testing.T) { both(t, testDamagedStreams) }

func testDamagedStreams(t *testing.T, make func(testing.TB) form) {
	plain := build(t, entry{"f", tar.TypeReg, strings.Repeat("body ", 10000), nil})
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	_, _ = w.Write(plain)
	_ = w.Close()
	broke := errors.New("connection broke")
	flip := func(b []byte, i int) []byte { b = bytes.Clone(b); b[i] ^= 0xff; return b }
	for name, tc := range map[string]struct {
		r    func() io.Reader
		want error
	}{
		"whole":               {func() io.Reader { return bytes.NewReader(z.Bytes()) }, nil},
		"empty":               {func() io.Reader { return bytes.NewReader(nil) }, nil},
		"gzip damaged":        {func() io.Reader { return bytes.NewReader(flip(z.Bytes(), z.Len()/2)) }, errdef.ErrInvalid},
		"gzip checksum":       {func() io.Reader { return bytes.NewReader(flip(z.Bytes(), z.Len()-6)) }, errdef.ErrInvalid},
		"gzip header":         {func() io.Reader { return bytes.NewReader(flip(z.Bytes(), 2)) }, errdef.ErrInvalid},
		"gzip cut":            {func() io.Reader { return bytes.NewReader(z.Bytes()[:z.Len()-20]) }, errdef.ErrInvalid},
		"tar cut in its data": {func() io.Reader { return bytes.NewReader(plain[:len(plain)-20000]) }, errdef.ErrInvalid},
		"tar header":          {func() io.Reader { return bytes.NewReader(flip(plain, 150)) }, errdef.ErrInvalid},
		"no tar":              {func() io.Reader { return strings.NewReader(strings.Repeat("x", 2000)) }, errdef.ErrInvalid},
		"transfer broke":      {func() io.Reader { return io.MultiReader(bytes.NewReader(z.Bytes()[:50]), iotest.ErrReader(broke)) }, broke},
		"transfer at start":   {func() io.Reader { return iotest.ErrReader(broke) }, broke},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := Decompress(tc.r())
			if err == nil {
				_, err = make(t).apply(t, r, Options{})
				_ = r.Close()
			}
			if !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}
