package snapshot

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// flip changes one byte of a file, counted from its end if at is negative.
func flip(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if at < 0 {
		fi, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		at += fi.Size()
	}
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0xff
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

func cut(t *testing.T, path string, by int64) {
	t.Helper()
	fi, err := os.Stat(path)
	if err == nil {
		err = os.Truncate(path, fi.Size()-by)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// damages are what a disk or a person may do to the layer base, and who has to notice.
func damages(f Format) map[string]struct {
	do    func(t *testing.T, base string)
	start bool // noticed by Open
	mount bool // by the first use
} {
	type d = struct {
		do    func(t *testing.T, base string)
		start bool
		mount bool
	}
	if f == Directory {
		return map[string]d{"tree gone": {func(t *testing.T, base string) {
			t.Helper()
			if err := os.RemoveAll(base); err != nil {
				t.Fatal(err)
			}
		}, true, false}}
	}
	file := func(do func(*testing.T, string, int64), suffix string, n int64) func(*testing.T, string) {
		return func(t *testing.T, base string) { t.Helper(); do(t, base+suffix, n) }
	}
	return map[string]d{
		"tar shorter":      {file(cut, tarSuffix, 1), true, true},
		"index shorter":    {file(cut, indexSuffix, 512), true, true},
		"no magic":         {file(flip, indexSuffix, 1024), true, true},
		"byte of index":    {file(flip, indexSuffix, 1100), false, true},
		"last of index":    {file(flip, indexSuffix, -1), false, true},
		"byte of tar":      {file(flip, tarSuffix, 512), false, false},
		"end mark of tar":  {file(flip, tarSuffix, 1536), false, false},
		"byte of the rest": {file(flip, tarSuffix, -4096), false, false},
		"tar gone": {func(t *testing.T, base string) {
			t.Helper()
			if err := os.Remove(base + tarSuffix); err != nil {
				t.Fatal(err)
			}
		}, true, true},
	}
}

// linked is an image whose upper layer holds a copy of a lower one's file.
func linked(t *testing.T) [][]byte {
	t.Helper()
	return [][]byte{makeTar(t, "below", "d/", "d/a"), makeTar(t, "x", "link=>d/a")}
}

func TestDamageIsFoundAndHealed(t *testing.T) {
	for _, f := range []Format{Directory, EROFS} {
		for name, d := range damages(f) {
			t.Run(string(f)+" "+name, func(t *testing.T) {
				need(t, f)
				testkit.Leaks(t)
				o := Options{Root: t.TempDir(), State: t.TempDir(), Format: f}
				s := open(t, o)
				ls := add(t, s, linked(t)...)
				if err := s.Sync(t.Context(), ls); err != nil {
					t.Fatal(err)
				}
				l := ls[1]
				if err := s.Verify(t.Context(), l); err != nil {
					t.Fatalf("verify a whole layer: %v", err)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				d.do(t, filepath.Join(o.Root, "l", l.Name))
				s = open(t, o)
				found, ok := s.Find(l.Name)
				if ok == d.start {
					t.Fatalf("find after a start: got %v", ok)
				}
				if ok {
					checkNoticed(t, s, []*Layer{ls[0], found}, d.mount)
				}
				if _, ok := s.Hold(l.DiffID, l.Chain); ok {
					t.Error("the damaged layer is still found")
				}
				again := add(t, s, linked(t)...)
				if again[1].Name == l.Name {
					t.Error("the damaged layer is used again")
				}
				if err := s.Verify(t.Context(), again[1]); err != nil {
					t.Errorf("verify the new layer: %v", err)
				}
				if ok {
					if err := s.Drop([]*Layer{found}); err != nil {
						t.Error(err)
					}
				}
				if err := s.Collect(); err != nil {
					t.Error(err)
				}
				for _, x := range left(t, o) {
					if strings.HasPrefix(x, "l/"+l.Name) || strings.HasPrefix(x, "layers/"+l.Name) {
						t.Errorf("left of the damaged layer: %s", x)
					}
				}
			})
		}
	}
}

func checkNoticed(t *testing.T, s *Store, ls []*Layer, byMount bool) {
	t.Helper()
	if below, ok := s.Find(ls[0].Name); ok {
		defer s.Drop([]*Layer{below})
	}
	_, err := s.Prepare(t.Context(), Request{Key: "c", Image: "i", Layers: ls})
	if errors.Is(err, ErrDamaged) != byMount {
		t.Errorf("prepare: got %v, damage to be noticed: %v", err, byMount)
	}
	if byMount {
		return
	}
	if err := s.Release(t.Context(), "c"); err != nil {
		t.Error(err)
	}
	if err := s.Verify(t.Context(), ls[1]); !errors.Is(err, ErrDamaged) {
		t.Errorf("verify: got %v", err)
	}
}

// Containers of a damaged image keep what they have written, over restarts too; only
// the next boot, which ends them, forgets the layer.
func TestContainersOfDamagedLayersGoOn(t *testing.T) {
	each(t, func(t *testing.T, o Options) {
		s := open(t, o)
		ls := add(t, s, linked(t)...)
		if err := s.Sync(t.Context(), ls); err != nil {
			t.Fatal(err)
		}
		fs, err := s.Prepare(t.Context(), Request{Key: "c", Image: "i", Layers: ls})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(fs.Upper, "mine"), []byte("data"), 0o600); err != nil {
			t.Fatal(err)
		}
		name := ls[1].Name
		durable := filepath.Join(o.Root, "layers", name+".json")
		record, err := os.ReadFile(durable)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := s.Damaged(name); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Prepare(t.Context(), Request{Key: "c2", Image: "i", Layers: ls}); !errors.Is(err, ErrDamaged) {
			t.Errorf("snapshot of a damaged layer: got %v", err)
		}
		if _, err := s.Prepare(t.Context(), Request{Key: "c", Image: "i", Layers: ls}); err != nil {
			t.Errorf("snapshot that is there: got %v", err)
		}
		for i := range 3 {
			if i == 1 { // the process ended in the middle of marking
				if err := os.WriteFile(durable, record, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s = reopen(t, s, o)
			if _, ok := s.Find(name); ok {
				t.Error("the damaged layer is still found")
			}
			if err := s.Collect(); err != nil {
				t.Fatal(err)
			}
			if fs, err = s.Get("c"); err != nil {
				t.Fatal(err)
			}
			checkRoot(t, fs, map[string]string{"mine": "data", "link": "below"})
		}
		if err := s.Release(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
		if got := left(t, o); len(got) != 0 {
			t.Errorf("left: %v", got)
		}
	})
}

// What cannot be read at start, while a container runs on it, costs no written data.
func TestContainerOutlivesItsLayersFiles(t *testing.T) {
	each(t, func(t *testing.T, o Options) {
		s := open(t, o)
		ls := add(t, s, linked(t)...)
		fs, err := s.Prepare(t.Context(), Request{Key: "c", Image: "i", Layers: ls})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for _, x := range suffixes {
			_ = os.RemoveAll(filepath.Join(o.Root, "l", ls[1].Name) + x)
		}
		s = open(t, o)
		if err := s.Collect(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(fs.Upper); err != nil || len(s.Keys()) != 1 {
			t.Errorf("writable layer: %v, keys %v", err, s.Keys())
		}
		if err := s.Release(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
		if got := left(t, o); len(got) != 0 {
			t.Errorf("left: %v", got)
		}
	})
}

func TestGarbage(t *testing.T) {
	each(t, func(t *testing.T, o Options) {
		s := open(t, o)
		ls := add(t, s, linked(t)...)
		if _, err := s.Prepare(t.Context(), Request{Key: "c", Image: "i", Layers: ls[:1]}); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Garbage(t.Context(), true); err != nil || len(got) != 0 {
			t.Errorf("garbage of a store in order: got %v, %v", got, err)
		}
		orphans := []string{"l/zz", "l/zy" + tarSuffix, "l/0" + indexSuffix, "s/zx"}
		for _, p := range orphans {
			if err := os.WriteFile(filepath.Join(o.Root, p), make([]byte, 10000), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Drop(ls[1:]); err != nil { // not collected yet
			t.Fatal(err)
		}
		want := len(orphans) + 1
		if o.Format == EROFS {
			want++
		}
		for _, dry := range []bool{true, true, false} {
			got, err := s.Garbage(t.Context(), dry)
			if err != nil || len(got) != want {
				t.Errorf("garbage: got %v, %v, want %d", got, err, want)
			}
			for _, g := range got {
				if g.Bytes == 0 || g.Inodes == 0 {
					t.Errorf("%s has no size", g.Path)
				}
			}
		}
		for _, p := range orphans {
			if _, err := os.Stat(filepath.Join(o.Root, p)); !errors.Is(err, unix.ENOENT) {
				t.Errorf("%s: still there, %v", p, err)
			}
		}
		fs, err := s.Get("c")
		if err != nil {
			t.Fatal(err)
		}
		checkRoot(t, fs, map[string]string{"d/a": "below"})
	})
}
