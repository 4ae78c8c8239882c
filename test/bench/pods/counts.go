package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/cri-runtime/cri-runtime/test/bench/load"
)

// counts are of what the runtime and its helpers did in the lives of some pods: the pods'
// own program is left out.
type counts struct {
	Pods      int            `json:"pods"`
	Programs  map[string]int `json:"programs"` // executed, by name
	Processes int            `json:"processes"`
	Syncs     map[string]int `json:"syncs"` // fsync, fdatasync and others, by name
}

func sum(m map[string]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}

const traced = "execve,execveat,fork,vfork,clone,clone3,fsync,fdatasync,syncfs,sync,sync_file_range"

func (b *bench) trace() string { return filepath.Join(b.Work, "strace") }

// counter is the command that counts, to be followed by that of the daemon.
func (b *bench) counter() ([]string, error) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		return nil, errors.New("strace is not installed (hack/debian.sh strace)")
	}
	if err := os.RemoveAll(b.trace()); err != nil {
		return nil, fmt.Errorf("drop earlier counts: %w", err)
	}
	return []string{strace, "-f", "-qqq", "--seccomp-bpf", "-e", "trace=" + traced, "-e", "signal=none", "-s", "64", "-o", b.trace()}, nil
}

// runCounts counts over pods that follow a first one: what is done once is not a pod's.
func runCounts(ctx context.Context, b *bench, d *daemon, s *sample) error {
	n := b.size().traced
	var begin, end int64
	_, err := with(ctx, b, d, asTheyAre, func(c *load.Client) (_ int, err error) {
		for i := range n + 1 {
			p, err := c.Start(ctx, "wait")
			if err != nil {
				return 0, err
			}
			if err := c.Stop(ctx, p, 10); err != nil {
				return 0, err
			}
			if i > 0 && i < n {
				continue
			}
			// What is done behind the replies belongs to the pod.
			if err := pause(ctx, b.size().settle); err != nil {
				return 0, err
			}
			st, err := os.Stat(b.trace())
			if err != nil {
				return 0, fmt.Errorf("read counts: %w", err)
			}
			if begin, end = end, st.Size(); i == 0 {
				begin = end
			}
		}
		return 0, nil
	})
	if err != nil {
		return err
	}
	f, err := os.Open(b.trace())
	if err != nil {
		return fmt.Errorf("read counts: %w", err)
	}
	defer f.Close()
	c, err := count(io.NewSectionReader(f, begin, end-begin))
	if err != nil {
		return fmt.Errorf("read counts: %w", err)
	}
	c.Pods = n
	s.Counts = c
	return nil
}

var (
	callLine    = regexp.MustCompile(`^(\d+) +(\w+)\((.*)$`)
	resumedLine = regexp.MustCompile(`^(\d+) +<\.\.\. (\w+) resumed>(.*)$`)
	result      = regexp.MustCompile(`\) += (-?\d+)[^=]*$`)
	execArgs    = regexp.MustCompile(`^(?:\d+, )?"([^"]*)",? ?(?:\["([^"]*)")?`)
)

// workload are the programs of the image.
var workload = map[string]bool{"bench": true}

// count reads what strace wrote. Of a call that another interrupts, the first half has the
// arguments and the second the result.
func count(r io.Reader) (*counts, error) {
	c := &counts{Programs: map[string]int{}, Syncs: map[string]int{}}
	begun := map[string]string{} // arguments by process
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if m := callLine.FindStringSubmatch(line); m != nil {
			if args, unfinished := strings.CutSuffix(m[3], " <unfinished ...>"); unfinished {
				begun[m[1]] = args
				continue
			}
			c.add(m[2], m[3], m[3])
		} else if m := resumedLine.FindStringSubmatch(line); m != nil {
			c.add(m[2], begun[m[1]]+m[3], m[3])
			delete(begun, m[1])
		}
	}
	return c, lines.Err()
}

// add counts one call that succeeded.
func (c *counts) add(call, args, end string) {
	m := result.FindStringSubmatch(end)
	if m == nil || strings.HasPrefix(m[1], "-") {
		return
	}
	switch call {
	case "execve", "execveat":
		if name := programOf(args); !workload[name] {
			c.Programs[name]++
		}
	case "fork", "vfork", "clone", "clone3":
		if !strings.Contains(args, "CLONE_THREAD") {
			c.Processes++
		}
	case "fsync", "fdatasync", "syncfs", "sync", "sync_file_range": // strace also shows calls that it does not know
		c.Syncs[call]++
	}
}

// programOf is the base name of what was executed. One that executes itself anew, or from
// memory, is called what it calls itself.
func programOf(args string) string {
	m := execArgs.FindStringSubmatch(args)
	if m == nil {
		return "?"
	}
	if m[1] == "" || strings.HasPrefix(m[1], "/proc/") {
		return filepath.Base(m[2])
	}
	return filepath.Base(m[1])
}
