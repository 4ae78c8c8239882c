package monitor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

var builtMonitor = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "cri-monitor-test")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "cri-monitor")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, "../../cmd/cri-monitor")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build cri-monitor: %w: %s", err, out)
	}
	return bin, nil
})

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "lines" {
		lines(os.Args[2:])
		return
	}
	code := m.Run()
	if bin, err := builtMonitor(); err == nil {
		_ = os.RemoveAll(filepath.Dir(bin))
	}
	os.Exit(code)
}

// world is a state directory on tmpfs with a client in it.
type world struct {
	t   *testing.T
	cfg Config
	c   *Client
	dir string // for logs
	n   int
}

func newWorld(t *testing.T) *world {
	t.Helper()
	testkit.Need(t, testkit.Root)
	bin, err := builtMonitor()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "cri-monitor") //nolint:usetesting // exit records and logs live on tmpfs
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, cfg: Config{StateDir: filepath.Join(dir, "state"), Binary: bin}, dir: dir}
	w.connect()
	t.Cleanup(func() {
		for _, p := range w.c.List() {
			_ = w.c.Signal(p.ID, unix.SIGKILL)
			<-w.c.Done(p.ID)
			if err := w.c.Forget(context.Background(), p.ID); err != nil {
				t.Error(err)
			}
		}
		left, err := os.ReadDir(filepath.Join(w.cfg.StateDir, exitsName))
		if err != nil || len(left) > 0 {
			t.Errorf("exit records left: %v, %v", left, err)
		}
		if b, _ := os.ReadFile(filepath.Join(w.cfg.StateDir, logName)); len(b) > 0 {
			t.Errorf("monitor.log: %s", b)
		}
		if err := w.c.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		_ = os.RemoveAll(dir)
	})
	return w
}

func (w *world) connect() {
	w.t.Helper()
	c, err := Connect(w.t.Context(), w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.c = c
}

func (w *world) logPath(id string) string { return filepath.Join(w.dir, id+".log") }

// run starts a program with log pipes.
func (w *world) run(id string, args ...string) Process {
	w.t.Helper()
	pipes, err := NewPipes(0, 0, true)
	if err != nil {
		w.t.Fatal(err)
	}
	defer pipes.CloseContainerEnds()
	log, err := OpenLog(w.logPath(id))
	if err != nil {
		w.t.Fatal(err)
	}
	p, err := w.c.Spawn(w.t.Context(), Spawn{
		ID: id, Path: args[0], Args: args, Stdio: [3]*os.File{pipes.Stdin, pipes.Stdout, pipes.Stderr},
		Log: &Log{Path: w.logPath(id), File: log, Stdout: pipes.StdoutR, Stderr: pipes.StderrR}, Stdin: pipes.StdinW,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) shell(script string) string {
	w.t.Helper()
	w.n++
	id := fmt.Sprintf("c%d", w.n)
	w.run(id, "/bin/sh", "-c", script)
	return id
}

func (w *world) wait(id string) Exit {
	w.t.Helper()
	select {
	case <-w.c.Done(id):
	case <-time.After(90 * time.Second): // a bound for a hang, generous for a busy machine
		w.t.Fatalf("%s has not ended", id)
	}
	e, ok := w.c.Exit(id)
	if !ok {
		w.t.Fatalf("%s has ended without an exit", id)
	}
	return e
}

func (w *world) log(id string) string {
	w.t.Helper()
	b, err := os.ReadFile(w.logPath(id))
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b)
}

func TestExitCodes(t *testing.T) {
	w := newWorld(t)
	for name, tc := range map[string]struct {
		script string
		want   Exit
	}{
		"success": {"exit 0", Exit{Code: 0, Known: true}},
		"code":    {"exit 77", Exit{Code: 77, Known: true}},
		"signal":  {"kill -TERM $$", Exit{Code: 143, Signal: 15, Known: true}},
		"killed":  {"kill -KILL $$", Exit{Code: 137, Signal: 9, Known: true}},
	} {
		t.Run(name, func(t *testing.T) {
			before := time.Now()
			got := w.wait(w.shell(tc.script))
			if got.At.Before(before) || got.At.After(time.Now()) {
				t.Errorf("time of exit: got %v, want between %v and now", got.At, before)
			}
			got.At = time.Time{}
			if got != tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestLogFormat(t *testing.T) {
	w := newWorld(t)
	id := w.shell("echo one; sleep 0.1; echo two >&2; sleep 0.1; printf tail")
	w.wait(id)
	var got []string
	for l := range strings.Lines(w.log(id)) {
		stamp, rest, _ := strings.Cut(l, " ")
		if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil {
			t.Errorf("time stamp: %v", err)
		}
		got = append(got, rest)
	}
	want := "[stdout F one\n stderr F two\n stdout P tail\n]"
	if fmt.Sprint(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
