package promises

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cri-runtime/cri-runtime/test/bench/load"
)

// pods is how many make a node full here; the names of the figures have it, too.
const pods = 100

// state is what daemon and monitor hold at some time.
type state struct {
	pss                                    int // of both, KiB
	daemonFiles, monitorFiles              int
	daemonThreads, monitorThreads          int
	goroutines, allocated, objects, helper int
}

func (n *node) state(t *testing.T) state {
	t.Helper()
	daemon, mon := n.Pid(), monitor(t)
	s := state{
		daemonFiles: entries(t, daemon, "fd"), monitorFiles: entries(t, mon, "fd"),
		daemonThreads: entries(t, daemon, "task"), monitorThreads: entries(t, mon, "task"), helper: n.others(t),
	}
	for _, pid := range []int{daemon, mon} {
		m, err := load.MemoryOf(pid)
		if err != nil {
			t.Fatal(err)
		}
		s.pss += int(m.PSS)
	}
	metrics := n.metrics(t) // last: it allocates
	s.goroutines, s.allocated, s.objects = metrics["go_goroutines"], metrics["go_memstats_alloc_bytes_total"], metrics["go_memstats_mallocs_total"]
	return s
}

// settled waits for what is done behind the last answer, such as emptying the trash. What is
// left then is a leak.
func (n *node) settled(t *testing.T, before state) state {
	t.Helper()
	held := func(s state) int { return s.daemonFiles + s.monitorFiles + s.goroutines }
	s := n.state(t)
	for deadline := time.Now().Add(5 * time.Second); held(s) > held(before) && time.Now().Before(deadline); {
		time.Sleep(settle)
		s = n.state(t)
	}
	return s
}

func entries(t *testing.T, pid int, dir string) int {
	t.Helper()
	list, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), dir))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// others counts the processes of this process namespace that are neither ours in the test,
// nor daemon and monitor, nor a container's program.
func (n *node) others(t *testing.T) (k int) {
	t.Helper()
	own := map[int]bool{1: true, os.Getpid(): true, n.Pid(): true, monitor(t): true}
	for _, dir := range glob(t, "/proc/[0-9]*") {
		exe, err := os.Readlink(dir + "/exe")
		if err == nil && !own[atoi(t, filepath.Base(dir))] && exe != "/bench" {
			t.Logf("another process: %s %s", dir, exe)
			k++
		}
	}
	return k
}

// metrics reads the daemon's, those without labels.
func (n *node) metrics(t *testing.T) map[string]int {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(n.State, "admin.sock"))
	}}}
	reply, err := c.Get("http://x/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	body, err := io.ReadAll(reply.Body)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	for line := range strings.Lines(string(body)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && !strings.HasPrefix(line, "#") {
			f, err := strconv.ParseFloat(value, 64)
			if err != nil {
				continue
			}
			found[name] = int(f)
		}
	}
	return found
}

// TestFullNode: what a pod that runs costs, and one that comes and goes leaves behind.
func TestFullNode(t *testing.T) {
	n := newNode(t)
	empty := n.state(t)
	check(t, "PSS of empty daemon and monitor, KiB", empty.pss)
	for range 3 {
		n.stop(t, n.start(t, "wait"))
	}

	const rounds = 20
	before := n.state(t)
	for range rounds {
		n.stop(t, n.start(t, "wait"))
	}
	after := n.settled(t, before)
	check(t, "KiB allocated by the daemon per pod life", (after.allocated-before.allocated)/1024/rounds)
	check(t, "objects allocated by the daemon per pod life", (after.objects-before.objects)/rounds)
	check(t, "goroutines that 20 ended pods leave", after.goroutines-before.goroutines)
	check(t, "descriptors that 20 ended pods leave", after.daemonFiles+after.monitorFiles-before.daemonFiles-before.monitorFiles)

	var running []*load.Pod
	for range pods {
		running = append(running, n.start(t, "wait"))
	}
	time.Sleep(settle)
	full := n.state(t)
	perPod := func(a, b int) int { return (b - a + pods/2) / pods }
	check(t, "PSS of daemon and monitor per pod at 100 pods, KiB", perPod(empty.pss, full.pss))
	check(t, "our processes beside daemon and monitor", full.helper)
	check(t, "descriptors of the daemon per pod", perPod(after.daemonFiles, full.daemonFiles))
	check(t, "descriptors of the monitor per pod", perPod(after.monitorFiles, full.monitorFiles))
	check(t, "goroutines per pod", perPod(after.goroutines, full.goroutines))
	check(t, "threads more at 100 pods than at none",
		full.daemonThreads+full.monitorThreads-empty.daemonThreads-empty.monitorThreads)
	n.asked(t)
	for _, p := range running {
		n.stop(t, p)
	}
	gone := n.settled(t, empty)
	t.Logf("empty %+v\nafter 23 pods %+v\nfull %+v\nall gone %+v", empty, after, full, gone)
}

// asked counts what a full node does when nobody asks, and when a kubelet does.
func (n *node) asked(t *testing.T) {
	t.Helper()
	for range 2 { // the first reading of statistics opens files that stay open
		if err := n.Round(t.Context(), load.Steps{}); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(2 * time.Second) // samples are a second old at most, and then taken anew
	tr := trace(t, n.Pid(), monitor(t))
	time.Sleep(time.Second) // being attached to interrupts waits, which are begun again
	const idle = 4
	from := time.Now()
	time.Sleep(idle * time.Second)
	quiet := time.Now()
	if err := n.Round(t.Context(), load.Steps{}); err != nil {
		t.Fatal(err)
	}
	to := time.Now()
	events := tr.end(t)
	var nobody int
	for _, by := range who {
		c := between(events, by, from, quiet)
		for name, k := range c {
			if !strings.HasPrefix(name, "nanosleep") { // naps of Go's watcher of threads, which are as many as the machine is slow
				nobody += k
			}
		}
		t.Logf("nobody asks, %d s: %-8s %v", idle, by, c)
		t.Logf("a kubelet asks:     %-8s %v", by, between(events, by, quiet, to))
	}
	check(t, "system calls per second when nobody asks", nobody/idle)
	check(t, "system calls of a kubelet's round at 100 pods", between(events, byDaemon, quiet, to).sum())
	check(t, "system calls of the monitor in a kubelet's round", between(events, byMonitor, quiet, to).sum())
}
