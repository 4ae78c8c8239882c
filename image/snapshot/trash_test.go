package snapshot

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// A container's end must not cost a sync of the disk; only a layer has a record whose
// removal has to be on it before the layer's files go.
func TestTrashSettles(t *testing.T) {
	testkit.Leaks(t)
	root := t.TempDir()
	settled := 0
	tr := newTrash(filepath.Join(root, "trash"), func() error { settled++; return nil })
	for _, d := range []string{"trash", "l", "l/1", "s", "s/2", "s/2/u"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for i, path := range []string{"s/2", "l/1"} {
		if err := tr.put(filepath.Join(root, path)); err != nil {
			t.Fatal(err)
		}
		tr.empty(t.Context())
		if settled != i {
			t.Errorf("after %s: settled %d times, want %d", path, settled, i)
		}
		if es, err := os.ReadDir(filepath.Join(root, "trash")); err != nil || len(es) > 0 {
			t.Errorf("after %s: trash has %v, %v", path, es, err)
		}
	}
}
