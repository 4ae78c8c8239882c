package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	rt "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Logs has one container write lines of the given length, newline included. Every line
// that it wrote is then looked for in the log.
func (c *Client) Logs(ctx context.Context, length time.Duration, line int) (r Logs, err error) {
	r.Line = line
	var p *Pod
	used, err := c.cpuOf(func() (err error) {
		if p, err = c.Start(ctx, "spam", strconv.Itoa(int(length/time.Second)), strconv.Itoa(line)); err != nil {
			return err
		}
		return c.ended(ctx, p, length)
	})
	if p != nil {
		defer func() { err = errors.Join(err, c.stopAll(ctx, []*Pod{p}, 1)) }()
	}
	if err != nil {
		return r, err
	}
	check := logCheck{line: line}
	if err := check.files(filepath.Dir(p.Log)); err != nil {
		return r, err
	}
	r.Lines, r.Bad, r.Partial = check.total, check.bad+max(0, check.total-check.seen), check.partial
	if check.total == 0 {
		return r, errors.New("the workload's last line is not in its log")
	}
	bytes := float64(check.seen) * float64(line)
	r.MBps = bytes / float64(check.elapsed.Microseconds())
	if used > 0 {
		r.CPUPerGB = (used - check.cpu).Seconds() / (bytes / 1e9)
	}
	return r, nil
}

// ended waits for the container's end. It first sleeps as long as the container works:
// questions meanwhile would cost the runtime what is then counted as the log's.
func (c *Client) ended(ctx context.Context, p *Pod, length time.Duration) error {
	if err := pause(ctx, length); err != nil {
		return err
	}
	for {
		reply, err := c.link.runtime.ContainerStatus(ctx, &rt.ContainerStatusRequest{ContainerId: p.Container})
		if err != nil {
			return fmt.Errorf("wait for the end: %w", err)
		}
		if reply.Status.State == rt.ContainerState_CONTAINER_EXITED {
			if reply.Status.ExitCode != 0 {
				return fmt.Errorf("the workload ended with %d", reply.Status.ExitCode)
			}
			return nil
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// logCheck reads a log of numbered lines.
type logCheck struct {
	line               int // bytes of each, newline included
	seen, bad, partial int64
	total              int64 // lines that the workload says it wrote
	cpu, elapsed       time.Duration
	joined             []byte // the parts of a line so far
}

// files reads the container's logs, rotated ones first.
func (k *logCheck) files(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return err
	}
	// A rotated file is called 0.log.TIME; the one in use is the youngest.
	slices.SortFunc(names, func(a, b string) int { return strings.Compare(rotated(a), rotated(b)) })
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		err = k.read(f)
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("read log %s: %w", name, err)
		}
	}
	return nil
}

func rotated(name string) string {
	if strings.HasSuffix(name, ".log") {
		return "~" // behind all digits
	}
	return name
}

// read takes records: TIME stdout F|P PAYLOAD.
func (k *logCheck) read(r io.Reader) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 1<<16), 1<<20)
	for lines.Scan() {
		record := lines.Bytes()
		at := -1
		for range 3 {
			n := slices.Index(record[at+1:], ' ')
			if n < 0 {
				at = -1
				break
			}
			at += n + 1
		}
		if at < 10 || string(record[at-9:at-1]) != " stdout " || record[at-1] != 'F' && record[at-1] != 'P' {
			k.bad++
			continue
		}
		k.joined = append(k.joined, record[at+1:]...)
		if record[at-1] == 'P' {
			k.partial++
			continue
		}
		k.whole()
		k.joined = k.joined[:0]
	}
	return lines.Err()
}

// whole judges a line whose parts have been joined, as the kubelet joins them.
func (k *logCheck) whole() {
	if rest, ok := strings.CutPrefix(string(k.joined[:min(200, len(k.joined))]), "total "); ok {
		var cpu, elapsed int64
		if _, err := fmt.Sscanf(rest, "%d cpu_us %d elapsed_us %d", &k.total, &cpu, &elapsed); err != nil {
			k.bad++
			return
		}
		k.cpu, k.elapsed = time.Duration(cpu)*time.Microsecond, time.Duration(elapsed)*time.Microsecond
		return
	}
	n, err := strconv.ParseInt(string(k.joined[:min(10, len(k.joined))]), 10, 64)
	if err != nil || n != k.seen || len(k.joined) != k.line-1 {
		k.bad++
	}
	k.seen++
}
