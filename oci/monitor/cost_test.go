package monitor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pss is a process's proportional memory in KiB.
func pss(t testing.TB, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		var n int
		if _, err := fmt.Sscanf(l, "Pss: %d kB", &n); err == nil {
			return n
		}
	}
	t.Fatal("no Pss")
	return 0
}

// The monitor must stay small: what it links decides its memory and start.
func TestProgramSize(t *testing.T) {
	bin, err := builtMonitor()
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(bin)
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() >= 2500000 {
		t.Errorf("program: %d bytes, want less than 2500000", st.Size())
	}
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "../../cmd/cri-monitor").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	for _, bad := range []string{"fmt", "os", "net", "encoding/json", "log", "os/signal", "runtime/debug", "context"} {
		if slices.Contains(deps, bad) {
			t.Errorf("cri-monitor imports %s", bad)
		}
	}
	t.Logf("%d bytes", st.Size())
}

func TestMemory(t *testing.T) {
	w := newWorld(t)
	empty := pss(t, w.c.MonitorPID())
	if empty >= 3072 {
		t.Errorf("empty: %d KiB, want less than 3072", empty)
	}
	const n = 500
	began := time.Now()
	for i := range n {
		w.run(fmt.Sprintf("m%d", i), "/bin/sh", "-c", "echo hello; exec sleep 1000")
	}
	took := time.Since(began)
	full := pss(t, w.c.MonitorPID())
	if per := (full - empty) * 1024 / n; per > 6144 {
		t.Errorf("a container costs %d bytes, want at most 6144", per)
	}
	t.Logf("empty %d KiB, %d containers %d KiB (%d B each), spawned in %v", empty, n, full, (full-empty)*1024/n, took)
	began = time.Now()
	if err := w.c.Close(); err != nil {
		t.Fatal(err)
	}
	w.connect()
	t.Logf("reconnected in %v", time.Since(began))
	if l := w.c.List(); len(l) != n {
		t.Errorf("list: %d, want %d", len(l), n)
	}
	began = time.Now()
	w.kill()
	t.Logf("replaced in %v", time.Since(began))
	for i := range n {
		if err := w.c.Signal(fmt.Sprintf("m%d", i), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		w.wait(fmt.Sprintf("m%d", i))
	}
}

// cpuTime is user and system time of a process.
func cpuTime(t testing.TB, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+2:]))
	var u, s int
	_, _ = fmt.Sscan(f[11], &u)
	_, _ = fmt.Sscan(f[12], &s)
	return time.Duration(u+s) * 10 * time.Millisecond
}

// TestThroughput logs 512 MiB of 100-byte lines; the promise is for tmpfs.
func TestThroughput(t *testing.T) {
	if testing.Short() {
		t.Skip("half a gigabyte in memory")
	}
	w := newWorld(t)
	if err := os.MkdirAll(filepath.Join(w.dir, "src"), 0o700); err != nil {
		t.Fatal(err)
	}
	// The source must not be the bottleneck: a file that dd writes from the cache.
	src := filepath.Join(w.dir, "src", "lines")
	const mib = 512
	line := []byte(strings.Repeat("x", 99) + "\n")
	block := slices.Repeat(line, (1<<20)/100)
	if err := os.WriteFile(src, slices.Repeat(block, 64), 0o600); err != nil {
		t.Fatal(err)
	}
	before := cpuTime(t, w.c.MonitorPID())
	began := time.Now()
	w.run("t", "/bin/sh", "-c", "for i in 1 2 3 4 5 6 7 8; do dd if="+src+" bs=64k status=none; done")
	if e := w.wait("t"); e.Code != 0 {
		t.Fatalf("exit: %+v", e)
	}
	took := time.Since(began)
	cpu := cpuTime(t, w.c.MonitorPID()) - before
	st, err := w.c.Stats(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	size := float64(8 * 64 * len(block))
	if want := uint64(size / 100 * 140); st.Bytes != want || st.LostBytes != 0 {
		t.Errorf("log: %+v, want %d bytes and none lost", st, want)
	}
	t.Logf("%.0f MB/s, %.2f CPU s per GB (%d MiB)", size/1e6/took.Seconds(), cpu.Seconds()/(size/1e9), mib)
}

// BenchmarkProcess is the life of a process: start by plan, exec, exit known,
// forgotten.
func BenchmarkProcess(b *testing.B) {
	w := benchWorld(b)
	blob := program(prelude(0), "")
	i := 0
	for b.Loop() {
		i++
		id := fmt.Sprintf("b%d", i)
		if _, err := w.Start(b.Context(), Start{ID: id, Plan: blob}); err != nil {
			b.Fatal(err)
		}
		<-w.Done(id)
		if err := w.Forget(b.Context(), id); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkKill is the time from a signal to the exit's being known.
func BenchmarkKill(b *testing.B) {
	w := benchWorld(b)
	blob := program(prelude(0), "exec sleep 1000")
	i := 0
	for b.Loop() {
		b.StopTimer()
		i++
		id := fmt.Sprintf("k%d", i)
		if _, err := w.Start(b.Context(), Start{ID: id, Plan: blob}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := w.Signal(id, unix.SIGKILL); err != nil {
			b.Fatal(err)
		}
		<-w.Done(id)
		b.StopTimer()
		if err := w.Forget(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func benchWorld(b *testing.B) *Client {
	b.Helper()
	bin, err := builtMonitor()
	if err != nil {
		b.Fatal(err)
	}
	c, err := Connect(b.Context(), Config{StateDir: filepath.Join(b.TempDir(), "state"), Binary: bin})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := c.Shutdown(context.Background()); err != nil {
			b.Error(err)
		}
	})
	return c
}
