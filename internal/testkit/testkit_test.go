package testkit

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLeaksSee makes one leak of each kind and looks whether the comparison has it.
func TestLeaksSee(t *testing.T) {
	Need(t, Root)
	Leaks(t) // and that this test takes all of them back
	dir := t.TempDir()
	before := take(t, []string{dir})
	want := map[string]func() (undo func()){
		"mount " + dir + "/a b": func() func() {
			at := filepath.Join(dir, "a b")
			if err := os.Mkdir(at, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("x", at, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			return func() { _ = unix.Unmount(at, 0) }
		},
		"descriptor of " + dir: func() func() {
			f, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			return func() { _ = f.Close() }
		},
		"process": func() func() {
			cmd := exec.Command("sleep", "100")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			return func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
		},
		"goroutine": func() func() {
			stop, done := make(chan bool), make(chan bool)
			go func() { <-stop; close(done) }()
			return func() { close(stop); <-done }
		},
		"cgroup": func() func() {
			c := UnifiedDir(t)
			return func() { _ = os.Remove(c) }
		},
	}
	for name, leak := range want {
		undo := leak()
		got := take(t, []string{dir}).minus(before)
		found := false
		for _, s := range got {
			found = found || strings.HasPrefix(s, name)
		}
		if !found {
			t.Errorf("%s: not found among %q", name, got)
		}
		undo()
	}
}

func TestFirstDifference(t *testing.T) {
	line, a, b := firstDifference("x\ny\n", "x\nz\n")
	if line != 2 || a != "y" || b != "z" {
		t.Errorf("got %d %q %q, want 2 y z", line, a, b)
	}
}
