package stage

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// TestCgroupCountsEndedChildren: a shell whose child works and ends.
func TestCgroupCountsEndedChildren(t *testing.T) {
	testkit.Need(t, testkit.Root)
	name := filepath.Base(t.TempDir()) + "-bench-test"
	c, err := NewCgroup(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := RemoveCgroups(name); err != nil {
			t.Error(err)
		}
	})
	argv := c.Command([]string{"/bin/sh", "-c", "dd if=/dev/zero of=/dev/null bs=1M count=3000 2>/dev/null; cat"})
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		if used, err := c.CPU(); err != nil {
			t.Fatal(err)
		} else if used > 50*time.Millisecond {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if pids := c.PIDs(); len(pids) == 0 {
		t.Error("processes: got none")
	}
	if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	if used, err := c.CPU(); err != nil || used < 50*time.Millisecond || used > 10*time.Second {
		t.Errorf("processor time: got %v, %v", used, err)
	}
}

// TestPeakSeesWhatIsFreed: memory that is gone again when the watch ends.
func TestPeakSeesWhatIsFreed(t *testing.T) {
	const size = 64 << 20
	before := Resident(os.Getpid())
	if err := ResetPeak(os.Getpid()); err != nil {
		t.Skip("this kernel does not reset VmHWM: ", err)
	}
	area, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_POPULATE)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Munmap(area); err != nil {
		t.Fatal(err)
	}
	if got := Status(os.Getpid(), "VmHWM"); got < before+size*9/10 {
		t.Errorf("peak: got %d, want at least %d more than %d", got, size, before)
	}
}
