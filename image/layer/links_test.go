package layer

import (
	"archive/tar"
	"errors"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

func owner(uid int, mode int64) func(*tar.Header) {
	return func(h *tar.Header) { h.Uid, h.Gid, h.Mode = uid, uid+1, mode }
}

// lowers makes two layers: the upper of them deletes and hides some of the lower.
func lowers(t *testing.T, make func(testing.TB) form) (bottom, middle string) {
	t.Helper()
	bottom = layerOf(t, make(t),
		entry{"d/", tar.TypeDir, "", owner(7, 0o1750)},
		entry{"d/a", tar.TypeReg, strings.Repeat("lower", 3000), func(h *tar.Header) {
			owner(3, 0o6755)(h)
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.x": "1", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
		}},
		entry{"d/sym", tar.TypeSymlink, "", to("/nowhere")},
		entry{"d/null", tar.TypeChar, "", func(h *tar.Header) { h.Devmajor, h.Devminor, h.Mode = 1, 3, 0o666 }},
		entry{"f", tar.TypeReg, "one", nil},
		entry{"gone", tar.TypeReg, "1", nil},
		entry{"o/x", tar.TypeReg, "1", nil})
	middle = layerOf(t, make(t), entry{".wh.gone", tar.TypeReg, "", nil}, entry{"f", tar.TypeReg, "two", nil}, entry{"o/.wh..wh..opq", tar.TypeReg, "", nil})
	return bottom, middle
}

// settled is the root of a layer of entries on top of others.
func settled(t testing.TB, f form, lowers []string, es ...entry) string {
	t.Helper()
	mustApply(t, f, es...)
	if _, err := f.settle(t, lowers, 0); err != nil {
		t.Fatal(err)
	}
	return f.root(t)
}

// linkDump is dump without the root, what the kernel notes for itself, and the times of
// directories, which link(2) changes.
func linkDump(t *testing.T, at string) string {
	t.Helper()
	_, s, _ := strings.Cut(dump(t, at), "\n")
	s = regexp.MustCompile(` trusted\.overlay\.(origin|impure)=\S+`).ReplaceAllString(s, "") // the kernel's notes
	return regexp.MustCompile(`(?m)^(\S+ 4\d+ .*) mtime \S+`).ReplaceAllString(s, "$1")
}

// TestLinksToLowerFiles compares a layer with what the kernel makes of the same links in
// an overlay over the same layers.
func TestLinksToLowerFiles(t *testing.T) { both(t, testLinksToLowerFiles) }

func testLinksToLowerFiles(t *testing.T, make func(testing.TB) form) {
	for name, links := range map[string][][2]string{ // target, name
		"one":               {{"d/a", "n"}},
		"in the same place": {{"d/a", "d/n"}},
		"the topmost":       {{"f", "n"}},
		"several names":     {{"d/a", "n"}, {"d/a", "d/m"}, {"n", "k"}},
		"several targets":   {{"d/a", "n"}, {"f", "m"}},
		"symbolic link":     {{"d/sym", "n"}},
		"device":            {{"d/null", "d/n"}},
	} {
		t.Run(name, func(t *testing.T) {
			bottom, middle := lowers(t, make)
			want := t.TempDir()
			var es []entry
			at := t.TempDir()
			needOverlayOver(t, middle)
			err := unix.Mount("overlay", at, "overlay", 0, "lowerdir="+middle+":"+bottom+",upperdir="+want+",workdir="+t.TempDir())
			if err != nil && strings.Contains(err.Error(), "invalid") {
				t.Skip("upper and work directory are on different filesystems")
			} else if err != nil {
				t.Fatal(err)
			}
			for _, l := range links {
				es = append(es, entry{l[1], tar.TypeLink, "", to(l[0])})
				if e := unix.Linkat(unix.AT_FDCWD, filepath.Join(at, l[0]), unix.AT_FDCWD, filepath.Join(at, l[1]), 0); e != nil {
					err = e
				}
			}
			if e := unix.Unmount(at, 0); e != nil || err != nil {
				t.Fatal(e, err)
			}
			top := settled(t, make(t), []string{middle, bottom}, es...)
			if got, want := linkDump(t, top), linkDump(t, want); got != want {
				t.Errorf("layer: got\n%s\nwant, as the kernel has it,\n%s", got, want)
			}
			if got, want := linkDump(t, merge(t, bottom, middle, top)), linkDump(t, merge(t, bottom, middle, want)); got != want {
				t.Errorf("merged: got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestEntriesAfterALinkToALowerFile(t *testing.T) { both(t, testEntriesAfterALinkToALowerFile) }

func testEntriesAfterALinkToALowerFile(t *testing.T, make func(testing.TB) form) {
	n := entry{"n", tar.TypeLink, "", to("f")}
	for name, tc := range map[string]struct {
		es   []entry
		want string // of what is not below d
	}{
		"target replaced":     {[]entry{n, {"f", tar.TypeReg, "3", nil}}, "f=3 n=two o/"},
		"name replaced":       {[]entry{n, {"n", tar.TypeReg, "3", nil}}, "f=two n=3 o/"},
		"both replaced":       {[]entry{n, {"n", tar.TypeReg, "3", nil}, {"f", tar.TypeReg, "4", nil}}, "f=4 n=3 o/"},
		"link to the name":    {[]entry{n, {"m", tar.TypeLink, "", to("n")}, {"n", tar.TypeReg, "3", nil}}, "f=two m=two n=3 o/"},
		"name twice":          {[]entry{n, n}, "f=two n=two o/"},
		"over a file":         {[]entry{{"n", tar.TypeReg, "3", nil}, n}, "f=two n=two o/"},
		"over a directory":    {[]entry{{"n/x", tar.TypeReg, "3", nil}, n}, "f=two n=two o/"},
		"directory over name": {[]entry{n, {"n/", tar.TypeDir, "", nil}, {"n/x", tar.TypeReg, "3", nil}}, "f=two n/ n/x=3 o/"},
		"below a new one":     {[]entry{{"p/", tar.TypeDir, "", owner(9, 0o700)}, {"p/n", tar.TypeLink, "", to("/f")}}, "f=two o/ p/ p/n=two"},
		"by a link in here":   {[]entry{{"o/", tar.TypeDir, "", nil}, {"s", tar.TypeSymlink, "", to("o")}, {"o/n", tar.TypeLink, "", to("f")}, {"s/m", tar.TypeLink, "", to("s/n")}}, "f=two o/ o/m=two o/n=two s"},
	} {
		t.Run(name, func(t *testing.T) {
			bottom, middle := lowers(t, make)
			top := settled(t, make(t), []string{middle, bottom}, tc.es...)
			at := merge(t, bottom, middle, top)
			var got []string
			for s := range strings.SplitSeq(listing(t, at), " ") {
				if !strings.HasPrefix(s, "d/") {
					got = append(got, s)
				}
			}
			if s := strings.Join(got, " "); s != tc.want {
				t.Errorf("merged: got %q, want %q", s, tc.want)
			}
		})
	}
}

func TestLinkAttributesOfDirectories(t *testing.T) { both(t, testLinkAttributesOfDirectories) }

func testLinkAttributesOfDirectories(t *testing.T, make func(testing.TB) form) {
	bottom, middle := lowers(t, make)
	f := make(t)
	mustApply(t, f, entry{"./", tar.TypeDir, "", nil}, entry{"q/", tar.TypeDir, "", owner(9, 0o700)}, entry{"q/n", tar.TypeLink, "", to("d/a")})
	bytes, err := f.settle(t, []string{middle, bottom}, 20000)
	if err != nil || bytes != 4*block {
		t.Fatalf("settle: got %d bytes, %v, want %d", bytes, err, 4*block)
	}
	top := f.root(t)
	if st := stat(t, top+"/d"); st.Mode != unix.S_IFDIR|0o1750 || st.Uid != 7 || st.Mtim.Nano() != when.UnixNano() {
		t.Errorf("the target's directory: got %+v, want as below", st)
	}
	for _, d := range []string{"", "/q"} {
		if st := stat(t, top+d); st.Mtim.Nano() != when.UnixNano() {
			t.Errorf("time of %q: got %v, want the stream's", d, st.Mtim)
		}
	}
	f = make(t)
	mustApply(t, f, entry{"n", tar.TypeLink, "", to("d/a")})
	if _, err := f.settle(t, []string{middle, bottom}, 14999); !errors.Is(err, errdef.ErrExhausted) {
		t.Errorf("copy above the limit: got %v", err)
	}
}

func TestLinksToNothing(t *testing.T) { both(t, testLinksToNothing) }

func testLinksToNothing(t *testing.T, make func(testing.TB) form) {
	for name, es := range map[string][]entry{
		"nowhere":                  {{"n", tar.TypeLink, "", to("no")}},
		"no directory":             {{"n", tar.TypeLink, "", to("no/x")}},
		"below a file":             {{"n", tar.TypeLink, "", to("f/x")}},
		"deleted below":            {{"n", tar.TypeLink, "", to("gone")}},
		"hidden below":             {{"n", tar.TypeLink, "", to("o/x")}},
		"deleted here":             {{".wh.f", tar.TypeReg, "", nil}, {"n", tar.TypeLink, "", to("f")}},
		"deleted with its parent":  {{".wh.d", tar.TypeReg, "", nil}, {"n", tar.TypeLink, "", to("d/a")}},
		"parent made anew":         {{".wh.d", tar.TypeReg, "", nil}, {"d/", tar.TypeDir, "", nil}, {"n", tar.TypeLink, "", to("d/a")}},
		"hidden here":              {{"d/.wh..wh..opq", tar.TypeReg, "", nil}, {"n", tar.TypeLink, "", to("d/a")}},
		"everything hidden":        {{".wh..wh..opq", tar.TypeReg, "", nil}, {"n", tar.TypeLink, "", to("f")}},
		"a directory below":        {{"n", tar.TypeLink, "", to("d")}},
		"a directory here":         {{"e/", tar.TypeDir, "", nil}, {"n", tar.TypeLink, "", to("e")}},
		"below its own name":       {{"d", tar.TypeLink, "", to("d/a")}},
		"by a link that ends here": {{"s", tar.TypeSymlink, "", to("/no")}, {"n", tar.TypeLink, "", to("s/x")}},
	} {
		t.Run(name, func(t *testing.T) {
			bottom, middle := lowers(t, make)
			f := make(t)
			_, err := apply(t, f, es...)
			if err == nil {
				_, err = f.settle(t, []string{middle, bottom}, 0)
			}
			if !errors.Is(err, errdef.ErrInvalid) {
				t.Errorf("got %v, want invalid", err)
			}
		})
	}
}
