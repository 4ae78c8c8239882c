package image

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkPull pulls three layers of 64 MiB, half of it compressible, and 3000 small
// files from a registry in this process: its cost is in the figures.
func BenchmarkPull(b *testing.B) {
	for _, how := range []string{"gzip", "zstd"} {
		b.Run(how, func(b *testing.B) {
			r := newReg(b)
			rnd := rand.New(rand.NewPCG(1, 2)) // #nosec G404 -- the same data each time
			im := testImage{pack: how, single: true}
			total := 0
			for i := range 3 {
				var fs []file
				for j := range 64 {
					body := make([]byte, 1<<20)
					for k := 0; k < len(body); k += 2 {
						body[k] = byte(rnd.Uint32())
					}
					fs = append(fs, file{name: fmt.Sprintf("big/%d/%d", i, j), body: string(body)})
				}
				for j := range 1000 {
					fs = append(fs, file{name: fmt.Sprintf("small/%d/%d", i, j), body: "x"})
				}
				l := makeTar(b, fs...)
				total += len(l)
				im.layers = append(im.layers, l)
			}
			_, id := r.push(b, "x", "1", im)
			s := openTest(b, Options{})
			b.SetBytes(int64(total))
			for b.Loop() {
				if _, err := s.Pull(b.Context(), PullRequest{Ref: r.host() + "/x:1"}); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				mustRemove(b, s, id)
				b.StartTimer()
			}
		})
	}
}

// BenchmarkPullImages pulls the references in CRI_BENCH_IMAGES, a comma list, from a
// registry that is there already. It tells the processor time beside
// the wall clock, which on a shared machine says more.
func BenchmarkPullImages(b *testing.B) {
	refs := os.Getenv("CRI_BENCH_IMAGES")
	if refs == "" {
		b.Skip("CRI_BENCH_IMAGES names no images")
	}
	for ref := range strings.SplitSeq(refs, ",") {
		b.Run(path.Base(ref), func(b *testing.B) {
			s := openTest(b, Options{})
			var cpu time.Duration
			for b.Loop() {
				before := cpuTime(b)
				id, err := s.Pull(b.Context(), PullRequest{Ref: ref})
				if err != nil {
					b.Fatal(err)
				}
				cpu += cpuTime(b) - before
				b.StopTimer()
				img, err := s.Resolve(string(id))
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(img.Size)
				mustRemove(b, s, string(id))
				for len(entries(b, filepath.Join(s.opt.Root, "trash"))) > 0 {
					time.Sleep(time.Millisecond) // deleting is not part of the next pull
				}
				b.StartTimer()
			}
			b.ReportMetric(cpu.Seconds()/float64(b.N), "cpu-s/op")
		})
	}
}

// cpuTime gives what this process has used so far, in user and kernel mode.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
