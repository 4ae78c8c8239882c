package pidfd

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

func sleeper(t *testing.T) (*exec.Cmd, *File) {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait(); _ = p.Close() })
	return cmd, p
}

func TestWait(t *testing.T) {
	testkit.Leaks(t)
	cmd, p := sleeper(t)
	if gone, err := p.Exited(); gone || err != nil {
		t.Fatalf("Exited: got %v, %v, want false", gone, err)
	}
	// One waiter gives up; the others still learn of the exit.
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, 3)
	for i, ctx := range []context.Context{t.Context(), short, t.Context()} {
		wg.Go(func() { errs[i] = p.Wait(ctx) })
	}
	<-short.Done()
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if errs[0] != nil || errs[2] != nil || errs[1] != nil && !errors.Is(errs[1], context.DeadlineExceeded) {
		t.Errorf("Wait: got %v", errs)
	}
	s, err := ReadStat(cmd.Process.Pid)
	if err != nil || s.State != 'Z' || s.PPid != os.Getpid() {
		t.Errorf("state of a zombie: got %c of %d, %v", s.State, s.PPid, err)
	}
	_ = cmd.Wait()
	if err := p.Signal(unix.SIGTERM); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("Signal after the end: got %v, want not found", err)
	}
	i, err := p.Info()
	if errors.Is(err, errdef.ErrUnimplemented) {
		t.Skip("kernel has no PIDFD_GET_INFO")
	}
	if testkit.Kernel(6, 15).Check() == nil && (err != nil || !i.Reaped || i.Status.Signal() != unix.SIGTERM) {
		t.Errorf("Info: got %+v, %v, want a death by SIGTERM", i, err)
	}
}

func TestCloseWakes(t *testing.T) {
	testkit.Leaks(t)
	_, p := sleeper(t)
	done := make(chan error, 1)
	go func() { done <- p.Wait(t.Context()) }()
	time.Sleep(5 * time.Millisecond)
	_ = p.Close()
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Wait on a closed pidfd: got %v, want %v", err, os.ErrClosed)
	}
}

func TestStat(t *testing.T) {
	line := "42 (a) b) (c) S 7 42 42 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 123456 1 1 1\n"
	s, err := parseStat([]byte(line))
	if err != nil || s != (Stat{'S', 7, 123456}) {
		t.Errorf("parseStat: got %+v, %v", s, err)
	}
	for _, bad := range []string{"", "1 (x", "1 (x) S 1"} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("parseStat(%q): got no error", bad)
		}
	}
	if _, err := StartTime(1 << 30); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("StartTime of no process: got %v", err)
	}
	if a, err := StartTime(os.Getpid()); err != nil || a == 0 {
		t.Errorf("own start time: got %d, %v", a, err)
	}
	if _, err := Open(1 << 30); err == nil {
		t.Error("Open of no process: got no error")
	}
}
