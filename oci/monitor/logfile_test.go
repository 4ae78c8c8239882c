package monitor

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A container that has the log directory as a host path can put anything there.
func TestOpenLogRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	fifo, link, target := filepath.Join(dir, "fifo"), filepath.Join(dir, "link"), filepath.Join(dir, "target")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, link} {
		if f, err := OpenLog(path); err == nil {
			t.Errorf("%s was opened", path)
			_ = f.Close()
		}
	}
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	if f, err := OpenLog(fifo); err == nil { // without a reader it must not wait for one either
		t.Error("a fifo that nobody reads was opened")
		_ = f.Close()
	}
	for _, path := range []string{target, filepath.Join(dir, "new"), os.DevNull} {
		f, err := OpenLog(path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		_ = f.Close()
	}
}
