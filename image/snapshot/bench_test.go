package snapshot

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime adds the processor time per operation to a benchmark, which on a shared machine
// says more than the clock. Call it where the work begins.
func cpuTime(b *testing.B) (report func()) {
	b.Helper()
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	return func() { b.ReportMetric(float64((used()-before).Microseconds())/float64(b.N), "cpu-us/op") }
}

// eachFormat runs a benchmark over both formats.
func eachFormat(b *testing.B, bench func(b *testing.B, o Options)) {
	b.Helper()
	for _, f := range []Format{Directory, EROFS} {
		b.Run(string(f), func(b *testing.B) {
			need(b, f)
			bench(b, Options{Root: b.TempDir(), State: b.TempDir(), Format: f})
		})
	}
}

// smallFiles is a layer of n files.
func smallFiles(b *testing.B, n int, body string) []byte {
	b.Helper()
	names := make([]string, 0, n+n/100)
	for i := range n {
		if i%100 == 0 {
			names = append(names, fmt.Sprintf("d%d/", i/100))
		}
		names = append(names, fmt.Sprintf("d%d/file-%d", i/100, i))
	}
	return makeTar(b, body, names...)
}

// BenchmarkUnpack is a layer of 20,000 files, unpacked and published, and its removal.
func BenchmarkUnpack(b *testing.B) {
	eachFormat(b, func(b *testing.B, o Options) {
		tar := smallFiles(b, 20000, strings.Repeat("x", 3000))
		s := open(b, o)
		if err := s.Collect(); err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(len(tar)))
		for b.Loop() {
			ls := add(b, s, tar)
			b.StopTimer()
			if err := s.Drop(ls); err != nil {
				b.Fatal(err)
			}
			emptied(b, o)
			b.StartTimer()
		}
	})
}

// BenchmarkDrop is what the caller of a removal waits for, with a synced layer.
func BenchmarkDrop(b *testing.B) {
	eachFormat(b, func(b *testing.B, o Options) {
		tar := smallFiles(b, 2000, strings.Repeat("x", 3000))
		s := open(b, o)
		if err := s.Collect(); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			b.StopTimer()
			ls := add(b, s, tar)
			if err := s.Sync(b.Context(), ls); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			if err := s.Drop(ls); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			emptied(b, o)
			b.StartTimer()
		}
	})
}

// BenchmarkRoot prepares a snapshot, mounts its overlay, and gives both back: first while
// nothing else uses the layers, then beside another container.
func BenchmarkRoot(b *testing.B) {
	eachFormat(b, func(b *testing.B, o Options) {
		for _, n := range []int{1, 20} {
			for _, shared := range []bool{false, true} {
				b.Run(fmt.Sprintf("%d layers, shared %v", n, shared), func(b *testing.B) {
					o.Root, o.State = b.TempDir(), b.TempDir()
					s := open(b, o)
					var tars [][]byte
					for i := range n {
						tars = append(tars, smallFiles(b, 1000, fmt.Sprint(i)))
					}
					ls := add(b, s, tars...)
					if shared {
						if _, err := s.Prepare(b.Context(), Request{Key: "other", Image: "i", Layers: ls}); err != nil {
							b.Fatal(err)
						}
					}
					report := cpuTime(b)
					for b.Loop() {
						fs, err := s.Prepare(b.Context(), Request{Key: "c", Image: "i", Layers: ls})
						if err != nil {
							b.Fatal(err)
						}
						root := rootOf(b, fs)
						root.Close()
						if err := s.Release(b.Context(), "c"); err != nil {
							b.Fatal(err)
						}
					}
					report()
				})
			}
		}
	})
}

// BenchmarkMount is the mount of one layer of 20,000 files, compared with its sum or not.
func BenchmarkMount(b *testing.B) {
	need(b, EROFS)
	s := open(b, Options{Root: b.TempDir(), State: b.TempDir(), Format: EROFS})
	l := add(b, s, smallFiles(b, 20000, "x"))[0]
	b.Logf("index: %d bytes", l.EROFS.Index)
	for _, check := range []bool{false, true} {
		b.Run(fmt.Sprintf("check %v", check), func(b *testing.B) {
			report := cpuTime(b)
			for b.Loop() {
				f, err := s.formatOf(l).mount(l, check)
				if err != nil {
					b.Fatal(err)
				}
				f.Close()
			}
			report()
		})
	}
	b.Run("walk", func(b *testing.B) {
		f, err := s.formatOf(l).mount(l, false)
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		for b.Loop() {
			if _, _, err := walk(b.Context(), fmt.Sprintf("/proc/self/fd/%d/.", f.Fd())); err != nil {
				b.Fatal(err)
			}
		}
	})
	if err := s.Drop([]*Layer{l}); err != nil {
		b.Fatal(err)
	}
}
