package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/erofs"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// manyFiles is a layer of n small files in directories of twenty.
func manyFiles(b testing.TB, n int) []byte {
	b.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	body := bytes.Repeat([]byte("x"), 1000)
	for i := range n {
		if i%20 == 0 {
			if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("usr/share/lib%03d/pkg%05d/", i/400, i/20), Typeflag: tar.TypeDir, Mode: 0o755, ModTime: when.Truncate(1e9)}); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("usr/share/lib%03d/pkg%05d/file%05d.go", i/400, i/20, i), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body)), ModTime: when.Truncate(1e9)}); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}

var streams = map[string]func(testing.TB) []byte{
	"20000 files": func(b testing.TB) []byte { return manyFiles(b, 20000) },
	"100 MB":      func(b testing.TB) []byte { return build(b, file("big", string(make([]byte, 100<<20)))) },
}

func BenchmarkApply(b *testing.B) {
	testkit.Need(b, testkit.Root)
	for name, make := range streams {
		b.Run(name, func(b *testing.B) {
			data := make(b)
			b.SetBytes(int64(len(data)))
			measure(b, func() func() {
				dir := b.TempDir()
				if _, err := Apply(b.Context(), dir, bytes.NewReader(data), Options{}); err != nil {
					b.Fatal(err)
				}
				return func() { os.RemoveAll(dir) }
			})
		})
	}
}

func BenchmarkIndex(b *testing.B) {
	for name, make := range streams {
		b.Run(name, func(b *testing.B) {
			data := make(b)
			b.SetBytes(int64(len(data)))
			measure(b, func() func() {
				f := benchFile(b)
				if _, err := Index(b.Context(), f, bytes.NewReader(data), Options{}); err != nil {
					b.Fatal(err)
				}
				return func() { f.Close(); os.Remove(f.Name()) }
			})
		})
	}
}

// BenchmarkWriteOnly is what any index has to pay: the stream into a file.
func BenchmarkWriteOnly(b *testing.B) {
	for name, make := range streams {
		b.Run(name, func(b *testing.B) {
			data := make(b)
			b.SetBytes(int64(len(data)))
			measure(b, func() func() {
				f := benchFile(b)
				if _, err := io.Copy(f, struct{ io.Reader }{newTee(&stream{ctx: b.Context(), r: bytes.NewReader(data)}, f)}); err != nil {
					b.Fatal(err)
				}
				return func() { f.Close(); os.Remove(f.Name()) }
			})
		})
	}
}

// BenchmarkTree is parsing and building alone, what is written going to /dev/null, beside
// what archive/tar takes of it.
func BenchmarkTree(b *testing.B) {
	data := manyFiles(b, 20000)
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	for name, run := range map[string]func(*stream, *tee) error{
		"parse": func(_ *stream, in *tee) error {
			r := tar.NewReader(in)
			for {
				if _, err := r.Next(); errors.Is(err, io.EOF) {
					return nil
				} else if err != nil {
					return err
				}
			}
		},
		"tree": func(src *stream, in *tee) error {
			return (&stage{tree: newTree(), sink: noSpill{&keeper{in: in}}}).run(b.Context(), src, in)
		},
	} {
		b.Run(name, func(b *testing.B) {
			measure(b, func() func() {
				src := &stream{ctx: b.Context(), r: bytes.NewReader(data)}
				if err := run(src, newTee(src, null)); err != nil {
					b.Fatal(err)
				}
				return func() {}
			})
		})
	}
}

type noSpill struct{ *keeper }

func (noSpill) finish(*erofs.Node) error { return nil }

func benchFile(b testing.TB) *os.File {
	b.Helper()
	f, err := os.CreateTemp(b.TempDir(), "")
	if err != nil {
		b.Fatal(err)
	}
	return f
}

// measure tells the processor time, which on a shared machine says more than the wall's.
func measure(b *testing.B, f func() (after func())) {
	b.Helper()
	var cpu int64
	b.ReportAllocs()
	for b.Loop() {
		before := cpuTime(b)
		after := f()
		cpu += cpuTime(b) - before
		b.StopTimer()
		after()
		b.StartTimer()
	}
	b.ReportMetric(float64(cpu)/float64(b.N)/1e6, "cpu-ms/op")
}

func cpuTime(b testing.TB) int64 {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// TestTreeIsCompact bounds what a large layer takes in memory.
func TestTreeIsCompact(t *testing.T) {
	data := manyFiles(t, 54300) // and 2715 directories
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	f := tempFile(t)
	x, err := Index(t.Context(), f, bytes.NewReader(data), Options{})
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if got := int64(after.HeapAlloc) - int64(before.HeapAlloc); got > 20<<20 {
		t.Errorf("%d inodes take %d KiB, want at most 20 MiB", x.Inodes, got>>10)
	} else {
		t.Logf("%d inodes take %d KiB", x.Inodes, got>>10)
	}
	runtime.KeepAlive(data)
}
