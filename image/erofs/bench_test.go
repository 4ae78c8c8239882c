package erofs

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// many is a tree of n files in one piece, in directories of per files.
func many(n, per int) (*Node, int64) {
	root := dir(0o755)
	for i := range n / per {
		d := dir(0o755)
		root.Children[fmt.Sprintf("directory-%05d", i)] = d
		for j := range per {
			d.Children[fmt.Sprintf("some-file-%06d.js", j)] = &Node{
				Mode: unix.S_IFREG | 0o644, Sec: 1700000000, Size: 3000,
				Extents: []Extent{{0, int64(i*per+j)*4096 + 512, 3000}},
			}
		}
	}
	return root, int64(n) * 4096
}

func BenchmarkWrite(b *testing.B) {
	for _, c := range []struct{ n, per int }{{60000, 60}, {20000, 20000}, {50000, 50000}} {
		b.Run(fmt.Sprintf("%d-files-by-%d", c.n, c.per), func(b *testing.B) {
			root, size := many(c.n, c.per)
			b.ReportAllocs()
			for b.Loop() {
				stats, err := Write(io.Discard, root, Options{DeviceSize: size})
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(stats.Size), "image-bytes")
			}
		})
	}
}

// BenchmarkKernel mounts an index and looks at each of its files, as a container that
// starts does with some. The index is in the page cache, its inodes are not.
func BenchmarkKernel(b *testing.B) {
	testkit.Need(b, testkit.Root, testkit.EROFS, testkit.Kernel(6, 12))
	root, size := many(60000, 60)
	at := b.TempDir()
	index, data := filepath.Join(at, "index"), filepath.Join(at, "data")
	f, err := os.OpenFile(index, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if _, err := Write(f, root, Options{DeviceSize: size}); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(data, nil, 0o600); err != nil {
		b.Fatal(err)
	}
	if err := os.Truncate(data, size); err != nil {
		b.Fatal(err)
	}
	b.Run("mount", func(b *testing.B) {
		for b.Loop() {
			mountIndex(b, index, data).Close()
		}
	})
	walk := func(b *testing.B, visit func(path string) error) {
		for b.Loop() {
			f := mountIndex(b, index, data)
			n := 0
			err := filepath.WalkDir(fmt.Sprintf("/proc/self/fd/%d/", f.Fd()), func(path string, e os.DirEntry, err error) error {
				if n++; err != nil || e.IsDir() {
					return err
				}
				return visit(path)
			})
			if err != nil || n != 61001 {
				b.Fatalf("%d of 61001 files: %v", n, err)
			}
			f.Close()
		}
	}
	b.Run("walk", func(b *testing.B) {
		walk(b, func(path string) error { _, err := os.Lstat(path); return err })
	})
	b.Run("read", func(b *testing.B) {
		walk(b, func(path string) error { _, err := os.ReadFile(path); return err })
	})
}
