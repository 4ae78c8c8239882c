package snapshot

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

func TestLayersAreSpreadOverTheDisk(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	o := Options{Root: t.TempDir(), State: t.TempDir()}
	for range 2 { // made, found
		s, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(o.Root, &st); err != nil {
		t.Fatal(err)
	}
	if st.Type != unix.EXT4_SUPER_MAGIC {
		t.Skip("not ext4")
	}
	for dir, want := range map[string]bool{"l": true, "l/0": false, "s": true, "trash": false} { // it is not inherited
		f, err := os.Open(filepath.Join(o.Root, dir))
		if err != nil {
			t.Fatal(err)
		}
		flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		_ = f.Close()
		if got := flags&topDir != 0; err != nil || got != want {
			t.Errorf("flag of %s: got %v, %v, want %v", dir, got, err, want)
		}
	}
}
