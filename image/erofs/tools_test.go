package erofs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// TestToolsReadTheSame lets fsck.erofs check and extract an index. That of Debian 12
// (1.5) knows no blocks but those of 4 KiB; CRI_FSCK_EROFS names another one, which gets
// blocks of 512 bytes as well.
func TestToolsReadTheSame(t *testing.T) {
	testkit.Need(t, testkit.Root, testkit.Tool("fsck.erofs"))
	t.Run("4096", func(t *testing.T) { extract(t, "fsck.erofs", aligned(4096), 12) })
	if newer := os.Getenv("CRI_FSCK_EROFS"); newer != "" {
		t.Run("4096 newer", func(t *testing.T) { extract(t, newer, aligned(4096), 12) })
		t.Run("512", func(t *testing.T) { extract(t, newer, everything(), 9) })
	}
}

func extract(t *testing.T, fsck string, s *sample, bits int) {
	t.Helper()
	simplify(s)
	at := t.TempDir()
	index, data, out := filepath.Join(at, "index"), filepath.Join(at, "data"), filepath.Join(at, "out")
	if err := os.WriteFile(index, s.write(t, Options{BlockBits: bits}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(data, s.data, 0o600); err != nil {
		t.Fatal(err)
	}
	msg, err := exec.Command(fsck, "--device="+data, "--extract="+out, "--preserve", index).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", fsck, err, msg)
	}
	verify(t, out, s)
}

// simplify takes away what fsck.erofs reads but does not extract: attributes, holes at the
// end of a file, set-user-id bits and hard links (1.5); and times that ext4 cannot keep.
func simplify(s *sample) {
	for name, n := range s.root.Children {
		if k := len(n.Extents) - 1; k >= 0 && n.Extents[k].Start+n.Extents[k].Len < n.Size || k < 0 && n.Size > 0 {
			delete(s.root.Children, name)
		}
		if strings.HasPrefix(name, "x-") {
			n.Xattr = nil
		}
	}
	for _, name := range []string{"setuid", "old", "far", "hard-1", "hard-2", "fifo-1"} {
		delete(s.root.Children, name)
	}
	s.root.Children["fifo-2"].Mode = unix.S_IFIFO | 0o640
}
