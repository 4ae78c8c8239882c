package promises

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cri-runtime/cri-runtime/test/bench/load"
)

// lives is how many pods are looked at. Each figure is the median of theirs.
const lives = 5

// settle is for what is done behind an answer.
const settle = 60 * time.Millisecond

// calls are the CRI calls of a pod's life.
var calls = []string{"RunPodSandbox", "CreateContainer", "StartContainer", "StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox"}

// window is the time in which what was done was done for one CRI call.
type window struct{ from, to time.Time }

// life starts and ends a pod, and tells when each call's work was done.
func life(t *testing.T, n *node) map[string]window {
	t.Helper()
	p := n.start(t, "wait")
	time.Sleep(settle)
	running := time.Now()
	n.stop(t, p)
	time.Sleep(settle)
	w := map[string]window{}
	for i, call := range calls {
		to := time.Now()
		if i+1 < len(calls) {
			to = p.Began[calls[i+1]]
		}
		if call == "StartContainer" {
			to = running
		}
		w[call] = window{p.Began[call], to}
	}
	return w
}

// TestPodLife: what a pod's start and end takes of the kernel.
func TestPodLife(t *testing.T) {
	n := newNode(t)
	for range 3 { // pools are filled, caches are warm
		life(t, n)
	}
	tr := trace(t, n.Pid(), monitor(t))
	var all []map[string]window
	for range lives {
		all = append(all, life(t, n))
	}
	events := tr.end(t)
	last := all[lives-1]
	t.Log("system calls of each CRI call, by whom, of the last pod; those of Go's runtime are not counted:\n" + table(events, last))
	if err := annotate(events, last); err != nil {
		t.Error(err)
	}
	median := func(by string, of ...string) int {
		var sums []int
		for _, w := range all {
			sum := 0
			for _, call := range of {
				sum += between(events, by, w[call].from, w[call].to).sum()
			}
			sums = append(sums, sum)
		}
		slices.Sort(sums)
		return sums[len(sums)/2]
	}
	check(t, "system calls of the daemon per pod life", median(byDaemon, calls...))
	check(t, "system calls of the monitor per pod life", median(byMonitor, calls...))
	check(t, "system calls of the launch plan per container", median(byPlan, calls...))
	check(t, "system calls of RunPodSandbox", median(byDaemon, "RunPodSandbox"))
	check(t, "system calls of CreateContainer", median(byDaemon, "CreateContainer"))
	check(t, "system calls of StartContainer, daemon and monitor", median(byDaemon, "StartContainer")+median(byMonitor, "StartContainer"))
	check(t, "system calls of StopContainer, daemon and monitor", median(byDaemon, "StopContainer")+median(byMonitor, "StopContainer"))
	check(t, "system calls of the end after that, daemon and monitor", median(byDaemon, calls[4:]...)+median(byMonitor, calls[4:]...))
	check(t, "programs executed by us per pod life", executed(events)-lives)
	check(t, "syncs to disk per pod life", synced(events))
	check(t, "requests to the monitor per start", between(events, byDaemon, last["StartContainer"].from, last["StartContainer"].to)["sendmsg"])
	check(t, "messages of the monitor per pod life", between(events, byMonitor, last[calls[0]].from, last[calls[len(calls)-1]].to)["sendmsg"])
}

// TestExec: the same of an exec in a running container.
func TestExec(t *testing.T) {
	n := newNode(t)
	p := n.start(t, "wait")
	for range 3 {
		n.exec(t, p)
	}
	tr := trace(t, n.Pid(), monitor(t))
	var all []window
	for range lives {
		w := window{from: time.Now()}
		n.exec(t, p)
		time.Sleep(settle)
		w.to = time.Now()
		all = append(all, w)
	}
	events := tr.end(t)
	median := func(by string) int {
		var sums []int
		for _, w := range all {
			sums = append(sums, between(events, by, w.from, w.to).sum())
		}
		t.Logf("%-8s %v", by, between(events, by, all[lives-1].from, all[lives-1].to))
		slices.Sort(sums)
		return sums[len(sums)/2]
	}
	check(t, "system calls of the daemon per exec", median(byDaemon))
	check(t, "system calls of the monitor per exec", median(byMonitor))
	check(t, "system calls of the launch plan per exec", median(byPlan))
	check(t, "programs executed by us per exec", executed(events)-lives)
	n.stop(t, p)
}

func (n *node) exec(t *testing.T, p *load.Pod) {
	t.Helper()
	if err := n.ExecTrue(t.Context(), p); err != nil {
		t.Fatal(err)
	}
}

// executed counts programs. Each container and each exec has one; what is more is ours.
func executed(events []event) (n int) {
	for _, e := range events {
		if strings.HasPrefix(e.name, "execve") {
			n++
		}
	}
	return n
}

// synced counts what waits for a disk.
func synced(events []event) (n int) {
	for _, e := range events {
		switch e.name {
		case "fsync", "fdatasync", "syncfs", "sync", "sync_file_range", "msync":
			n++
		}
	}
	return n
}

var annotated = flag.String("calls", "", "write every system call of the last pod's life to this file, with whose it is and for which CRI call")

func annotate(events []event, w map[string]window) error {
	if *annotated == "" {
		return nil
	}
	var b strings.Builder
	for _, call := range calls {
		begin, end := seconds(w[call].from), seconds(w[call].to)
		fmt.Fprintf(&b, "==== %s\n", call)
		for _, e := range events {
			if e.at >= begin && e.at < end {
				_, text, _ := strings.Cut(e.text, " ")
				_, text, _ = strings.Cut(strings.TrimSpace(text), " ")
				fmt.Fprintf(&b, "%7.2f ms %-8s %s\n", (e.at-begin)*1e3, e.by, text)
			}
		}
	}
	return os.WriteFile(*annotated, []byte(b.String()), 0o644)
}

// table is one paragraph for each CRI call.
func table(events []event, w map[string]window) string {
	var b strings.Builder
	for _, call := range calls {
		fmt.Fprintf(&b, "%s\n", call)
		for _, by := range append(slices.Clone(who), byOther) {
			if c := between(events, by, w[call].from, w[call].to); len(c) > 0 {
				fmt.Fprintf(&b, "  %-8s %v\n", by, c)
			}
		}
	}
	return b.String()
}
