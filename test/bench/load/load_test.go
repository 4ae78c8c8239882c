package load

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestSamples(t *testing.T) {
	s := Samples{5, 1, 4, 2, 3}
	for q, want := range map[float64]float64{0: 1, 0.5: 3, 0.95: 5, 1: 5} {
		if got := s.At(q); got != want {
			t.Errorf("At(%v): got %v, want %v", q, got, want)
		}
	}
	if s[0] != 5 {
		t.Error("asking changed the order")
	}
	if s.Mean() != 3 || Samples(nil).At(0.5) != 0 || Samples(nil).Mean() != 0 {
		t.Errorf("mean: got %v", s.Mean())
	}
	steps := Steps{}
	for i := range 3 {
		steps.add(map[string]time.Duration{"x": time.Duration(i) * time.Millisecond})
	}
	if !slices.Equal(steps["x"], Samples{0, 1, 2}) {
		t.Errorf("steps: got %v", steps)
	}
}

func TestEach(t *testing.T) {
	var running, most, calls atomic.Int64
	errs := each(20, 3, func(i int) error {
		most.Store(max(most.Load(), running.Add(1)))
		defer running.Add(-1)
		calls.Add(1)
		if i == 7 {
			return errors.New("seven")
		}
		return nil
	})
	if calls.Load() != 20 || most.Load() > 3 || errs[7] == nil || errors.Join(errs...).Error() != "seven" {
		t.Errorf("got %d calls, %d at once, %v", calls.Load(), most.Load(), errs)
	}
}

func TestFirstLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	w, err := watch(path)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := w.wait(ctx); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("no file: got %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	again, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := w.wait(again); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("an empty file: got %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- w.wait(t.Context()) }()
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("a line: got %v", err)
	}
}

// BenchmarkFirstLine is what the client itself pays for knowing of a line 5 ms after the start.
func BenchmarkFirstLine(b *testing.B) {
	polled := func(path string) func(context.Context) error {
		return func(context.Context) error {
			for {
				if st, err := os.Stat(path); err == nil && st.Size() > 0 {
					return nil
				}
				time.Sleep(100 * time.Microsecond)
			}
		}
	}
	for _, name := range []string{"inotify", "poll"} {
		b.Run(name, func(b *testing.B) {
			dir, used := b.TempDir(), cpu(b)
			for i := range b.N {
				path := filepath.Join(dir, fmt.Sprint(i))
				w, err := watch(path)
				if err != nil {
					b.Fatal(err)
				}
				wait := w.wait
				if name == "poll" {
					wait = polled(path)
				}
				timer := time.AfterFunc(5*time.Millisecond, func() { _ = os.WriteFile(path, []byte("x"), 0o600) })
				if err := wait(b.Context()); err != nil {
					b.Fatal(err)
				}
				timer.Stop()
				w.close()
			}
			b.ReportMetric(float64((cpu(b)-used).Microseconds())/float64(b.N), "cpu-us/op")
		})
	}
}

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestLogCheck(t *testing.T) {
	const at = "2026-01-02T03:04:05.000000001Z "
	full := func(n int) string { return at + fmt.Sprintf("stdout F %010dxxxxxxxxx\n", n) }
	const total = at + "stdout F total 3 cpu_us 40 elapsed_us 50\n"
	for name, tc := range map[string]struct {
		files        map[string]string
		bad, partial int64
	}{
		"whole":     {map[string]string{"0.log": full(0) + full(1) + full(2) + total}, 0, 0},
		"rotated":   {map[string]string{"0.log": full(2) + total, "0.log.20260102-030405": full(0), "0.log.20260102-030406": full(1)}, 0, 0},
		"lost":      {map[string]string{"0.log": full(0) + full(1) + total}, 1, 0},
		"order":     {map[string]string{"0.log": full(0) + full(2) + full(1) + total}, 2, 0},
		"cut":       {map[string]string{"0.log": full(0) + at + "stdout P 00000\n" + at + "stdout F 00001xxxxxxxxx\n" + full(2) + total}, 0, 1},
		"torn":      {map[string]string{"0.log": full(0) + full(1)[:45] + "\n" + full(2) + total}, 1, 0},
		"no record": {map[string]string{"0.log": full(0) + "garbage\n" + full(1) + full(2) + total}, 1, 0},
		"stderr":    {map[string]string{"0.log": strings.Replace(full(0), "stdout", "stderr", 1) + full(0) + full(1) + full(2) + total}, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, body := range tc.files {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(body), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			k := logCheck{line: 20}
			if err := k.files(dir); err != nil {
				t.Fatal(err)
			}
			if got := k.bad + max(0, k.total-k.seen); got != tc.bad || k.partial != tc.partial || k.total != 3 || k.cpu != 40*time.Microsecond {
				t.Errorf("got %d bad, %+v, want %d", got, k, tc.bad)
			}
		})
	}
}

func TestCgroupCPU(t *testing.T) {
	for name, tc := range map[string]struct {
		file, body string
		want       time.Duration
		fails      bool
	}{
		"v1":       {"cpuacct.usage", "1500\n", 1500, false},
		"v2":       {"cpu.stat", "usage_usec 7\nuser_usec 3\n", 7 * time.Microsecond, false},
		"nothing":  {"other", "", 0, true},
		"no usage": {"cpu.stat", "nr_periods 0\n", 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, tc.file), []byte(tc.body), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := Cgroup{Dirs: []string{dir}}.CPU()
			if got != tc.want || (err != nil) != tc.fails {
				t.Errorf("got %v, %v, want %v", got, err, tc.want)
			}
		})
	}
}

func TestMemoryOf(t *testing.T) {
	m, err := MemoryOf(os.Getpid())
	if err != nil || m.Processes != 1 || m.PSS <= 0 || m.RSS < m.PSS || m.PrivateDirty <= 0 {
		t.Errorf("got %+v, %v", m, err)
	}
	if _, err := MemoryOf(1 << 30); err == nil {
		t.Error("a process that is not there has memory")
	}
}
