package monitor

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// kill ends the monitor with SIGKILL and waits for the client to have the next one.
func (w *world) kill() {
	w.t.Helper()
	old := w.c.MonitorPID()
	if err := unix.Kill(old, unix.SIGKILL); err != nil {
		w.t.Fatal(err)
	}
	w.newMonitor(old)
}

func (w *world) newMonitor(old int) {
	w.t.Helper()
	for end := time.Now().Add(10 * time.Second); w.c.MonitorPID() == old || w.c.current() == nil; {
		if time.Now().After(end) {
			w.t.Fatal("no new monitor")
		}
		time.Sleep(time.Millisecond)
	}
}

func (w *world) lines(id string, count, width, batch, pause int) {
	w.t.Helper()
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	w.run(id, self, "lines", fmt.Sprint(count), fmt.Sprint(width), fmt.Sprint(batch), fmt.Sprint(pause))
}

// The monitor is killed at random moments while containers print: no line may be
// lost, repeated or torn, and nobody gets SIGPIPE.
func TestKillDuringOutput(t *testing.T) {
	for name, tc := range map[string]struct{ count, width, batch, pause int }{
		"single lines":  {60000, 60, 1, 0},
		"batches":       {400000, 100, 640, 0},
		"torn batches":  {200000, 313, 97, 0},
		"two-page line": {20000, 9001, 3, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.lines("a", tc.count, tc.width, tc.batch, tc.pause)
			w.lines("b", tc.count, tc.width, tc.batch, tc.pause)
			kills := 0
			for range 25 {
				time.Sleep(time.Duration(rand.IntN(12000)) * time.Microsecond)
				if _, ok := w.c.Exit("a"); ok {
					break
				}
				w.kill()
				kills++
			}
			for _, id := range []string{"a", "b"} {
				e := w.wait(id)
				if e.Known && e.Code != 0 {
					t.Errorf("%s: exit %+v, want 0", id, e)
				}
				checkLines(t, tc.count, tc.width, w.log(id))
			}
			if kills < 5 {
				t.Errorf("killed %d times only", kills)
			}
			t.Logf("%d kills", kills)
		})
	}
}

// An orphan's exit code comes from the kernel once pid 1 has reaped it.
func TestOrphanExit(t *testing.T) {
	w := newWorld(t)
	id := w.shell("read x; echo $x; exit 44")
	in, err := w.c.Stdin(id)
	if err != nil {
		t.Fatal(err)
	}
	w.kill()
	if _, err := in.WriteString("word\n"); err != nil {
		t.Fatal(err)
	}
	_ = in.Close()
	e := w.wait(id)
	if e.Known && e.Code != 44 || !e.Known && e.Code != 255 {
		t.Errorf("got %+v, want code 44 or unknown", e)
	}
	if !strings.HasSuffix(w.log(id), " stdout F word\n") {
		t.Errorf("log: %q", w.log(id))
	}
	t.Logf("%+v", e)
}

// The daemon dies: another takes everything back, exits of the meantime included.
func TestReconnect(t *testing.T) {
	w := newWorld(t)
	w.lines("a", 30000, 100, 10, 100)
	short := w.shell("exit 5")
	w.wait(short)
	gone := w.shell("sleep 0.2; exit 6")
	pid := w.c.MonitorPID()
	if err := w.c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.c.Spawn(t.Context(), Spawn{ID: "x", Path: "/bin/true"}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("request after Close: %v", err)
	}
	time.Sleep(400 * time.Millisecond)
	w.connect()
	if w.c.MonitorPID() != pid {
		t.Errorf("another monitor: %d, want %d", w.c.MonitorPID(), pid)
	}
	for id, want := range map[string]int32{short: 5, gone: 6} {
		if e := w.wait(id); e.Code != want {
			t.Errorf("%s: got %+v, want %d", id, e, want)
		}
	}
	w.kill() // the second daemon has all duplicates, too
	w.wait("a")
	checkLines(t, 30000, 100, w.log("a"))
}

// Both die: what ended before is known by its record.
func TestBothDie(t *testing.T) {
	w := newWorld(t)
	id := w.shell("exit 7")
	w.wait(id)
	pid := w.c.MonitorPID()
	if err := w.c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var ws unix.WaitStatus
	_, _ = unix.Wait4(pid, &ws, 0, nil)
	w.connect()
	if e := w.wait(id); e.Code != 7 || !e.Known {
		t.Errorf("got %+v, want 7", e)
	}
	if err := w.c.Forget(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(w.cfg.StateDir, exitsName, id)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("record after Forget: %v", err)
	}
}

func TestUpgradeDuringOutput(t *testing.T) {
	w := newWorld(t)
	w.lines("a", 100000, 100, 50, 50)
	pid := w.c.MonitorPID()
	for range 10 {
		time.Sleep(10 * time.Millisecond)
		if err := w.c.Upgrade(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if w.c.MonitorPID() != pid {
		t.Errorf("monitor: got pid %d, want %d", w.c.MonitorPID(), pid)
	}
	if e := w.wait("a"); e.Code != 0 || !e.Known {
		t.Errorf("exit: %+v", e)
	}
	checkLines(t, 100000, 100, w.log("a"))
}

func TestUpgradeToNothing(t *testing.T) {
	w := newWorld(t)
	good := w.cfg.Binary
	w.c.cfg.Binary = "/nonexistent"
	if err := w.c.Upgrade(t.Context()); err == nil {
		t.Error("upgrade to a missing binary succeeded")
	}
	w.c.cfg.Binary = good
	if e := w.wait(w.shell("exit 3")); e.Code != 3 {
		t.Errorf("afterwards: %+v", e)
	}
}
