package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/erofs"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// FuzzApply gives both forms the same bytes.
func FuzzApply(f *testing.F) {
	testkit.Need(f, testkit.Root)
	f.Add(build(f, entry{"d/", tar.TypeDir, "", nil}, entry{"d/a", tar.TypeReg, "1", nil}, entry{"d/.wh.b", tar.TypeReg, "", nil}))
	f.Add(build(f, entry{"l", tar.TypeSymlink, "", to("/OUT")}, entry{"l/a", tar.TypeReg, "1", nil}, entry{"h", tar.TypeLink, "", to("l/canary")}))
	f.Add(build(f, entry{"a", tar.TypeReg, "1", nil}, entry{"a/", tar.TypeDir, "", nil}, entry{"a", tar.TypeSymlink, "", to("../canary")}))
	f.Add(build(f, entry{"x", tar.TypeLink, "", to("d/a")}, entry{"d/a", tar.TypeSymlink, "", to("x")}, entry{"y", tar.TypeLink, "", to("x")}))
	f.Add(build(f, entry{"x", tar.TypeReg, "data", attrs("user.x", "1", accessACL, named, capabilityAttr, capV2)}))
	f.Fuzz(func(t *testing.T, data []byte) { agree(t, data) })
}

// FuzzEntries makes entries of a program: names and targets that meet each other.
func FuzzEntries(f *testing.F) {
	testkit.Need(f, testkit.Root)
	f.Add([]byte("\x01\x02\x03\x04\x05\x06\x07\x08\x09"))
	f.Add([]byte("\x02\x08\x00\x00\x09\x01\x03\x02\x05"))
	f.Fuzz(func(t *testing.T, program []byte) {
		if len(program) > 60 {
			return
		}
		agree(t, rawBuild(t, entriesOf(program)))
	})
}

var (
	fuzzNames = []string{"a", "b", "l", "a/b", "a/b/c", "l/x", "l/b/c", "d", "d/a", "d/b", "lib/x", "usr/lib/x", "usr/lib", ".wh.a", ".wh.d", "a/.wh.b", "d/.wh.a", "l/.wh.x",
		"a/.wh..wh..opq", "d/.wh..wh..opq", "l/.wh..wh..opq", ".wh..wh..opq", "f", "./", "a/l", "a/l/y", "lib", ".wh.usr", "n", "m", "b/n", "lib2/x"}
	fuzzTargets = []string{"a", "b", "/", "..", "a/b", "/d", "usr/lib", "l", "/OUT", "l/x", "d/a", "f", "lib/x", "a/l", "../a", "n", "usr/lib/x", "lib2/x", "a/b/../..", "m/x", "d/.."}
	fuzzKinds   = []byte{tar.TypeDir, tar.TypeReg, tar.TypeSymlink, tar.TypeLink, tar.TypeReg, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo, tar.TypeChar}
)

func entriesOf(program []byte) (es []entry) {
	for ; len(program) >= 3; program = program[3:] {
		arg := program[2]
		kind := fuzzKinds[int(program[0])%len(fuzzKinds)]
		name, target := fuzzNames[int(program[1])%len(fuzzNames)], fuzzTargets[int(program[2])%len(fuzzTargets)]
		if name == "./" {
			kind = tar.TypeDir
		}
		e := entry{name: name, kind: kind, edit: func(h *tar.Header) {
			h.Mode, h.Uid = int64(arg)|0o400, int(arg)
			if kind == tar.TypeSymlink || kind == tar.TypeLink {
				h.Linkname = target
			}
			if arg%16 == 7 {
				h.PAXRecords = map[string]string{"SCHILY.xattr.user.x": string(arg)}
			}
		}}
		if kind == tar.TypeReg {
			e.body = strings.Repeat(name, int(arg)%3)
		}
		es = append(es, e)
	}
	return es
}

// agree applies data in both forms, on the same layer below. Nothing outside may change.
func agree(t *testing.T, data []byte) {
	t.Helper()
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
	low := layerOf(t, forms["directory"](t), base...)
	limits := Options{MaxBytes: 1 << 20, MaxEntries: 100}
	d, i := &dirForm{dir: filepath.Join(top, "layer")}, &indexForm{file: tempFile(t)}
	_, aErr := d.apply(t, bytes.NewReader(data), limits)
	_, bErr := i.apply(t, bytes.NewReader(data), limits)
	if aErr == nil && bErr == nil {
		_, aErr = d.settle(t, []string{low}, 1<<20)
		_, bErr = i.settle(t, []string{low}, 1<<20)
	}
	checkOutside(t, top)
	if errors.Is(aErr, unix.ENOSPC) {
		t.Skip("an attribute that the test's filesystem cannot hold")
	}
	if (aErr == nil) != (bErr == nil) || errors.Is(aErr, errdef.ErrInvalid) != errors.Is(bErr, errdef.ErrInvalid) {
		t.Fatalf("directory: %v, index: %v", aErr, bErr)
	}
	if aErr != nil {
		if !errors.Is(aErr, errdef.ErrInvalid) && !errors.Is(aErr, errdef.ErrExhausted) {
			t.Fatalf("kind of %v", aErr)
		}
		return
	}
	clampTimes(i.x.Tree)
	want := dump(t, d.dir)
	if got := dumpTree(t, i.x.Tree, i.file); got != want {
		t.Fatalf("tree: got\n%s\nwant, as the directory,\n%s", got, want)
	}
	// What passed all checks the writer takes.
	if _, err := erofs.Write(io.Discard, i.x.Tree, erofs.Options{DeviceSize: i.x.Size}); err != nil {
		t.Fatalf("write index: %v", err)
	}
}

// clampTimes does what ext4 does to times (timestamp_truncate), for a directory on it.
func clampTimes(n *erofs.Node) {
	const low, high = -1 << 31, 1<<34 - 1 - 1<<31
	if n.Sec <= low || n.Sec >= high {
		n.Sec, n.Nsec = min(max(n.Sec, low), high), 0
	}
	for _, c := range n.Children {
		clampTimes(c)
	}
}

// FuzzDecompress wants an end, without a panic, and damage called by its name.
func FuzzDecompress(f *testing.F) {
	plain := build(f, file("x", strings.Repeat("body ", 100)))
	f.Add(plain)
	f.Add(estargz(f, []entry{file("x", "1")}))
	f.Add(chunked(f, plain))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Decompress(bytes.NewReader(data))
		if err == nil {
			_, err = io.Copy(io.Discard, io.LimitReader(r, 1<<20))
			r.Close()
		}
		if err != nil && !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("kind of %v", err)
		}
	})
}
