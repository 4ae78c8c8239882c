package fault

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/test/container/node"
)

// process is what /proc says of a process.
type process struct {
	name   string
	parent int
}

func processes(t *testing.T) map[int]process {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	all := map[int]process{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		open, end := strings.IndexByte(string(stat), '('), strings.LastIndexByte(string(stat), ')')
		if err != nil || open < 0 || end < open {
			continue // gone
		}
		parent, err := strconv.Atoi(strings.Fields(string(stat[end+1:]))[1])
		if err != nil {
			t.Fatalf("process %d: %q", pid, stat)
		}
		all[pid] = process{string(stat[open+1 : end]), parent}
	}
	return all
}

// TestProcessesOfTenPods holds the promise of the process model: one daemon, one
// monitor that is the parent of everything else, the containers, and one small init
// for each pod that shares its pid namespace.
func TestProcessesOfTenPods(t *testing.T) {
	n := node.Start(t)
	before := processes(t)
	containers := map[int]bool{}
	const pods, sharing = 10, 3
	for i := range pods {
		config := n.PodConfig(fmt.Sprint("pod", i))
		mode := rt.NamespaceMode_CONTAINER
		if i < sharing {
			mode = rt.NamespaceMode_POD
		}
		config.Linux.SecurityContext.NamespaceOptions.Pid = mode
		p := n.RunPod(t, config)
		for _, name := range []string{"first", "second"} {
			c := p.ContainerConfig(name, "sleep", "1000")
			c.Linux.SecurityContext.NamespaceOptions.Pid = mode
			containers[p.Pid(t, p.Start(t, c))] = true
		}
	}
	if len(containers) != 2*pods {
		t.Fatalf("got %d first processes, want %d", len(containers), 2*pods)
	}
	after := processes(t)
	var monitors []int
	for pid, p := range after {
		if p.name == "cri-monitor" {
			monitors = append(monitors, pid)
		}
	}
	if len(monitors) != 1 || after[n.Pid()].name != "cri-runtime" {
		t.Fatalf("got monitors %v, daemon %v, want one each", monitors, after[n.Pid()])
	}
	inits := 0
	for pid, p := range after {
		_, old := before[pid]
		switch {
		case old || pid == monitors[0]:
		case containers[pid]:
			if p.name != "sleep" || p.parent != monitors[0] {
				t.Errorf("container %d: %s, child of %d, want the monitor's %d", pid, p.name, p.parent, monitors[0])
			}
		case p.parent == monitors[0]:
			inits++
		default:
			t.Errorf("%d %s, child of %d (%s): nobody asked for it", pid, p.name, p.parent, after[p.parent].name)
		}
	}
	if inits != sharing {
		t.Errorf("got %d more children of the monitor, want one for each of %d pods that share", inits, sharing)
	}
	if old := slices.Collect(gone(before, after)); len(old) != 0 {
		t.Errorf("meanwhile ended: %v", old)
	}
}

// gone lists the processes that are no more.
func gone(before, after map[int]process) func(yield func(process) bool) {
	return func(yield func(process) bool) {
		for pid, p := range before {
			if _, ok := after[pid]; !ok && !yield(p) {
				return
			}
		}
	}
}
