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

func apply(t testing.TB, dir string, es ...entry) (*Result, error) {
	t.Helper()
	return Apply(t.Context(), dir, bytes.NewReader(build(t, es...)), Options{MaxBytes: 1 << 20, MaxEntries: 1000})
}

func mustApply(t testing.TB, dir string, es ...entry) *Result {
	t.Helper()
	res, err := apply(t, dir, es...)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func stat(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("lstat %s: %v", path, err)
	}
	return st
}

func TestAttributes(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	dir := t.TempDir()
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	res := mustApply(t, dir,
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
	names := make([]byte, 1024)
	n, err := unix.Llistxattr(dir+"/d/file", names)
	if err != nil {
		t.Fatal(err)
	}
	got := string(names[:n])
	for name, want := range map[string]bool{"user.x": true, "security.capability": true, "trusted.overlay.redirect": false, "user.overlay.opaque": false} {
		if has := strings.Contains(got, name+"\x00"); has != want {
			t.Errorf("attribute %s: got %v, want %v", name, has, want)
		}
	}
	if res.Inodes != 7 || res.Bytes < 2*block {
		t.Errorf("size: got %d inodes, %d bytes", res.Inodes, res.Bytes)
	}
}

// mount merges layers, bottom first, and gives the mount point.
func mount(t *testing.T, layers ...string) string {
	t.Helper()
	testkit.Need(t, testkit.Overlay)
	at := t.TempDir()
	lower := ""
	for _, l := range layers {
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

func TestMergedView(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	lower := []entry{{"d/", tar.TypeDir, "", nil}, {"d/a", tar.TypeReg, "1", nil}, {"d/b", tar.TypeReg, "1", nil}, {"f", tar.TypeReg, "1", nil}}
	for name, tc := range map[string]struct {
		upper []entry
		want  string
	}{
		"whiteout":                            {[]entry{{"d/.wh.a", tar.TypeReg, "", nil}}, "d/ d/b=1 f=1"},
		"whiteout of a directory":             {[]entry{{".wh.d", tar.TypeReg, "", nil}}, "f=1"},
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
			l, u := t.TempDir(), t.TempDir()
			mustApply(t, l, lower...)
			mustApply(t, u, tc.upper...)
			if got := listing(t, mount(t, l, u)); got != tc.want {
				t.Errorf("merged: got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestHostileLayers(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
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
			for i := range es { // links aim at the real place
				if es[i].edit != nil {
					inner := es[i].edit
					es[i].edit = func(h *tar.Header) { inner(h); h.Linkname = strings.Replace(h.Linkname, "/OUT", out, 1) }
				}
			}
			res, err := apply(t, dir, es...)
			if err == nil {
				_, err = Settle(dir, []string{t.TempDir()}, res.Open, 0)
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

func TestImpliedDirectoriesInherit(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	a, b, c := t.TempDir(), t.TempDir(), t.TempDir()
	owner := func(h *tar.Header) { h.Mode, h.Uid, h.Gid = 0o1777, 11, 12 }
	mustApply(t, a, entry{"tmp/", tar.TypeDir, "", owner}, entry{"gone/", tar.TypeDir, "", owner}, entry{"gone/x/", tar.TypeDir, "", owner})
	mustApply(t, b, entry{".wh.gone", tar.TypeReg, "", nil})
	res := mustApply(t, c, entry{"tmp/x", tar.TypeReg, "", nil}, entry{"gone/x/y", tar.TypeReg, "", nil}, entry{"new/y", tar.TypeReg, "", nil})
	if got := fmt.Sprint(res.Implied); got != "[tmp gone gone/x new]" {
		t.Errorf("implied: got %s", got)
	}
	if _, err := Settle(c, []string{b, a}, res.Open, 0); err != nil {
		t.Fatal(err)
	}
	if st := stat(t, c+"/tmp"); st.Mode != unix.S_IFDIR|0o1777 || st.Uid != 11 || st.Mtim.Sec != when.Unix() {
		t.Errorf("tmp: got %+v", st)
	}
	for _, d := range []string{"/gone", "/gone/x", "/new"} {
		if st := stat(t, c+d); st.Mode != unix.S_IFDIR|0o755 || st.Uid != 0 {
			t.Errorf("%s: got mode %o, owner %d, want those of nothing", d, st.Mode, st.Uid)
		}
	}
}

func TestDamagedStreams(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	plain := build(t, entry{"f", tar.TypeReg, strings.Repeat("body ", 10000), nil})
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	_, _ = w.Write(plain)
	_ = w.Close()
	broke := errors.New("connection broke")
	flip := func(b []byte, i int) []byte { b = bytes.Clone(b); b[i] ^= 0xff; return b }
	for name, tc := range map[string]struct {
		r    io.Reader
		want error
	}{
		"whole":             {bytes.NewReader(z.Bytes()), nil},
		"empty":             {bytes.NewReader(nil), nil},
		"gzip damaged":      {bytes.NewReader(flip(z.Bytes(), z.Len()/2)), errdef.ErrInvalid},
		"gzip checksum":     {bytes.NewReader(flip(z.Bytes(), z.Len()-6)), errdef.ErrInvalid},
		"gzip header":       {bytes.NewReader(flip(z.Bytes(), 2)), errdef.ErrInvalid},
		"gzip cut":          {bytes.NewReader(z.Bytes()[:z.Len()-20]), errdef.ErrInvalid},
		"tar header":        {bytes.NewReader(flip(plain, 150)), errdef.ErrInvalid},
		"no tar":            {strings.NewReader(strings.Repeat("x", 2000)), errdef.ErrInvalid},
		"transfer broke":    {io.MultiReader(bytes.NewReader(z.Bytes()[:50]), iotest.ErrReader(broke)), broke},
		"transfer at start": {iotest.ErrReader(broke), broke},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := Decompress(tc.r)
			if err == nil {
				_, err = Apply(t.Context(), t.TempDir(), r, Options{})
				_ = r.Close()
			}
			if !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

func FuzzApply(f *testing.F) {
	testkit.Need(f, testkit.Root)
	f.Add(build(f, entry{"d/", tar.TypeDir, "", nil}, entry{"d/a", tar.TypeReg, "1", nil}, entry{"d/.wh.b", tar.TypeReg, "", nil}))
	f.Add(build(f, entry{"l", tar.TypeSymlink, "", to("/OUT")}, entry{"l/a", tar.TypeReg, "1", nil}, entry{"h", tar.TypeLink, "", to("l/canary")}))
	f.Add(build(f, entry{"a", tar.TypeReg, "1", nil}, entry{"a/", tar.TypeDir, "", nil}, entry{"a", tar.TypeSymlink, "", to("../canary")}))
	f.Add(build(f, entry{"x", tar.TypeLink, "", to("d/a")}, entry{"d/a", tar.TypeSymlink, "", to("x")}, entry{"y", tar.TypeLink, "", to("x")}))
	f.Fuzz(func(t *testing.T, data []byte) {
		top := t.TempDir()
		for _, d := range []string{"OUT", "layer"} {
			if err := os.Mkdir(filepath.Join(top, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range []string{"canary", "OUT/canary"} {
			if err := os.WriteFile(filepath.Join(top, p), []byte("alive"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		lower := filepath.Join(t.TempDir(), "lower")
		if err := os.Mkdir(lower, 0o755); err != nil {
			t.Fatal(err)
		}
		mustApply(t, lower, entry{"d/", tar.TypeDir, "", nil}, entry{"d/a", tar.TypeReg, "1", nil}, entry{"a", tar.TypeReg, "2", nil})
		dir := filepath.Join(top, "layer")
		res, err := Apply(t.Context(), dir, bytes.NewReader(data), Options{MaxBytes: 1 << 20, MaxEntries: 100})
		if err == nil {
			_, _ = Settle(dir, []string{lower}, res.Open, 1<<20)
		}
		checkOutside(t, top)
	})
}
