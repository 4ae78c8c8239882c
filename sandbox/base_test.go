package sandbox

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/linux/mount"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// An image without mount points gets them without an inode of its writable layer, and
// what an image has in their place stays.
func TestBase(t *testing.T) {
	testkit.Need(t, testkit.Root, testkit.Overlay)
	testkit.Leaks(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"state", "image", "upper", "work"} {
		if err := os.Mkdir(at(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("proc", at("image/sys")); err != nil {
		t.Fatal(err)
	}
	s := &Service{Config: Config{State: at("state")}, paths: paths{at("state")}}
	if err := s.makeBase(); err != nil || s.base != "" {
		t.Fatalf("not on tmpfs: got %q, %v, want none", s.base, err)
	}
	if err := unix.Mount("tmpfs", at("state"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(at("state"), unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	for range 2 { // made, found
		if err := s.makeBase(); err != nil || s.base == "" {
			t.Fatalf("got %q, %v, want a directory", s.base, err)
		}
	}
	pr := &podRecord{podBase: &podBase{}}
	root, err := mount.Overlay{Lower: s.withBase([]string{at("image")}, pr), Upper: at("upper"), Work: at("work"), Volatile: true}.Mount()
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for name, want := range map[string]uint32{"proc": unix.S_IFDIR, "sys": unix.S_IFLNK, "dev": unix.S_IFDIR, "etc/hosts": unix.S_IFREG, "etc/resolv.conf": unix.S_IFREG} {
		var st unix.Stat_t
		if err := unix.Fstatat(int(root.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT != want {
			t.Errorf("%s: got mode %o, %v, want %o", name, st.Mode, err, want)
		}
	}
	if es, err := os.ReadDir(at("upper")); err != nil || len(es) > 0 {
		t.Errorf("writable layer: got %v, %v, want nothing in it", es, err)
	}
	pr.Config.Security.Namespaces.User = &UserNamespace{}
	if got := s.withBase([]string{"a"}, pr); len(got) != 1 {
		t.Errorf("with a user namespace: got %v", got)
	}
	if got := s.withBase(make([]string, maxLower), &podRecord{podBase: &podBase{}}); len(got) != maxLower {
		t.Errorf("of the most layers that can be: got %d", len(got))
	}
}
