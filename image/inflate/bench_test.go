package inflate_test

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	kgzip "github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/inflate"
)

// trees are what layers are made of. INFLATE_TREE=DIR adds another one.
var trees = map[string]string{
	"lib": "/usr/lib/x86_64-linux-gnu", "bin": "/usr/bin", "python": "/usr/lib/python3", "share": "/usr/share", "own": os.Getenv("INFLATE_TREE"),
}

const layerSize = 64 << 20

func tarOf(b *testing.B, dir string) []byte {
	b.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || out.Len() > layerSize {
			return filepath.SkipAll
		}
		info, err := d.Info()
		if err != nil || !info.Mode().IsRegular() && !info.IsDir() {
			return nil
		}
		h, _ := tar.FileInfoHeader(info, "")
		h.Name = strings.TrimPrefix(path, "/")
		if info.IsDir() {
			h.Name += "/"
			return w.WriteHeader(h)
		}
		data, err := os.ReadFile(path)
		if err != nil || len(data) > 16<<20 {
			return nil
		}
		h.Size = int64(len(data))
		w.WriteHeader(h)
		_, err = w.Write(data)
		return err
	})
	w.Close()
	return out.Bytes()
}

// zippers are the programs whose output is measured.
var zippers = []struct {
	name string
	args []string
}{{"gzip1", []string{"gzip", "-1"}}, {"gzip6", []string{"gzip", "-6"}}, {"gzip9", []string{"gzip", "-9"}}, {"pigz", []string{"pigz"}}, {"flushed", nil}}

func zip(b *testing.B, args []string, data []byte) []byte {
	b.Helper()
	var out bytes.Buffer
	if args == nil {
		w := kgzip.NewWriter(&out) // as pigz writes: blocks of 128 KiB, a flush after each
		for piece := range slices.Chunk(data, 128<<10) {
			w.Write(piece)
			w.Flush()
		}
		w.Close()
		return out.Bytes()
	}
	if _, err := exec.LookPath(args[0]); err != nil {
		b.Skip(err)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout = bytes.NewReader(data), &out
	if err := cmd.Run(); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}

func BenchmarkInflate(b *testing.B) {
	for name, dir := range trees {
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		b.Run(name, func(b *testing.B) {
			data := tarOf(b, dir)
			for _, z := range zippers {
				b.Run(z.name, func(b *testing.B) { compare(b, zip(b, z.args, data), len(data)) })
			}
		})
	}
}

// cpuTime tells more than the clock on a machine that does other things as well.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func compare(b *testing.B, zipped []byte, size int) {
	run := func(name string, open func(io.Reader) (io.Reader, error)) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(size))
			cpu, n := cpuTime(b), 0
			for b.Loop() {
				z, err := open(bytes.NewReader(zipped))
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, z); err != nil {
					b.Fatal(err)
				}
				if c, ok := z.(io.Closer); ok {
					c.Close()
				}
				n++
			}
			b.ReportMetric(float64(size)*float64(n)/1e6/(cpuTime(b)-cpu).Seconds(), "MB/cpu-s")
		})
	}
	run("ours", func(r io.Reader) (io.Reader, error) { return inflate.NewReader(r) })
	run("klauspost", func(r io.Reader) (io.Reader, error) { return kgzip.NewReader(r) })
}
