package mount

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// The daemon may end between creation and start of a container: the next one makes the
// same overlay again, over the mark that the first has left.
func TestVolatileOverlayIsMadeAgain(t *testing.T) {
	testkit.Need(t, testkit.Root, testkit.Overlay)
	testkit.Leaks(t)
	for _, way := range []Way{Detached, Scratch} {
		o := tree(t, 2)
		o.Way, o.Volatile = way, true
		for i := range 3 {
			f, err := o.Mount()
			if err != nil {
				t.Fatalf("way %d, mount %d: %v", way, i, err)
			}
			fd, err := unix.Openat(int(f.Fd()), "new", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
			if err != nil {
				t.Fatal(err)
			}
			_ = unix.Close(fd)
			if _, err := os.Stat(filepath.Join(o.Work, "work/incompat/volatile")); err != nil {
				t.Errorf("way %d: not volatile: %v", way, err)
			}
			f.Close()
		}
		o.Volatile = false
		if f, err := o.Mount(); err == nil {
			f.Close()
			t.Errorf("way %d: an upper that was volatile is accepted as one that is not: the test tests nothing", way)
		}
	}
}

// A kernel before 6.15 refuses detached lowers after it has marked the work directory; the
// way that is tried then must not take the mark for a crash.
func TestVolatileMarkOfARefusedWay(t *testing.T) {
	testkit.Need(t, testkit.Root, testkit.Overlay)
	testkit.Leaks(t)
	o := tree(t, 2)
	o.Volatile = true
	for name, way := range map[string]func() (*os.File, error){"detached": o.detached, "scratch": o.scratch} {
		if err := os.MkdirAll(filepath.Join(o.Work, "work/incompat/volatile"), 0o700); err != nil {
			t.Fatal(err)
		}
		f, err := way()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		f.Close()
	}
}

// BenchmarkOverlayEnd is the end of an overlay while somebody else, such as a pull, has
// written to the filesystem of its upper.
func BenchmarkOverlayEnd(b *testing.B) {
	testkit.Need(b, testkit.Root, testkit.Overlay)
	data := make([]byte, 64<<20)
	for _, volatile := range []bool{false, true} {
		b.Run(fmt.Sprintf("volatile %v", volatile), func(b *testing.B) {
			o := tree(b, 5)
			o.Volatile = volatile
			for b.Loop() {
				b.StopTimer()
				f, err := o.Mount()
				if err == nil {
					err = os.WriteFile(filepath.Join(filepath.Dir(o.Upper), "other"), data, 0o600)
				}
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				f.Close()
			}
		})
	}
}
