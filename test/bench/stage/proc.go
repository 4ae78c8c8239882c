package stage

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Status reads a number of kB from /proc/PID/status, in bytes.
func Status(pid int, key string) int64 {
	body, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(body)) {
		if v, ok := strings.CutPrefix(line, key+":"); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 10, 64)
			return n << 10
		}
	}
	return 0
}

// Wrote is what a process and its children that were waited for have made dirty and not
// taken back, by the kernel's accounting.
func Wrote(pid int) (n int64) {
	body, _ := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	for line := range strings.Lines(string(body)) {
		key, v, _ := strings.Cut(strings.TrimSpace(line), ": ")
		k, _ := strconv.ParseInt(v, 10, 64)
		switch key {
		case "write_bytes":
			n += k
		case "cancelled_write_bytes":
			n -= k
		}
	}
	return n
}

// ResetPeak makes VmHWM count from now.
func ResetPeak(pid int) error {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		return fmt.Errorf("reset peak memory: %w", err)
	}
	return nil
}

// Peak watches the memory of all processes of a cgroup.
type Peak struct {
	stop context.CancelFunc
	wait sync.WaitGroup
	max  int64
}

// every is how often it looks; a child that lives shorter may be missed, a peak of the
// daemon is not: VmHWM has it.
const every = 20 * time.Millisecond

// WatchPeak begins to look; End ends it.
func WatchPeak(ctx context.Context, c Cgroup) *Peak {
	ctx, stop := context.WithCancel(ctx)
	p := &Peak{stop: stop}
	p.wait.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			var sum int64
			for _, pid := range c.PIDs() {
				sum += Resident(pid)
			}
			p.max = max(p.max, sum)
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	return p
}

// End returns the highest sum of resident memory that was seen.
func (p *Peak) End() int64 {
	p.stop()
	p.wait.Wait()
	return p.max
}

// Resident is the resident memory of a process in bytes; 0 when it has gone.
func Resident(pid int) int64 {
	body, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	fields := strings.Fields(string(body))
	if len(fields) < 2 {
		return 0
	}
	n, _ := strconv.ParseInt(fields[1], 10, 64)
	return n * int64(os.Getpagesize())
}

// MachineCPU is the time that all processors have been busy; of guests' own, the
// hypervisor's stealing included, as it takes from us too.
func MachineCPU() time.Duration {
	body, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(body), "\n")
	fields := strings.Fields(line)
	var ticks int64
	for i := 1; i < len(fields) && i <= 8; i++ {
		if i == 4 || i == 5 { // idle, iowait
			continue
		}
		n, _ := strconv.ParseInt(fields[i], 10, 64)
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100)
}

// Stalled is the time in which nobody on the machine got on for lack of memory (pressure
// stall information); 0 where the kernel does not tell.
func Stalled() time.Duration {
	body, _ := os.ReadFile("/proc/pressure/memory")
	for line := range strings.Lines(string(body)) {
		if !strings.HasPrefix(line, "full ") {
			continue
		}
		if _, total, ok := strings.Cut(strings.TrimSpace(line), "total="); ok {
			n, _ := strconv.ParseInt(total, 10, 64)
			return time.Duration(n) * time.Microsecond
		}
	}
	return 0
}

// Stolen is the time in which the hypervisor ran something else.
func Stolen() time.Duration {
	body, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(body), "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 {
		return 0
	}
	n, _ := strconv.ParseInt(fields[8], 10, 64)
	return time.Duration(n) * (time.Second / 100)
}

// Received are the bytes that went over the loopback of this network namespace, where
// registry and runtime are alone.
func Received() (int64, error) {
	body, err := os.ReadFile("/proc/self/net/dev")
	if err != nil {
		return 0, fmt.Errorf("read network statistics: %w", err)
	}
	for line := range strings.Lines(string(body)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "lo:"); ok {
			if fields := strings.Fields(v); len(fields) > 0 {
				return strconv.ParseInt(fields[0], 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("read network statistics: no loopback")
}

// LoadAverage is the kernel's line of it.
func LoadAverage() string {
	body, _ := os.ReadFile("/proc/loadavg")
	return strings.TrimSpace(string(body))
}
