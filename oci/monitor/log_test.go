package monitor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// A line above 16 KiB is cut in P parts; shorter ones never, however they arrive.
func TestLongLines(t *testing.T) {
	w := newWorld(t)
	sizes := []int{16383, 16384, 16385, 32768, 32769, 100000, 70000}
	var want strings.Builder
	for _, n := range sizes {
		for ; n > 16384; n -= 16384 {
			want.WriteString("P 16384\n")
		}
		fmt.Fprintf(&want, "F %d\n", n)
	}
	var script strings.Builder
	for _, n := range sizes {
		fmt.Fprintf(&script, "head -c %d /dev/zero | tr '\\0' x; echo;", n)
	}
	id := w.shell(script.String())
	w.wait(id)
	var got strings.Builder
	for l := range strings.Lines(w.log(id)) {
		f := strings.Fields(l)
		fmt.Fprintf(&got, "%s %d\n", f[2], len(f[3]))
	}
	if got.String() != want.String() {
		t.Errorf("got\n%s, want\n%s", got.String(), want.String())
	}
}

// A stray child that keeps writing holds up no exit.
func TestStrayWriter(t *testing.T) {
	w := newWorld(t)
	id := w.shell("(while :; do echo stray; done) & echo $! ; sleep 0.05; exit 3")
	if e := w.wait(id); e.Code != 3 {
		t.Errorf("exit: %+v", e)
	}
	for l := range strings.Lines(w.log(id)) {
		if pid, err := strconv.Atoi(strings.TrimSpace(l[strings.LastIndexByte(l, ' ')+1:])); err == nil {
			_ = unix.Kill(pid, unix.SIGKILL)
			return
		}
	}
	t.Error("no pid in the log")
}

func TestReopen(t *testing.T) {
	w := newWorld(t)
	const count = 40000
	w.lines("a", count, 100, 10, 20)
	var logs []string
	for i := range 12 {
		time.Sleep(20 * time.Millisecond)
		old := w.logPath("a")
		rotated := fmt.Sprintf("%s.%d", old, i)
		if err := os.Rename(old, rotated); err != nil {
			t.Fatal(err)
		}
		logs = append(logs, rotated)
		if i%4 == 3 {
			pid := w.c.MonitorPID()
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		err := w.c.Reopen(t.Context(), "a", old)
		if _, gone := w.c.Exit("a"); gone {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	w.wait("a")
	var all []string
	for _, l := range append(logs, w.logPath("a")) {
		b, err := os.ReadFile(l)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		all = append(all, string(b))
	}
	checkLines(t, count, 100, all...)
	fresh := filepath.Join(w.dir, "fresh.log")
	if err := w.c.Reopen(t.Context(), "a", fresh); !errors.Is(err, errdef.ErrPhase) {
		t.Errorf("after the exit: %v", err)
	}
	if _, err := os.Stat(fresh); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a failed Reopen left a file: %v", err)
	}
}

// A full disk never blocks the container. What is lost is counted and marked, and
// no entry is torn.
func TestFullDisk(t *testing.T) {
	w := newWorld(t)
	small := filepath.Join(w.dir, "small")
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(small, 0); err != nil {
			t.Error(err)
		}
	})
	w.dir = small
	w.run("d", "/bin/sh", "-c", "i=0; while [ $i -lt 40 ]; do head -c 99990 /dev/zero | tr '\\0' x | fold -w 99; echo; i=$((i+1)); done; echo full; read x; echo after; read x")
	in, err := w.c.Stdin("d")
	if err != nil {
		t.Fatal(err)
	}
	var st LogStats
	for end := time.Now().Add(20 * time.Second); st.LostBytes < 2500000 && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if st, err = w.c.Stats(t.Context(), "d"); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(w.logPath("d"))
	if err != nil || !bytes.HasSuffix(b, []byte("x\n")) {
		t.Errorf("full log ends with %q, %v", b[max(0, len(b)-20):], err)
	}
	if err := os.Truncate(w.logPath("d"), 0); err != nil { // as if space had been made
		t.Fatal(err)
	}
	w.kill() // what was lost is not forgotten
	if _, err := in.WriteString("go\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := in.WriteString("go\n"); err != nil {
		t.Fatal(err)
	}
	_ = in.Close()
	w.wait("d")
	if st, err = w.c.Stats(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("F [cri-runtime: lost %d bytes in %d lines that could not be written to this log]\n", st.LostBytes, st.LostLines)
	got := w.log("d")
	if strings.Count(got, "cri-runtime: lost") != 1 || !strings.Contains(got, want) || !strings.HasSuffix(got, "F after\n") {
		t.Errorf("got %q, want %q and after", got, want)
	}
}

func TestAttach(t *testing.T) {
	w := newWorld(t)
	id := w.shell("read x; echo out; echo err >&2; read x; exit 0")
	a, err := w.c.Attach(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	b, err := w.c.Attach(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	in, err := w.c.Stdin(id)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = in.WriteString("1\n2\n")
	_ = in.Close()
	out, err := io.ReadAll(a.Stdout)
	if err != nil || string(out) != "out\n" {
		t.Errorf("stdout: %q, %v", out, err)
	}
	errs, err := io.ReadAll(a.Stderr)
	if err != nil || string(errs) != "err\n" {
		t.Errorf("stderr: %q, %v", errs, err)
	}
	w.wait(id)
	_ = a.Close()
	if _, err := w.c.Attach(t.Context(), id); !errors.Is(err, errdef.ErrPhase) {
		t.Errorf("attach after the exit: %v", err)
	}
}

// A client that does not read is dropped and told; the container goes on.
func TestAttachTooSlow(t *testing.T) {
	w := newWorld(t)
	const count = 40000
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w.run("a", "/bin/sh", "-c", fmt.Sprintf("read x; exec %s lines %d 100 100 0", self, count))
	a, err := w.c.Attach(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	in, err := w.c.Stdin("a")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = in.WriteString("go\n")
	_ = in.Close()
	w.wait("a")
	got, err := io.ReadAll(a.Stdout)
	if !errors.Is(err, ErrTooSlow) || len(got) == 0 {
		t.Errorf("got %d bytes, %v; want some and ErrTooSlow", len(got), err)
	}
	_ = a.Close()
	checkLines(t, count, 100, w.log("a"))
}

func TestCloseStdin(t *testing.T) {
	w := newWorld(t)
	id := w.shell("cat; exit 8")
	for range 2 {
		if err := w.c.CloseStdin(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if e := w.wait(id); e.Code != 8 {
		t.Errorf("exit: %+v", e)
	}
}

// An OCI runtime's container: a grandchild that its parent has left.
func TestAdopt(t *testing.T) {
	w := newWorld(t)
	file := filepath.Join(w.dir, "pid")
	if e := w.wait(w.shell("(sleep 0.2; exit 21) & echo $! > " + file)); e.Code != 0 {
		t.Fatalf("runtime: %+v", e)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.c.Adopt(t.Context(), Adopt{ID: "g", PID: pid}); err != nil {
		t.Fatal(err)
	}
	if e := w.wait("g"); e.Code != 21 || !e.Known {
		t.Errorf("exit: %+v", e)
	}
}
