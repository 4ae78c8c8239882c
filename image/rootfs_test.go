package image

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cri-runtime/cri-runtime/image/snapshot"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// A damaged index is noticed before the kernel sees it, when a container is made; the
// image is not there any more then, and comes back by a pull under its ID.
func TestDamagedIndexIsPulledAgain(t *testing.T) {
	testkit.Need(t, testkit.Root, testkit.EROFS, testkit.Kernel(6, 15))
	r := newReg(t)
	_, id := r.simple(t, "x", "1", "x")
	s := openTest(t, Options{LayerStore: snapshot.EROFS})
	ref := r.host() + "/x:1"
	mustPull(t, s, ref)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, s.opt)
	indexes, err := filepath.Glob(filepath.Join(s.opt.Root, "l", "*.idx"))
	if err != nil || len(indexes) != 2 {
		t.Fatalf("indexes: got %v, %v", indexes, err)
	}
	data, err := os.ReadFile(indexes[0])
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-1] ^= 1
	if err := os.WriteFile(indexes[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prepare(t.Context(), "c", ID(id), PrepareOptions{}); !errors.Is(err, errdef.ErrNotFound) {
		t.Fatalf("prepare: got %v", err)
	}
	if img, err := s.Resolve(id); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("resolve: got %v, %v", img, err)
	}
	if got := mustPull(t, s, ref); string(got) != id {
		t.Errorf("pull: got %s, want %s", got, id)
	}
	if _, err := s.Prepare(t.Context(), "c", ID(id), PrepareOptions{}); err != nil {
		t.Errorf("prepare again: %v", err)
	}
}
