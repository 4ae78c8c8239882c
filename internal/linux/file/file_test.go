package file

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

func TestContents(t *testing.T) {
	testkit.Leaks(t)
	path := filepath.Join(t.TempDir(), "f")
	if err := Append(path, []byte("x")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("append to nothing: got %v, want %v", err, fs.ErrNotExist)
	}
	for _, step := range []struct {
		do   func() error
		want string
	}{
		{func() error { return Write(path, []byte("first and long"), 0o640) }, "first and long"},
		{func() error { return Write(path, []byte("second"), 0o600) }, "second"},
		{func() error { return Append(path, []byte(" and more")) }, "second and more"},
		{func() error { return Replace(path, nil, 0o600) }, ""},
		{func() error { return Replace(path, []byte(strings.Repeat("large", 1<<20)), 0o600) }, strings.Repeat("large", 1<<20)},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		got, err := Read(path, 1<<30)
		if err != nil || string(got) != step.want {
			t.Errorf("got %.40q, %v, want %.40q", got, err, step.want)
		}
	}
	if _, err := Read(path, 10); !errors.Is(err, unix.EFBIG) {
		t.Errorf("too large: got %v, want %v", err, unix.EFBIG)
	}
	for range 2 { // the second finds nothing and is content
		if err := Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	for range 2 {
		if err := Mkdir(path, 0o750); err != nil {
			t.Fatal(err)
		}
	}
	if fi, err := os.Stat(path); err != nil || !fi.IsDir() || fi.Mode().Perm() != 0o750 {
		t.Errorf("directory: got %v, %v", fi, err)
	}
}

func TestFailedReplaceLeavesNothing(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	path := filepath.Join(dir, "f")
	if err := Replace(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Replace(path, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v, want %v", err, unix.ENOSPC)
	}
	if got, err := Read(path, 100); err != nil || string(got) != "old" {
		t.Errorf("got %q, %v, want the old content", got, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v, want one file", left, err)
	}
}
