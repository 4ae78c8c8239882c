package monitor

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/linux/pidfd"
	"github.com/cri-runtime/cri-runtime/oci/launch/plan"
)

// A caller may give up in the moment in which the launch succeeds: what it has become
// must not stay in the monitor for ever.
func TestAbandonedAfterItsExec(t *testing.T) {
	w := newWorld(t)
	proc := w.run("a", "/bin/sleep", "1000")
	p, err := w.c.proc("a")
	if err != nil {
		t.Fatal(err)
	}
	f, err := pidfd.Open(proc.PID)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	w.c.abandon(t.Context(), "a")
	w.c.unregister(p)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := f.Wait(ctx); err != nil {
		t.Fatalf("it lives on: %v", err)
	}
	// It is a zombie for a moment, until the monitor has reaped it.
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if err := w.c.Close(); err != nil {
			t.Fatal(err)
		}
		w.connect()
		left := w.c.List()
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the monitor still holds %v", left)
		}
	}
}

// A daemon killed in the middle of a launch: the next one learns what became of it, and
// may start a process of that id again.
func TestLaunchOfALostDaemonIsDecided(t *testing.T) {
	w := newWorld(t)
	for _, end := range []string{"it succeeds", "it hangs"} {
		t.Run(end, func(t *testing.T) {
			r, wr, err := rawPipe("gate")
			if err != nil {
				t.Fatal(err)
			}
			defer closeAll(r, wr)
			p := prelude(1)
			p.Add(plan.Ins{Op: plan.Wait, Out: plan.NoOut, Args: []plan.Arg{plan.S(0)}})
			blob := program(p, "exit 7")
			lost := make(chan error, 1)
			go func() {
				_, err := w.c.Start(t.Context(), Start{ID: "l", Plan: blob, Files: []*os.File{r}})
				lost <- err
			}()
			w.wait(w.shell("exit 0")) // requests are served in order: the launch is under way
			if err := w.c.Close(); err != nil {
				t.Fatal(err)
			}
			if err := <-lost; err == nil {
				t.Fatal("the launch was not under way")
			}
			if end == "it succeeds" {
				time.AfterFunc(20*time.Millisecond, func() { _, _ = wr.Write([]byte{0}) })
			}
			w.connect()
			if end == "it succeeds" {
				if e := w.wait("l"); e.Code != 7 {
					t.Errorf("got %+v, want code 7", e)
				}
			} else if left := w.c.undecided(); len(left) != 0 {
				t.Errorf("undecided: %+v", left)
			}
			_ = w.c.Forget(t.Context(), "l")
			if _, err := wr.Write([]byte{0}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.c.Start(t.Context(), Start{ID: "l", Plan: blob, Files: []*os.File{r}}); err != nil {
				t.Errorf("start again: %v", err)
			}
			w.wait("l")
			if err := w.c.Forget(t.Context(), "l"); err != nil {
				t.Error(err)
			}
		})
	}
}

// The first stage of a launch may be killed between the clone of the second and its word
// about that: the launch has failed then, whatever the second stage does.
func TestFirstStageKilledBeforeItsWord(t *testing.T) {
	w := newWorld(t)
	r, wr, err := rawPipe("gate")
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(r, wr)
	p := prelude(1)
	p.Add(plan.Ins{Op: unix.SYS_CLONE, Out: plan.NoOut, Args: []plan.Arg{plan.I(unix.CLONE_PARENT | int(unix.SIGCHLD)), plan.I(0)}})
	p.Add(plan.Ins{Op: plan.Wait, Out: plan.NoOut, Args: []plan.Arg{plan.S(0)}})
	done := make(chan error, 1)
	go func() {
		_, err := w.c.Start(t.Context(), Start{ID: "two", Plan: program(p, "exit 0"), Files: []*os.File{r}})
		done <- err
	}()
	var stages []string
	for deadline := time.Now().Add(5 * time.Second); len(stages) < 2 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		pid := w.c.MonitorPID()
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if err != nil {
			t.Skip("the kernel does not list children: ", err)
		}
		stages = strings.Fields(string(b))
	}
	if len(stages) != 2 {
		t.Fatalf("stages: got %v, want 2", stages)
	}
	first, err := strconv.Atoi(stages[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(first, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err == nil {
			t.Error("the launch succeeded")
		}
	case <-time.After(5 * time.Second):
		t.Error("the launch goes on without its first stage")
	}
	if _, err := wr.Write([]byte{0}); err != nil { // lets the second stage end
		t.Fatal(err)
	}
	if left := w.c.List(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
