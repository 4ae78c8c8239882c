package stage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// TestMain plays the inner half of TestNothingIsLeft.
func TestMain(m *testing.M) {
	var s played
	if yes, err := Play(context.Background(), &s, func(ctx context.Context) error { return s.inner(ctx) }); yes {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// played is what TestNothingIsLeft hands to its inner half.
type played struct {
	Work Work
	Fail bool
}

// inner leaves a process in a cgroup, a mount and a link, and an orphan that has ended.
func (p played) inner(ctx context.Context) error {
	c, err := NewCgroup(p.Work.Cgroup + "/1")
	if err != nil {
		return err
	}
	if err := MakeCgroups(p.Work.Cgroup + "/1/pods"); err != nil {
		return err
	}
	if _, err := Start(context.WithoutCancel(ctx), os.DevNull, nil, c.Command([]string{"sleep", "1000"})); err != nil {
		return err
	}
	for point, kind := range map[string]string{p.Work.Dir: "tmpfs", "/mnt": "tmpfs"} {
		if err := unix.Mount(kind, point, kind, 0, ""); err != nil {
			return err
		}
	}
	if err := exec.CommandContext(ctx, "sh", "-c", "(sleep 0.05 &) ; exit 0").Run(); err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		stats, _ := filepath.Glob("/proc/[0-9]*/stat")
		if len(stats) == 3 { // the first process, this one, and the sleeper
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes: got %v, want 3: nobody waits for orphans", stats)
		}
	}
	if p.Fail {
		return errors.New("as was asked for")
	}
	return nil
}

func TestNothingIsLeft(t *testing.T) {
	testkit.Need(t, testkit.Root)
	for name, fail := range map[string]bool{"well": false, "badly": true} {
		t.Run(name, func(t *testing.T) {
			disk := t.TempDir()
			var work Work
			err := Outside(t.Context(), disk, func(w Work) any {
				work = w
				return played{w, fail}
			})
			if fail != (err != nil) {
				t.Errorf("got %v, want an error: %v", err, fail)
			}
			left, _ := filepath.Glob("/sys/fs/cgroup/*/" + work.Cgroup)
			two, _ := filepath.Glob("/sys/fs/cgroup/" + work.Cgroup)
			more, _ := filepath.Glob(filepath.Join(disk, "*"))
			if left = append(append(left, two...), more...); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			if _, err := os.Stat(work.Memory); err == nil {
				t.Errorf("left: %s", work.Memory)
			}
		})
	}
}

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
