package snapshot

import (
	"bytes"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencontainers/go-digest"

	"github.com/cri-runtime/cri-runtime/internal/linux/mount"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// smallDisk mounts an ext4 of a few MiB that is kept in a file of dir.
func smallDisk(t *testing.T, dir string) string {
	t.Helper()
	testkit.Need(t, testkit.Root, testkit.Tool("mkfs.ext4"), testkit.Tool("mount"))
	img, at := filepath.Join(dir, "disk"), t.TempDir()
	if err := os.WriteFile(img, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img, 16<<20); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", img}, {"mount", "-o", "loop", img, at}} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil { // #nosec G204 -- of this test
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Errorf("unmount disk: %v", err)
			_ = mount.Detach(at)
		}
	})
	return at
}

// fill leaves not a byte.
func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for b := make([]byte, 1<<16); len(b) > 0; {
		if _, err := f.Write(b); errors.Is(err, unix.ENOSPC) {
			b = b[:len(b)/2]
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil && !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}

func TestFullDisk(t *testing.T) {
	each(t, func(t *testing.T, o Options) {
		disk := smallDisk(t, t.TempDir())
		o.Root = filepath.Join(disk, "root")
		s := open(t, o)
		if err := s.Collect(); err != nil {
			t.Fatal(err)
		}
		tars, want := threeLayers(t)
		ls := add(t, s, tars...)
		if err := s.Sync(t.Context(), ls); err != nil {
			t.Fatal(err)
		}
		fs, err := s.Prepare(t.Context(), Request{Key: "c", Image: "i", Layers: ls})
		if err != nil {
			t.Fatal(err)
		}
		checkRoot(t, fs, want) // overlay makes a directory then, for which there is no room later
		before := left(t, o)
		random := make([]byte, 32<<20)
		_, _ = rand.Read(random)
		big := makeTar(t, string(random), "big")
		for range 2 {
			if _, err := s.Unpack(t.Context(), digest.FromBytes(big), "", bytes.NewReader(big)); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("unpack: got %v", err)
			}
			emptied(t, o)
		}
		fill(t, disk)
		// Only whole or nothing, where there is no room for a directory entry's block.
		if l, err := s.Unpack(t.Context(), digest.FromBytes(tars[0]), "", bytes.NewReader(tars[0])); err == nil {
			err = s.Publish(t.Context(), []*Layer{l})
			if e := s.Drop([]*Layer{l}); e != nil {
				t.Errorf("drop: %v (publish: %v)", e, err)
			}
		}
		if fs2, err := s.Prepare(t.Context(), Request{Key: "c2", Image: "i", Layers: ls}); err == nil {
			t.Logf("a full disk had room for %v", fs2.Upper)
			if err := s.Release(t.Context(), "c2"); err != nil {
				t.Errorf("release: %v", err)
			}
		}
		emptied(t, o)
		if got := left(t, o); len(got) != len(before) {
			t.Errorf("left: got %v, want %v", got, before)
		}
		begin := time.Now()
		if err := s.Release(t.Context(), "c"); err != nil {
			t.Errorf("release: %v", err)
		}
		if err := s.Drop(ls); err != nil {
			t.Errorf("drop: %v", err)
		}
		t.Logf("release and drop took %v", time.Since(begin))
		if got := left(t, o); len(got) != 0 {
			t.Errorf("left: %v", got)
		}
		emptied(t, o)
		s = reopen(t, s, o)
		if got := left(t, o); len(got) != 0 {
			t.Errorf("left after a restart: %v", got)
		}
		if err := s.Close(); err != nil { // before the disk goes
			t.Error(err)
		}
	})
}

// emptied waits for the trash.
func emptied(t testing.TB, o Options) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		es, err := os.ReadDir(filepath.Join(o.Root, "trash"))
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("trash: still %v, %v", es, err)
		}
		if len(es) == 0 {
			return
		}
	}
}

// A disk that takes no more data, without saying so before it is told to sync: nothing of
// the layers may become durable, and the second try must not succeed.
func TestDiskThatFails(t *testing.T) {
	each(t, func(t *testing.T, o Options) {
		at := t.TempDir()
		f, err := mount.New("tmpfs", "tmpfs", []string{"mode=700", "size=4m"}, mount.Attr{})
		if err == nil {
			err = mount.AttachPath(f, at)
			f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = mount.Detach(at) })
		o.Root = filepath.Join(smallDisk(t, at), "root")
		s := open(t, o)
		random := make([]byte, 6<<20)
		_, _ = rand.Read(random)
		good, big := makeTar(t, "x", "a"), makeTar(t, string(random), "big")
		first := add(t, s, good)
		if err := s.Sync(t.Context(), first); err != nil {
			t.Fatal(err)
		}
		ls := add(t, s, good, big)
		if err := s.Sync(t.Context(), ls); !errors.Is(err, ErrDamaged) {
			t.Fatalf("sync: got %v", err)
		}
		if err := s.Sync(t.Context(), ls); err != nil {
			t.Errorf("sync once more: got %v", err)
		}
		if _, err := os.Stat(filepath.Join(o.Root, "layers", ls[1].Name+".json")); err == nil {
			t.Error("what was lost has a durable record")
		}
		if _, ok := s.Hold(ls[1].DiffID, ""); ok {
			t.Error("what was lost is still found")
		}
		if _, ok := s.Hold(ls[0].DiffID, ""); !ok {
			t.Error("what was durable before is lost too")
		}
		if err := s.Close(); err != nil { // before the disk goes
			t.Error(err)
		}
	})
}
