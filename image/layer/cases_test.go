package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// attrs gives a header extended attributes: names and values by turns.
func attrs(kv ...string) func(*tar.Header) {
	return func(h *tar.Header) {
		h.PAXRecords = map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			h.PAXRecords["SCHILY.xattr."+kv[i]] = kv[i+1]
		}
	}
}

// acl builds what the kernel calls a posix_acl_xattr: tag, permission, id by turns.
func acl(es ...int) string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for i := 0; i < len(es); i += 3 {
		b = binary.LittleEndian.AppendUint16(b, uint16(es[i]))
		b = binary.LittleEndian.AppendUint16(b, uint16(es[i+1]))
		b = binary.LittleEndian.AppendUint32(b, uint32(es[i+2]))
	}
	return string(b)
}

var (
	capV2  = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	capV3  = "\x01\x00\x00\x03\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00"
	named  = acl(1, 7, -1, 2, 6, 1000, 4, 5, -1, 16, 4, -1, 32, 1, -1)
	long   = strings.Repeat("long", 30)
	simple = acl(1, 7, -1, 4, 5, -1, 32, 1, -1)
)

func file(name, body string) entry { return entry{name, tar.TypeReg, body, nil} }
func dir(name string) entry        { return entry{name, tar.TypeDir, "", nil} }
func link(name, target string) entry {
	return entry{name, tar.TypeLink, "", to(target)}
}
func symlink(name, target string) entry { return entry{name, tar.TypeSymlink, "", to(target)} }

func device(kind byte, name string, major, minor int64) entry {
	return entry{name, kind, "", func(h *tar.Header) { h.Devmajor, h.Devminor = major, minor }}
}

// cases are layers on top of base; both forms must show the same, or refuse.
var cases = map[string][]entry{
	"nothing":           {},
	"root only":         {{"./", tar.TypeDir, "", owner(4, 0o1751)}},
	"root with xattrs":  {{"/", tar.TypeDir, "", attrs("user.x", "1", defaultACL, simple)}},
	"root twice":        {{"./", tar.TypeDir, "", owner(4, 0o1751)}, {".", tar.TypeDir, "", owner(5, 0o700)}},
	"odd names":         {file("./a//b/./c", "1"), file("/x", "2"), dir("y/."), file("\xff\xfe \n\t", "3"), file("日本", "4"), file("...", "5"), file("..a", "6"), file(".hidden", "7")},
	"names of 255":      {file(strings.Repeat("n", 255), "1"), symlink("s", strings.Repeat("t/", 2000)), link(strings.Repeat("m", 255), strings.Repeat("n", 255))},
	"name of 256":       {file(strings.Repeat("n", 256), "1")},
	"long path":         {file(strings.Repeat("d/", 300)+"f", "1")},
	"path too long":     {file(strings.Repeat("d/", 2048)+"f", "1")},
	"NUL in a target":   {symlink("s", "a\x00b")},
	"empty target":      {symlink("s", "")},
	"target too long":   {symlink("s", strings.Repeat("t", 4096))},
	"long real path":    {dir(strings.Repeat(long+"/", 20)), symlink("l", strings.Repeat(long+"/", 20)), file("l/"+strings.Repeat(long+"/", 20)+"f", "1")},
	"sizes":             {file("0", ""), file("1", "x"), file("511", strings.Repeat("a", 511)), file("512", strings.Repeat("b", 512)), file("513", strings.Repeat("c", 513)), file("4096", strings.Repeat("d", 4096)), file("big", strings.Repeat("0123456789", 60000))},
	"modes":             {{"a", tar.TypeReg, "", owner(1, 0o4755)}, {"b", tar.TypeReg, "", owner(2, 0o2755)}, {"c", tar.TypeReg, "", owner(3, 0o7777)}, {"d/", tar.TypeDir, "", owner(1<<32-3, 0o3770)}, {"e", tar.TypeReg, "", owner(70000, 0)}},
	"times":             {{"a", tar.TypeReg, "", at(0, 0)}, {"b", tar.TypeReg, "", at(-1, 5)}, {"c/", tar.TypeDir, "", at(1<<33, 999999999)}, {"s", tar.TypeSymlink, "", func(h *tar.Header) { h.ModTime, h.Linkname = time.Unix(1, 2), "x" }}},
	"devices":           {device(tar.TypeChar, "null", 1, 3), device(tar.TypeBlock, "sda", 8, 0), device(tar.TypeChar, "far", 4095, 1<<20-1), {"fifo", tar.TypeFifo, "", nil}},
	"device truncated":  {device(tar.TypeChar, "x", 4096, 0)},
	"whiteout as such":  {device(tar.TypeChar, "f", 0, 0)},
	"unknown type":      {{"x", 'Q', "", nil}},
	"contiguous file":   {{"x", tar.TypeCont, "data", nil}},
	"xattrs":            {{"a", tar.TypeReg, "", attrs("user.x", "1", "user.empty", "", capabilityAttr, capV2)}, {"b/", tar.TypeDir, "", attrs("user.y", strings.Repeat("v", 1000))}, {"c", tar.TypeReg, "", attrs(capabilityAttr, capV3)}, {"s", tar.TypeSymlink, "", func(h *tar.Header) { attrs("user.x", "1", accessACL, "?")(h); h.Linkname = "a" }}, {"p", tar.TypeFifo, "", attrs("user.x", "1")}},
	"xattrs dropped":    {{"a", tar.TypeReg, "", attrs("trusted.overlay.redirect", "/etc", "trusted.overlay.opaque", "y", "user.overlay.opaque", "y", "security.ima", "x", "trusted.x", "1", "system.nfs4_acl", "x")}, {"b/", tar.TypeDir, "", attrs("trusted.overlay.opaque", "y", "user.overlay.whiteouts", "")}},
	"xattr bad name":    {{"a", tar.TypeReg, "", attrs("user.", "1")}},
	"xattr long name":   {{"a", tar.TypeReg, "", attrs("user."+strings.Repeat("n", 251), "1")}},
	"xattr large":       {{"a", tar.TypeReg, "", attrs("user.x", strings.Repeat("v", 1<<16))}},
	"xattrs too many":   {{"a", tar.TypeReg, "", attrs("user.1", strings.Repeat("v", 60<<10), "user.2", strings.Repeat("v", 60<<10), "user.3", strings.Repeat("v", 60<<10), "user.4", strings.Repeat("v", 60<<10))}},
	"bad capability":    {{"a", tar.TypeReg, "", attrs(capabilityAttr, "x")}},
	"old capability":    {{"a", tar.TypeReg, "", attrs(capabilityAttr, "\x01\x00\x00\x01\x00\x04\x00\x00\x00\x00\x00\x00")}},
	"ACLs":              {{"a", tar.TypeReg, "", attrs(accessACL, named)}, {"b", tar.TypeReg, "", attrs(accessACL, simple)}, {"d/", tar.TypeDir, "", attrs(defaultACL, named, accessACL, named)}, file("d/inherits", "no"), dir("d/e/"), {"z", tar.TypeReg, "", attrs(accessACL, "")}, {"y", tar.TypeReg, "", attrs(accessACL, acl())}},
	"ACL without mask":  {{"a", tar.TypeReg, "", attrs(accessACL, acl(1, 7, -1, 2, 6, 1000, 4, 5, -1, 32, 1, -1))}},
	"ACL out of order":  {{"a", tar.TypeReg, "", attrs(accessACL, acl(4, 5, -1, 1, 7, -1, 32, 1, -1))}},
	"ACL unfinished":    {{"a", tar.TypeReg, "", attrs(accessACL, acl(1, 7, -1))}},
	"ACL cut":           {{"a", tar.TypeReg, "", attrs(accessACL, simple[:9])}},
	"ACL bad bits":      {{"a", tar.TypeReg, "", attrs(accessACL, acl(1, 8, -1, 4, 5, -1, 32, 1, -1))}},
	"ACL of nobody":     {{"a", tar.TypeReg, "", attrs(accessACL, acl(1, 7, -1, 2, 6, -1, 4, 5, -1, 16, 4, -1, 32, 1, -1))}},
	"default of a file": {{"a", tar.TypeReg, "", attrs(defaultACL, simple)}},

	"links":                    {file("a", "1"), link("b", "a"), link("c/d", "/b"), link("e", "./c/d"), symlink("s", "a"), link("t", "s"), {"p", tar.TypeFifo, "", nil}, link("q", "p")},
	"link keeps what was":      {file("a", "1"), link("b", "a"), file("a", "2"), link("c", "a")},
	"link over its directory":  {file("a/b", "1"), link("a", "a/b")},
	"link through a link":      {dir("o/"), file("o/x", "1"), symlink("s", "/o"), link("n", "s/x"), link("s/m", "n"), link("s/x", "o/x")},
	"link to a whiteout":       {file(".wh.f", ""), link("n", "f")},
	"link to itself":           {link("n", "n"), link("./m", "/m")},
	"links in a circle":        {symlink("a", "b"), symlink("b", "a"), file("a/x", "1")},
	"link into a circle":       {symlink("a", "b"), symlink("b", "a"), link("n", "a/x")},
	"parent by 40 links":       chain(40),
	"parent by 41 links":       chain(41),
	"upward link stays inside": {dir("in/"), symlink("in/up", "../../../../in"), file("in/up/x", "1")},
	"dots in a link":           {dir("d/e/"), symlink("l", "./d/.//e/../e/"), file("l/x", "1")},
	"link to the root":         {symlink("l", "/"), file("l/x", "1"), file("l/.wh.f", "")},
	"opaque root by a link":    {symlink("l", "/"), file("l/.wh..wh..opq", "")},
	"link replaced":            {dir("a/"), dir("b/"), symlink("l", "a"), file("l/x", "1"), symlink("l", "b"), file("l/y", "2"), dir("l/"), file("l/z", "3")},
	"implied behind a link":    {dir("a/"), symlink("l", "a"), file("l/b/c/d", "1")},
	"whiteout behind a link":   {dir("d/"), symlink("l", "d"), file("l/.wh.a", "")},
	"opaque behind a link":     {dir("d/"), symlink("l", "d"), file("l/.wh..wh..opq", "")},
	"dangling parent":          {symlink("l", "nowhere"), file("l/x", "1")},
	"parent is a file's link":  {file("a", "1"), symlink("l", "a"), file("l/x", "1")},

	"whiteouts":              {file(".wh.f", ""), file("d/.wh.a", ""), file("new/.wh.x", "")},
	"whiteout twice":         {file(".wh.f", ""), file(".wh.f", "")},
	"whiteout, file":         {file(".wh.f", ""), file("f", "2"), file("d/.wh.a", ""), link("d/a", "f")},
	"whiteout, directory":    {file(".wh.d", ""), dir("d/"), file("d/x", "1")},
	"whiteout, implied":      {file(".wh.d", ""), file("d/x/y", "1")},
	"whiteout, symlink":      {file(".wh.d", ""), symlink("d", "o")},
	"directory, whiteout":    {file("d/x", "1"), file(".wh.d", ""), dir("d/")},
	"opaque":                 {dir("d/"), file("d/.wh..wh..opq", ""), file("d/.wh..wh..opq", ""), file("d/x", "1")},
	"opaque, described":      {file("d/.wh..wh..opq", ""), {"d/", tar.TypeDir, "", attrs("user.x", "1")}},
	"opaque root":            {file(".wh..wh..opq", ""), file("x", "1")},
	"aufs":                   {dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "x"), file("d/.wh..wh.aufs", ""), file(".wh..wh.orph/a/b", "")},
	"below a mark":           {file(".wh.copy/x", "1")},
	"whiteout of dots":       {file("d/.wh...", "")},
	"duplicates":             {file("x", "1"), file("x", "22"), {"x", tar.TypeReg, "3", owner(3, 0o600)}, symlink("x", "f"), {"x", tar.TypeFifo, "", nil}, file("x", "4")},
	"directory twice":        {{"e/", tar.TypeDir, "", attrs("user.x", "1", defaultACL, named)}, {"e/", tar.TypeDir, "", owner(6, 0o750)}},
	"to directory and back":  {file("x", "1"), dir("x"), file("x/y", "2"), file("x", "3"), file("x/y/z", "4"), file("x/y", "5")},
	"directory over link":    {symlink("l", "o"), dir("l/"), file("l/x", "1")},
	"file over link":         {symlink("l", "f"), file("l", "1")},
	"implied then described": {file("e/f/g", "1"), {"e/f/", tar.TypeDir, "", owner(6, 0o750)}},
	"implied inherits":       {file("d/new", "1"), file("fresh/x", "1"), file("dx/in", "1")},
	"implied, gone":          {file("d/new", "1"), file("d", "x")},
	"implied hides a link":   {file("lib/new", "1")},

	"lower link":                   {link("n", "d/a")},
	"lower link and more":          {link("n", "d/a"), link("n2", "n"), link("d/b", "d/a"), file("d/c", "x"), link("e/f", "f")},
	"lower link, target replaced":  {link("n", "d/a"), file("d/a", "new")},
	"lower link, parent replaced":  {link("n", "d/a"), file("d", "file")},
	"lower link, parent white":     {link("n", "d/a"), file(".wh.d", "")},
	"lower link, target white":     {link("n", "d/a"), file("d/.wh.a", "")},
	"lower link, parent opaque":    {link("n", "d/a"), file("d/.wh..wh..opq", "")},
	"lower link, described":        {link("n", "d/a"), {"d/", tar.TypeDir, "", owner(50, 0o711)}},
	"lower link, name replaced":    {link("n", "d/a"), file("n", "x")},
	"lower link, all replaced":     {link("n", "nowhere"), file("n", "x"), file("nowhere", "y")},
	"lower link in a directory":    {link("n/m", "d/a"), file("n", "x")},
	"lower link by links":          {link("n", "lib/x")},
	"lower link by two ways":       {link("n", "lib/x"), link("m", "usr/lib/x"), link("k", "lib2/x")},
	"lower link to its own place":  {link("usr/lib/x", "lib2/x")},
	"lower link to a place made":   {link("n", "lib/x"), link("usr/lib/x", "lib2/x")},
	"lower link above itself":      {link("usr/lib", "lib2/x")},
	"lower links in the way":       {link("n", "lib/x"), link("usr/lib", "f")},
	"lower links in the way too":   {link("usr/lib", "f"), link("n", "lib/x")},
	"lower link, own there":        {file("usr/lib/x", "mine"), link("n", "lib/x")},
	"lower link, own white":        {file("usr/lib/.wh.x", ""), link("n", "lib/x")},
	"lower link, own opaque":       {file("usr/lib/.wh..wh..opq", ""), link("n", "lib/x")},
	"lower link, own hidden":       {file("usr", "file"), link("n", "lib/x")},
	"lower link by upper link":     {symlink("l", "usr/lib"), link("n", "l/x")},
	"lower link by both":           {symlink("l", "/lib2"), link("n", "l/x")},
	"lower link, link made new":    {file("lib/y", "1"), link("n", "usr/lib/x")},
	"lower link to a link":         {link("n", "lib")},
	"lower link to a directory":    {link("n", "usr")},
	"lower link by a circle":       {link("n", "loop/x")},
	"lower link by an upward link": {link("n", "up/x")},
	"lower link by link and dots":  {symlink("l", "usr/lib/../lib"), link("n", "l/x")},
	"lower link of a device":       {link("n", "d/null")},
	"lower link below a file":      {link("n", "f/x")},
	"lower link under a new file":  {file("q", "1"), link("n", "q/x")},
	"lower link of long name":      {symlink("l", strings.Repeat("x", 300)), link("n", "l/x")},
}

// base is what the cases lie on.
var base = []entry{
	{"d/", tar.TypeDir, "", func(h *tar.Header) {
		owner(7, 0o1750)(h)
		h.PAXRecords = map[string]string{"SCHILY.xattr.user.dir": "1"}
	}},
	{"d/a", tar.TypeReg, "lower a", func(h *tar.Header) { attrs("user.x", "1", capabilityAttr, capV2)(h); h.Mode = 0o4755 }},
	device(tar.TypeChar, "d/null", 1, 3), file("f", "lower f"),
	dir("usr/"), {"usr/lib/", tar.TypeDir, "", owner(8, 0o755)}, file("usr/lib/x", strings.Repeat("\x00", 9000)+"lower x"),
	symlink("lib", "usr/lib"), symlink("lib2", "/lib"), symlink("loop", "loop"), symlink("usr/up", "../../../usr/lib"), symlink("up", "usr/up"), file("dx", "file"),
}

func at(sec, nsec int64) func(*tar.Header) {
	return func(h *tar.Header) { h.ModTime = time.Unix(sec, nsec) }
}

// chain leads to a directory by n links.
func chain(n int) (es []entry) {
	es = append(es, dir("l0"))
	for i := range n {
		es = append(es, symlink(fmt.Sprintf("l%d", i+1), fmt.Sprintf("l%d", i)))
	}
	return append(es, file(fmt.Sprintf("l%d/x", n), "1"))
}

// rawBuild is build for headers that archive/tar would not write.
func rawBuild(t testing.TB, es []entry) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, e := range es {
		h := header(e.name, e.kind)
		h.Size = int64(len(e.body))
		if e.edit != nil {
			e.edit(h)
		}
		if h.Typeflag == tar.TypeSymlink && (h.Linkname == "" || strings.Contains(h.Linkname, "\x00")) {
			t.Skip("no tar can say this")
		}
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("write header of %q: %v", e.name, err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	return append(b.Bytes(), make([]byte, 1024)...)
}

// TestBothForms compares a layer in its two forms, and the tree before anybody mounts it.
func TestBothForms(t *testing.T) {
	testkit.Need(t, testkit.Root, testkit.EROFS)
	testkit.Leaks(t)
	refused := map[string]bool{}
	for name, es := range cases {
		t.Run(name, func(t *testing.T) {
			compare(t, rawBuild(t, es), refused)
		})
	}
	for _, name := range []string{"name of 256", "path too long", "target too long", "long real path", "device truncated", "unknown type", "xattr bad name", "xattr long name",
		"xattr large", "xattrs too many", "bad capability", "old capability", "ACL without mask", "ACL out of order", "ACL unfinished", "ACL cut", "ACL bad bits", "ACL of nobody",
		"default of a file", "link over its directory", "link to a whiteout", "links in a circle", "link into a circle", "parent by 41 links", "dangling parent", "parent is a file's link",
		"below a mark", "whiteout of dots", "lower link, own white", "lower link, own opaque", "lower link, own hidden", "lower link to a directory", "lower link by a circle",
		"lower link below a file", "lower link under a new file", "lower link of long name", "lower link by link and dots", "lower link above itself", "lower links in the way", "lower links in the way too"} {
		if !refused[subtest(name)] {
			t.Errorf("%s: accepted", name)
		}
		delete(refused, subtest(name))
	}
	for name := range refused {
		t.Errorf("%s: refused", name)
	}
}

func subtest(name string) string { return "TestBothForms/" + strings.ReplaceAll(name, " ", "_") }

func compare(t *testing.T, data []byte, refused map[string]bool) {
	t.Helper()
	dirs, index := forms["directory"](t).(*dirForm), forms["index"](t).(*indexForm)
	a, aErr := dirs.apply(t, bytes.NewReader(data), testLimits)
	b, bErr := index.apply(t, bytes.NewReader(data), testLimits)
	if aErr == nil && bErr == nil {
		if got, want := fmt.Sprintf("%+v %v %v", b.Open, b.Root, b.OpaqueRoot), fmt.Sprintf("%+v %v %v", a.Open, a.Root, a.OpaqueRoot); got != want || a.Inodes != b.Inodes {
			t.Errorf("result: index says %s, %d inodes, directory %s, %d", got, b.Inodes, want, a.Inodes)
		}
		low := layerOf(t, forms["directory"](t), base...)
		_, aErr = dirs.settle(t, []string{low}, 1<<20)
		_, bErr = index.settle(t, []string{low}, 1<<20)
	}
	if fmt.Sprint(aErr) != fmt.Sprint(bErr) || aErr != nil && !errors.Is(aErr, errdef.ErrInvalid) {
		t.Fatalf("directory: %v, index: %v", aErr, bErr)
	}
	if aErr != nil {
		refused[t.Name()] = true
		t.Logf("refused: %v", aErr)
		return
	}
	want := dump(t, dirs.dir)
	if got := dumpTree(t, index.x.Tree, index.file); got != want {
		t.Errorf("tree: got\n%s\nwant\n%s", got, want)
	}
	if got := dump(t, index.root(t)); got != want {
		t.Errorf("mounted: got\n%s\nwant\n%s", got, want)
	}
	head := make([]byte, index.x.TarSize)
	if _, err := index.file.ReadAt(head, 0); err != nil || !bytes.Equal(head, data) {
		t.Errorf("the file does not begin with the stream: %v", err)
	}
	if index.x.Size%block != 0 || uint64(index.x.Size) != index.x.Bytes {
		t.Errorf("size %d, bytes %d", index.x.Size, index.x.Bytes)
	}
}

// TestLowerLinksAsTheKernel makes links through links that only lower layers have, and
// compares the merged view with link(2) on an overlay.
func TestLowerLinksAsTheKernel(t *testing.T) { both(t, testLowerLinksAsTheKernel) }

func testLowerLinksAsTheKernel(t *testing.T, make func(testing.TB) form) {
	for _, target := range []string{"lib/x", "lib2/x", "up/x", "usr/up/x", "d/a"} {
		t.Run(target, func(t *testing.T) {
			low, want, at := layerOf(t, make(t), base...), t.TempDir(), t.TempDir()
			needOverlayOver(t, low)
			if err := unix.Mount("overlay", at, "overlay", 0, "lowerdir="+low+",upperdir="+want+",workdir="+t.TempDir()); err != nil {
				t.Fatal(err)
			}
			err := linkInRoot(at, target, "n")
			if e := unix.Unmount(at, 0); e != nil || err != nil {
				t.Fatal(e, err)
			}
			top := settled(t, make(t), []string{low}, link("n", target))
			if got, want := linkDump(t, top), linkDump(t, want); got != want {
				t.Errorf("layer: got\n%s\nwant, as the kernel has it,\n%s", got, want)
			}
		})
	}
}

// linkInRoot is link(2) as a process in a container at root would do it.
func linkInRoot(root, target, name string) error {
	r, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(r)
	dir, base := split(target)
	d, err := -1, error(unix.EAGAIN)
	for errors.Is(err, unix.EAGAIN) { // a rename elsewhere raced with the walk
		d, err = unix.Openat2(r, dir, &unix.OpenHow{Flags: unix.O_PATH, Resolve: unix.RESOLVE_IN_ROOT})
	}
	if err != nil {
		return err
	}
	defer unix.Close(d)
	return unix.Linkat(d, base, r, name, 0)
}

func TestBombs(t *testing.T) { both(t, testBombs) }

func testBombs(t *testing.T, make func(testing.TB) form) {
	zero := io.LimitReader(zeroReader{}, 1<<40)
	for name, tc := range map[string]struct {
		r io.Reader
	}{
		"behind the end": {io.MultiReader(bytes.NewReader(build(t, file("x", "1"))), zero)},
		"global headers": {&repeat{p: globalHeader(t)}},
		"empty files":    {&repeat{p: build(t, file("x", ""))[:1536]}},
		"a file's size":  {bytes.NewReader(build(t, file("x", "1"))[:0:0])},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "a file's size" {
				h := header("x", tar.TypeReg)
				h.Size = 1 << 50
				var b bytes.Buffer
				if err := tar.NewWriter(&b).WriteHeader(h); err != nil {
					t.Fatal(err)
				}
				tc.r = io.MultiReader(&b, zero)
			}
			_, err := make(t).apply(t, tc.r, Options{MaxBytes: 1 << 20, MaxEntries: 500})
			if !errors.Is(err, errdef.ErrExhausted) {
				t.Errorf("got %v, want exhausted", err)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Index(ctx, tempFile(t), zero, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// repeat gives p for ever.
type repeat struct {
	p  []byte
	at int
}

func (r *repeat) Read(p []byte) (int, error) {
	n := copy(p, r.p[r.at:])
	r.at = (r.at + n) % len(r.p)
	return n, nil
}

func globalHeader(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
