package promises

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// Who makes a call.
const (
	byDaemon  = "daemon"
	byMonitor = "monitor"
	byPlan    = "plan"     // the child between the monitor's clone and the container's program
	byHelper  = "helper"   // a program that we run
	byOther   = "workload" // what is in the container
)

// who lists those that are ours.
var who = []string{byDaemon, byMonitor, byPlan, byHelper}

// scheduling are the calls by which Go's runtime keeps its threads and its memory: their
// number depends on what else runs on the machine, and not on us. A plan has none of them.
var scheduling = map[string]bool{
	"futex": true, "epoll_pwait": true, "epoll_wait": true, "nanosleep": true, "sched_yield": true, "tgkill": true, "getpid": true, "rt_sigreturn": true,
	"madvise": true, "restart_syscall": true, "timer_settime": true, "clock_nanosleep": true, "sigaltstack": true, "gettid": true, "rt_sigprocmask": true,
	"exit": true, "set_robust_list": true, "rseq": true, "mmap": true, "munmap": true, "mprotect": true, "sched_getaffinity": true, "prctl": true,
}

// event is one call, and when it began.
type event struct {
	at   float64 // seconds since 1970
	by   string
	name string
	text string // as strace prints it
}

// tracer is strace on daemon, monitor and all that they start.
type tracer struct {
	cmd      *exec.Cmd
	out      string
	byThread map[int]string // at its start
}

// trace begins. The daemon is slower then, which no count minds.
func trace(t *testing.T, daemon, monitor int) *tracer {
	t.Helper()
	testkit.Need(t, testkit.Tool("strace"))
	out := filepath.Join(t.TempDir(), "strace")
	tr := &tracer{out: out, byThread: map[int]string{}}
	args := []string{"-f", "-ttt", "-s", "96", "-o", out}
	for name, pid := range map[string]int{byDaemon: daemon, byMonitor: monitor} {
		args = append(args, "-p", strconv.Itoa(pid))
		for _, task := range glob(t, fmt.Sprintf("/proc/%d/task/*", pid)) {
			tr.byThread[atoi(t, filepath.Base(task))] = name
		}
	}
	tr.cmd = exec.CommandContext(t.Context(), "strace", args...)
	notes := &lines{all: make(chan struct{})}
	tr.cmd.Stderr = notes
	if err := tr.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-notes.all:
	case <-time.After(20 * time.Second):
		t.Fatalf("strace has not attached: %s", notes.text.Bytes())
	}
	return tr
}

// lines waits until strace has said of each process that it is attached.
type lines struct {
	text bytes.Buffer
	all  chan struct{}
}

var attached = regexp.MustCompile(`attached(?: with (\d+) threads)?`)

func (l *lines) Write(p []byte) (int, error) {
	l.text.Write(p)
	processes := 0
	for range attached.FindAllSubmatch(l.text.Bytes(), -1) {
		processes++
	}
	if processes >= 2 {
		select {
		case <-l.all:
		default:
			close(l.all)
		}
	}
	return len(p), nil
}

// end detaches, and returns all calls in order.
func (tr *tracer) end(t *testing.T) []event {
	t.Helper()
	_ = tr.cmd.Process.Signal(syscall.SIGINT)
	if err := tr.cmd.Wait(); err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 130 && exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGINT {
			t.Fatalf("strace: %v", err)
		}
	}
	f, err := os.Open(tr.out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	events, err := parse(f, tr.byThread)
	if err != nil {
		t.Fatal(err)
	}
	return events
}

var (
	callLine = regexp.MustCompile(`^(\d+) +(\d+\.\d+) (\w+)\(`)
	resumed  = regexp.MustCompile(`^(\d+) +(\d+\.\d+) <\.\.\. (\w+) resumed>`)
	result   = regexp.MustCompile(`= (\d+)$`)
)

// parse reads strace's output. byThread says what the first threads are; those of clones
// follow from who made them and how.
func parse(r io.Reader, byThread map[int]string) ([]event, error) {
	p := &parser{root: byThread, parent: map[int]int{}, process: map[int]bool{}, half: map[int]string{}, started: map[int]bool{}}
	scan := bufio.NewScanner(r)
	scan.Buffer(nil, 1<<20)
	var calls []event
	var threads []int
	var after []bool // the thread runs a program that was executed while we looked on
	for scan.Scan() {
		line := scan.Text()
		if m := callLine.FindStringSubmatch(line); m != nil {
			at, err := strconv.ParseFloat(m[2], 64)
			if err != nil {
				return nil, err
			}
			thread := number(m[1])
			calls, threads, after = append(calls, event{at: at, name: m[3], text: line}), append(threads, thread), append(after, p.started[thread])
			if strings.HasSuffix(line, "<unfinished ...>") {
				p.half[thread] = line
			} else {
				p.done(thread, m[3], line)
			}
		} else if m := resumed.FindStringSubmatch(line); m != nil {
			p.done(number(m[1]), m[3], p.half[number(m[1])]+line)
		} // else a signal, or an end
	}
	for i := range calls {
		calls[i].by = p.who(threads[i], after[i])
	}
	return calls, scan.Err()
}

// parser knows the family of all threads. A child's first line may come before the one in
// which its clone returns, so who is who is asked when all has been read.
type parser struct {
	root    map[int]string
	parent  map[int]int
	process map[int]bool // begun as one, not as a thread
	half    map[int]string
	started map[int]bool // has executed a program
}

// done learns from a call that has ended.
func (p *parser) done(thread int, name, whole string) {
	m := result.FindStringSubmatch(whole)
	if m == nil {
		return // it failed
	}
	switch name {
	case "clone", "clone3", "fork", "vfork":
		child := number(m[1])
		p.parent[child], p.process[child] = thread, !strings.Contains(whole, "CLONE_THREAD")
	case "execve", "execveat":
		p.started[thread] = true
	}
}

func (p *parser) who(thread int, after bool) string {
	if by, ok := p.root[thread]; ok {
		return by
	}
	parent, ok := p.parent[thread]
	if !ok {
		return byOther
	}
	by := p.who(parent, p.started[parent])
	switch {
	case !p.process[thread]:
		return by
	case by == byDaemon || by == byHelper:
		return byHelper
	case by == byOther || after:
		return byOther
	default:
		return byPlan
	}
}

func number(s string) int {
	n, _ := strconv.Atoi(s) // of a regular expression's digits
	return n
}

// counts are calls by name.
type counts map[string]int

// between counts what one of them called from one time to another.
func between(events []event, by string, from, to time.Time) counts {
	begin, end := seconds(from), seconds(to)
	c := counts{}
	for _, e := range events {
		if e.by != by || e.at < begin || e.at >= end {
			continue
		}
		if scheduling[e.name] && (by == byDaemon || by == byMonitor) {
			c[e.name+" (Go)"]++
			continue
		}
		c[e.name]++
	}
	return c
}

func seconds(t time.Time) float64 { return float64(t.UnixMicro()) / 1e6 }

// sum leaves the calls of Go's scheduler out.
func (c counts) sum() (n int) {
	for name, k := range c {
		if !strings.HasSuffix(name, " (Go)") {
			n += k
		}
	}
	return n
}

func (c counts) String() string {
	names := slices.SortedFunc(maps.Keys(c), func(a, b string) int {
		if c[a] != c[b] {
			return c[b] - c[a]
		}
		return strings.Compare(a, b)
	})
	var own, sched []string
	for _, name := range names {
		short, isSched := strings.CutSuffix(name, " (Go)")
		if c[name] > 1 {
			short = fmt.Sprintf("%s %d", short, c[name])
		}
		if isSched {
			sched = append(sched, short)
		} else {
			own = append(own, short)
		}
	}
	text := fmt.Sprintf("%d: %s", c.sum(), strings.Join(own, ", "))
	if len(sched) > 0 {
		text += " (Go: " + strings.Join(sched, ", ") + ")"
	}
	return text
}
