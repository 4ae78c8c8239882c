package e2e

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/test/lab"
)

// words is what a program has printed so far.
type words struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (w *words) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *words) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// runCase is a moment at which a user changes his mind.
type runCase struct {
	until  string // in the output; then the signal is sent
	signal syscall.Signal
	code   int
	also   []string // in the output
}

func (tc runCase) test(t *testing.T) {
	lab.Here(t) // or skip: everything below needs namespaces of its own
	run, tmp := isolate(t, "/run"), isolate(t, "/var/tmp")
	// A handler here means the default action there: a shell cannot trap what it was told to ignore.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGINT)
	defer signal.Stop(caught)
	forward := "/proc/sys/net/ipv4/ip_forward"
	if err := os.WriteFile(forward, []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	before, err := lab.Take("", lab.Here(t).Cgroup)
	if err != nil {
		t.Fatal(err)
	}
	var out words
	code, made := runUntil(t, &out, tc)
	if code != tc.code {
		t.Errorf("exit code: got %d, want %d", code, tc.code)
	}
	for _, want := range tc.also {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q", want)
		}
	}
	for _, dir := range []string{run, tmp} {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
	for _, name := range made {
		if left, _ := filepath.Glob("/sys/fs/cgroup/*/" + name); len(left) > 0 {
			t.Errorf("left behind: %s", left)
		}
	}
	lab.CheckLeaks(t, "", before)
	if value, err := os.ReadFile(forward); err != nil || string(value) != "0\n" {
		t.Errorf("ip_forward: got %q, %v, want 0 as before", value, err)
	}
	if t.Failed() {
		t.Logf("output:\n%s", out.String())
	}
}

// isolate puts an empty directory in the place of one that all programs share, so that
// what is left there afterwards is ours.
func isolate(t *testing.T, dir string) string {
	t.Helper()
	var err error
	if dir == "/run" {
		err = unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755")
	} else { // on disk, as it is
		from := filepath.Join(lab.Here(t).Work, strings.ReplaceAll(t.Name()+dir, "/", "-"))
		err = errors.Join(os.Mkdir(from, 0o755), unix.Mount(from, dir, "", unix.MS_BIND, ""))
	}
	if err != nil {
		t.Fatalf("isolate %s: %v", dir, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// TestMakeRun starts what `make run` starts, interrupts it at several stages, and looks
// for what is left.
func TestMakeRun(t *testing.T) {
	for name, tc := range map[string]runCase{
		"serving": {"serving until Ctrl-C", syscall.SIGINT, 0, []string{
			"taking a copy made from this machine's busybox", "answers 200 OK", "<h1>Hello from web</h1>", "[client] answer 1: <h1>Hello", "crictl logs -f",
		}},
		"SIGTERM":        {"serving until Ctrl-C", syscall.SIGTERM, 0, nil},
		"trying":         {`"Serving"`, syscall.SIGINT, 130, nil},
		"making":         {"making the image", syscall.SIGINT, 130, nil},
		"starting a pod": {"pod       ready in", syscall.SIGTERM, 143, nil},
	} {
		t.Run(name, tc.test)
	}
}

// runUntil runs hack/run.sh until it has printed what is waited for, ends it by a
// signal to its process group, and returns its exit code and the directories it made.
func runUntil(t *testing.T, out *words, tc runCase) (code int, made []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "../../hack/run.sh")
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	var ended error
	done := make(chan struct{})
	wait.Go(func() { ended = cmd.Wait(); close(done) })
	defer wait.Wait()
	limit := time.After(3 * time.Minute)
	for !strings.Contains(out.String(), tc.until) {
		select {
		case <-done:
			t.Fatalf("it ended before it said %q: %v\n%s", tc.until, ended, out)
		case <-limit:
			_ = cmd.Process.Kill()
			t.Fatalf("it never said %q\n%s", tc.until, out)
		case <-time.After(5 * time.Millisecond):
		}
	}
	dirs, _ := filepath.Glob("/var/tmp/cri-runtime-run.*")
	for _, dir := range dirs {
		made = append(made, filepath.Base(dir))
	}
	if err := syscall.Kill(-cmd.Process.Pid, tc.signal); err != nil {
		t.Fatal(err)
	}
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		_ = cmd.Process.Kill()
		t.Errorf("it goes on 30 s after the signal\n%s", out)
	}
	wait.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](ended); ok {
		return exit.ExitCode(), made
	}
	return 0, made
}
