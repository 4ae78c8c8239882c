package image

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cri-runtime/cri-runtime/image/snapshot"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// A pulled image is usable at once, survives the daemon at once, and a power cut after Flush.
func TestDurableBehindTheCaller(t *testing.T) {
	testkit.Need(t, testkit.Root)
	r := newReg(t)
	_, id := r.simple(t, "x", "1", "x")
	s := openTest(t, Options{})
	s.sync.one.Lock() // the syncer does not come to it
	mustPull(t, s, r.host()+"/x:1")
	if _, err := s.View(t.Context(), "v", ID(id)); err != nil {
		t.Errorf("before it is durable: %v", err)
	}
	if got := entries(t, filepath.Join(s.opt.Root, "images")); len(got) != 0 {
		t.Errorf("durable records before the sync: %v", got)
	}
	state := s.opt.State
	killed := openTest(t, Options{Root: s.opt.Root, State: state}) // as after kill -9
	if got := killed.List(); len(got) != 1 {
		t.Errorf("after the end of the daemon: %v", got)
	}
	if err := killed.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	if err := killed.Close(); err != nil {
		t.Error(err)
	}
	if got := entries(t, filepath.Join(state, "images")); len(got) != 0 {
		t.Errorf("records on tmpfs after the sync: %v", got)
	}
	s.sync.one.Unlock()
	rebooted := openTest(t, Options{Root: s.opt.Root, State: t.TempDir()})
	if got := rebooted.List(); len(got) != 1 || got[0].ID != ID(id) || len(got[0].RepoTags) != 1 {
		t.Errorf("after a reboot: %v", got)
	}
}

// Whoever gives back the memory of pulls is told when they are over, and each time.
func TestSettledBehindPulls(t *testing.T) {
	testkit.Need(t, testkit.Root)
	r := newReg(t)
	settled := make(chan []string)
	var root string
	s := openTest(t, Options{Settled: func() { settled <- entries(t, filepath.Join(root, "images")) }})
	root = s.opt.Root
	for i, tag := range []string{"1", "2"} {
		r.simple(t, "x", tag, "x"+tag)
		mustPull(t, s, r.host()+"/x:"+tag)
		if durable := <-settled; len(durable) != i+1 {
			t.Errorf("pull %d: settled with the records %v", i+1, durable)
		}
	}
}

// A damaged image is not listed; the next pull fetches what is damaged and gives back
// the ID and all names.
func TestVerifyAndHeal(t *testing.T) {
	testkit.Need(t, testkit.Root)
	r := newReg(t)
	_, id := r.simple(t, "x", "1", "x")
	r.simple(t, "x", "2", "x")
	s := openTest(t, Options{LayerStore: snapshot.EROFS})
	mustPull(t, s, r.host()+"/x:1")
	mustPull(t, s, r.host()+"/x:2")
	if err := errors.Join(s.Flush(t.Context()), s.Verify(t.Context(), id)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prepare(t.Context(), "c", ID(id), PrepareOptions{}); err != nil {
		t.Fatal(err)
	}
	flip(t, filepath.Join(s.opt.Root, "l", s.images[ID(id)].layers[1].Name+".tar"), 600)
	if err := s.Verify(t.Context(), id); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("verify: got %v", err)
	}
	if _, err := s.Resolve(id); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("resolve a damaged image: got %v", err)
	}
	before := r.total()
	if got := mustPull(t, s, r.host()+"/x:1"); got != ID(id) {
		t.Errorf("healed: got %s, want %s", got, id)
	}
	if n := r.total() - before; n > 4 { // manifest by HEAD and GET, config, one layer
		t.Errorf("healing took %d requests", n)
	}
	img, err := s.Resolve(r.host() + "/x:2")
	if err != nil || len(img.RepoTags) != 2 {
		t.Errorf("other names of the healed image: %v, %v", img, err)
	}
	if err := s.Verify(t.Context(), id); err != nil {
		t.Errorf("verify after healing: %v", err)
	}
	if err := s.Release(t.Context(), "c"); err != nil {
		t.Error(err)
	}
}

// Damage that is found through one image takes its layer's other images from the list, too;
// an image without that layer stays.
func TestDamageOfASharedLayer(t *testing.T) {
	testkit.Need(t, testkit.Root)
	r := newReg(t)
	_, one := r.simple(t, "x", "1", "one")
	_, two := r.simple(t, "x", "2", "two")
	_, other := r.push(t, "x", "3", testImage{pack: "gzip", layers: [][]byte{makeTar(t, file{name: "etc/d", body: "d"})}})
	s := openTest(t, Options{LayerStore: snapshot.EROFS})
	for _, tag := range []string{"1", "2", "3"} {
		mustPull(t, s, r.host()+"/x:"+tag)
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	flip(t, filepath.Join(s.opt.Root, "l", s.images[ID(one)].layers[0].Name+".tar"), 600)
	if err := s.Verify(t.Context(), one); !errors.Is(err, snapshot.ErrDamaged) {
		t.Errorf("verify: got %v", err)
	}
	if got := s.List(); len(got) != 1 || got[0].ID != ID(other) {
		t.Errorf("listed: got %v, want %s alone", got, other)
	}
	for tag, id := range map[string]string{"1": one, "2": two} {
		if got := mustPull(t, s, r.host()+"/x:"+tag); got != ID(id) {
			t.Errorf("healed: got %s, want %s", got, id)
		}
		if err := s.Verify(t.Context(), id); err != nil {
			t.Errorf("verify after healing: %v", err)
		}
	}
}

// What others put into the store's directories is found, and taken away when asked for.
func TestGarbage(t *testing.T) {
	testkit.Need(t, testkit.Root)
	r := newReg(t)
	_, id := r.simple(t, "x", "1", "x")
	s := openTest(t, Options{})
	mustPull(t, s, r.host()+"/x:1")
	if _, err := s.Prepare(t.Context(), "c", ID(id), PrepareOptions{}); err != nil {
		t.Fatal(err)
	}
	strange := filepath.Join(s.opt.Root, "l", "zz")
	if err := errors.Join(os.Mkdir(strange, 0o700), os.WriteFile(filepath.Join(strange, "f"), make([]byte, 10000), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, dryRun := range []bool{true, true, false} {
		got, err := s.Garbage(t.Context(), dryRun)
		if err != nil || len(got) != 1 || got[0].Path != strange || got[0].Bytes < 10000 {
			t.Errorf("garbage, dry run %v: got %+v, %v", dryRun, got, err)
		}
	}
	if _, err := os.Stat(strange); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the collection: %v", err)
	}
	if err := s.Verify(t.Context(), id); err != nil {
		t.Error(err)
	}
}

// After a reboot an image is compared with its digests once it is in use, and only once.
func TestScrubAfterReboot(t *testing.T) {
	testkit.Need(t, testkit.Root)
	r := newReg(t)
	_, id := r.simple(t, "x", "1", "x")
	s := openTest(t, Options{LayerStore: snapshot.EROFS})
	mustPull(t, s, r.host()+"/x:1")
	name := s.images[ID(id)].layers[0].Name
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, damaged := range []bool{false, true} {
		if damaged {
			flip(t, filepath.Join(s.opt.Root, "l", name+".tar"), 600)
		}
		o := Options{Root: s.opt.Root, State: t.TempDir(), LayerStore: snapshot.EROFS}
		s := openTest(t, o)
		if n := len(entries(t, filepath.Join(o.State, "verified"))); n != 0 {
			t.Errorf("before use %d images were read", n)
		}
		// The damage may be found before the view is made.
		if _, err := s.View(t.Context(), "v", ID(id)); err != nil && (!damaged || !errors.Is(err, snapshot.ErrDamaged)) {
			t.Fatal(err)
		}
		eventually(t, "the image has been read", func() bool {
			return damaged && len(s.List()) == 0 || !damaged && len(entries(t, filepath.Join(o.State, "verified"))) == 1
		})
		if damaged == (len(s.List()) == 1) {
			t.Errorf("damaged %v: got images %v", damaged, s.List())
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if again := openTest(t, o); !damaged && len(again.scrub.unseen) != 0 {
			t.Error("after a restart of the daemon it would be read again")
		}
	}
}

func flip(t *testing.T, file string, off int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	_, err = f.ReadAt(b[:], off)
	b[0] ^= 0x20
	if err == nil {
		_, err = f.WriteAt(b[:], off)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// What removing one image alone would free.
func TestUniqueBytes(t *testing.T) {
	r := newReg(t)
	one, two := base(t), makeTar(t, file{name: "own", body: strings.Repeat("x", 100_000)})
	_, a := r.push(t, "x", "a", testImage{layers: [][]byte{one}})
	_, b := r.push(t, "x", "b", testImage{layers: [][]byte{one, two}})
	s := openTest(t, Options{})
	mustPull(t, s, r.host()+"/x:a")
	if img, err := s.Resolve(a); err != nil || img.Unique != img.Size {
		t.Errorf("alone: %v, %v", img, err)
	}
	mustPull(t, s, r.host()+"/x:b")
	small, err := s.Resolve(a)
	large, err2 := s.Resolve(b)
	if err = errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	if small.Unique >= 4096 || large.Unique < 100_000 || large.Unique >= large.Size || large.Size-large.Unique != small.Size-small.Unique {
		t.Errorf("bytes and those of its own: %d, %d; %d, %d", small.Size, small.Unique, large.Size, large.Unique)
	}
	mustRemove(t, s, a)
	if img, err := s.Resolve(b); err != nil || img.Unique != img.Size {
		t.Errorf("alone again: %v, %v", img, err)
	}
}
