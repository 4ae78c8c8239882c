package content

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

func openPartials(t *testing.T, dir string, lim PartialLimits) *Partials {
	t.Helper()
	p, err := OpenPartials(dir, lim)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func names(t *testing.T, dir string) (ns []string) {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		ns = append(ns, e.Name())
	}
	return ns
}

func fileOf(d digest.Digest) string { return d.Algorithm().String() + "-" + d.Encoded() }

// TestPartialKeepsWhatFollows writes in pieces of all sizes and reads back.
func TestPartialKeepsWhatFollows(t *testing.T) {
	testkit.Leaks(t)
	dir := t.TempDir()
	p := openPartials(t, dir, PartialLimits{MinBlob: 1})
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	d := digest.FromBytes(data)
	const kept = 700001
	f := p.Open(d, int64(len(data)))
	for off, step := 0, 1; off < kept; step = step*3 + 1 {
		n := min(step%200000+1, kept-off)
		f.Append(data[off:off+n], int64(off))
		off += n
	}
	f.Append(data[:5], 0) // does not follow
	f.Append(data, kept)  // goes beyond the end
	if from, to := f.Kept(); from != 0 || to != kept {
		t.Errorf("kept: got %d to %d, want what is buffered too, up to %d", from, to, kept)
	}
	if g := p.Open(d, int64(len(data))); g != nil {
		t.Error("two transfers got one file")
	}
	f.Close()
	f.Close()
	f.Drop() // not its own any more
	p.Close()
	p = openPartials(t, dir, PartialLimits{MinBlob: 1})
	f = p.Open(d, int64(len(data)))
	got := make([]byte, kept)
	if n, err := f.ReadAt(got, 0); n != kept || err != nil || !bytes.Equal(got, data[:kept]) || length(f) != kept {
		t.Errorf("read back: %d bytes of %d, %v", n, length(f), err)
	}
	f.Append(data[kept:], kept)
	if f.Drop(); len(names(t, dir)) != 0 {
		t.Errorf("left: %v", names(t, dir))
	}
	if f = p.Open(d, int64(len(data))); length(f) != 0 {
		t.Errorf("after drop: %d bytes", length(f))
	}
	if f.Close(); len(names(t, dir)) != 0 {
		t.Errorf("an empty file is left: %v", names(t, dir))
	}
}

func length(f *Partial) int64 {
	from, to := f.Kept()
	return to - from
}

// TestPartialFromTheMiddle: what comes before the first kept byte is a hole, which the
// next life finds where it was.
func TestPartialFromTheMiddle(t *testing.T) {
	testkit.Leaks(t)
	dir := t.TempDir()
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	d := digest.FromBytes(data)
	for _, first := range []int{1, 4096, 65536, 100000, 700000} {
		p := openPartials(t, dir, PartialLimits{MinBlob: 1})
		f := p.Open(d, int64(len(data)))
		const end = 900000
		for off := first; off < end; off += 1000 {
			f.Append(data[off:min(off+1000, end)], int64(off))
		}
		f.Close()
		p.Close()
		p = openPartials(t, dir, PartialLimits{MinBlob: 1})
		f = p.Open(d, int64(len(data)))
		from, to := f.Kept()
		if from < int64(first) || from >= int64(first)+holeAlign || to != end {
			t.Errorf("from %d: kept %d to %d", first, from, to)
		}
		got := make([]byte, to-from)
		if _, err := f.ReadAt(got, from); err != nil || !bytes.Equal(got, data[from:to]) {
			t.Errorf("from %d: read back: %v", first, err)
		}
		f.Append(data[end:], end)
		if _, to := f.Kept(); to != int64(len(data)) {
			t.Errorf("from %d: appended up to %d", first, to)
		}
		f.Drop()
		p.Close()
	}
}

func TestPartialLimits(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "README"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p := openPartials(t, dir, PartialLimits{MinBlob: 10, MaxBytes: 100})
	blob := func(c byte, n int64) digest.Digest { return digest.FromBytes(bytes.Repeat([]byte{c}, int(n))) }
	keep := func(c byte, n int64) {
		t.Helper()
		f := p.Open(blob(c, n), n)
		if f == nil {
			t.Fatalf("no file for %d bytes", n)
		}
		f.Append(make([]byte, n-1), 0)
		f.Close()
		old := time.Now().Add(-time.Duration('z'-c) * time.Minute) // 'a' is the oldest
		if err := os.Chtimes(filepath.Join(dir, fileOf(blob(c, n))), old, old); err != nil {
			t.Fatal(err)
		}
	}
	for what, f := range map[string]*Partial{"small": p.Open(blob('x', 9), 9), "large": p.Open(blob('x', 101), 101),
		"no digest": p.Open("../../etc/passwd", 50), "another hash": p.Open("md5:d41d8cd98f00b204e9800998ecf8427e", 50), "nil": (*Partials)(nil).Open(blob('x', 50), 50)} {
		if f != nil {
			t.Errorf("%s: a file is kept", what)
		}
		f.Append([]byte("x"), 0) // nil can be used
		f.Close()
		f.Drop()
	}
	keep('a', 40)
	keep('b', 40)
	keep('c', 40) // one too many: the oldest goes
	want := []string{"README", fileOf(blob('b', 40)), fileOf(blob('c', 40))}
	slices.Sort(want)
	if got := names(t, dir); !slices.Equal(got, want) {
		t.Errorf("files: got %v, want %v", got, want)
	}
	// Those in use count in full and are spared.
	f := p.Open(blob('c', 40), 40)
	if g := p.Open(blob('d', 90), 90); g != nil {
		t.Error("more than the limit is in use")
	}
	if length(f) != 39 {
		t.Errorf("in use: %d bytes left", length(f))
	}
	f.Close()
}

func TestPartialAge(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p, err := OpenPartials(dir, PartialLimits{MinBlob: 1, MaxAge: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		for i, d := range []digest.Digest{digest.FromString("a"), digest.FromString("b")} {
			f := p.Open(d, 5)
			f.Append([]byte("x"), 0)
			f.Close()
			// The kernel's clock is another one than the test's.
			at := time.Now().Add(time.Duration(i) * 30 * time.Minute)
			if err := os.Chtimes(filepath.Join(dir, fileOf(d)), at, at); err != nil {
				t.Fatal(err)
			}
		}
		p.mu.Lock()
		p.sweep(0)
		p.mu.Unlock()
		for _, step := range []struct {
			wait time.Duration
			left int
		}{{59 * time.Minute, 2}, {2 * time.Minute, 1}, {28 * time.Minute, 1}, {2 * time.Minute, 0}} {
			time.Sleep(step.wait)
			synctest.Wait()
			if got := len(names(t, dir)); got != step.left {
				t.Errorf("files: got %d, want %d", got, step.left)
			}
		}
	})
}

// TestPartialOnFullDisk: the disk takes no more in the middle, or is needed by others.
func TestPartialOnFullDisk(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
	p := openPartials(t, dir, PartialLimits{})
	data := make([]byte, 6<<20)
	f := p.Open(digest.FromBytes(data), int64(len(data)))
	for off := 0; off < len(data); off += 100000 {
		f.Append(data[off:min(off+100000, len(data))], int64(off))
	}
	if f.Close(); len(names(t, dir)) != 0 {
		t.Errorf("left on a full disk: %v", names(t, dir))
	}
	// Shed takes from those who write and those who wait.
	idle, busy := p.Open(digest.FromString("a"), 2<<20), p.Open(digest.FromString("b"), 2<<20)
	for _, f := range []*Partial{idle, busy} {
		f.Append(data[:1<<20], 0)
	}
	idle.Close()
	if got := p.Shed(); got != 2<<20 {
		t.Errorf("shed: got %d", got)
	}
	if length(busy) != 0 {
		t.Errorf("shed, in use: %d bytes", length(busy))
	}
	if _, err := busy.ReadAt(data[:10], 0); err == nil {
		t.Error("shed, in use: it can be read")
	}
	busy.Append(data[:10], 1<<20)
	busy.Close()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Bfree != st.Blocks {
		t.Errorf("used after all: %d blocks, %v; files %v", st.Blocks-st.Bfree, err, names(t, dir))
	}
}

// TestPartialReadOnly: where nothing can be written, nothing is kept.
func TestPartialWithoutDirectory(t *testing.T) {
	dir := t.TempDir()
	p := openPartials(t, filepath.Join(dir, "p"), PartialLimits{MinBlob: 1})
	if err := os.Remove(filepath.Join(dir, "p")); err != nil {
		t.Fatal(err)
	}
	if f := p.Open(digest.FromString("a"), 5); f != nil {
		t.Error("a file without a directory")
	}
	if _, err := OpenPartials(filepath.Join("/dev/null", "x"), PartialLimits{}); err == nil {
		t.Error("a directory below a device")
	}
}
