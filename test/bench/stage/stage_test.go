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

// TestSweepTakesWhatAKilledRunLeft: and nothing of one that lives.
func TestSweepTakesWhatAKilledRunLeft(t *testing.T) {
	disk := t.TempDir()
	dead, unlock, err := newWork(disk)
	if err != nil {
		t.Fatal(err)
	}
	unlock() // as the kernel does for a process that was killed
	alive, unlock, err := newWork(disk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unlock()
		if err := alive.remove(); err != nil {
			t.Error(err)
		}
	})
	if err := sweep(disk); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]bool{dead.Dir: false, dead.Memory: false, alive.Dir: true, alive.Memory: true} {
		if _, err := os.Stat(dir); err == nil != want {
			t.Errorf("%s: got %v, want it there: %v", dir, err, want)
		}
	}
}
