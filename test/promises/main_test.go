package promises

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/cri-runtime/cri-runtime/test/bench/images"
	"github.com/cri-runtime/cri-runtime/test/bench/load"
	"github.com/cri-runtime/cri-runtime/test/lab"
)

func TestMain(m *testing.M) {
	os.Exit(lab.Main(m, func() lab.Needs { return lab.SmallNeeds("promises") }))
}

// node is a running daemon, and a client that makes pods like a kubelet's.
type node struct {
	*lab.Daemon
	*load.Client
}

// newNode starts a daemon with the built-in network, its log as terse as an operator's.
func newNode(t *testing.T) *node {
	t.Helper()
	d := lab.StartSmall(t)
	c, err := load.Dial(t.Context(), load.Options{
		Socket: d.Socket, Image: "bench.test/" + images.SmallName, LogDir: filepath.Join(d.Dir, "logs"), CgroupParent: kubepods(t),
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &node{d, c}
}

// kubepods makes the cgroup of all pods, as the kubelet does.
func kubepods(t *testing.T) string {
	t.Helper()
	parent := "/" + lab.Here(t).Cgroup
	if err := errors.Join(load.MakeCgroup(parent), load.MakeCgroup(parent+"/kubepods")); err != nil {
		t.Fatal(err)
	}
	return parent + "/kubepods"
}

func (n *node) start(t *testing.T, args ...string) *load.Pod {
	t.Helper()
	p, err := n.Client.Start(t.Context(), args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, n.LogTail())
	}
	return p
}

func (n *node) stop(t *testing.T, p *load.Pod) {
	t.Helper()
	if err := n.Client.Stop(t.Context(), p, 10); err != nil {
		t.Fatalf("%v\n%s", err, n.LogTail())
	}
}

// monitor is the process that is the parent of all containers. It runs from memory.
func monitor(t *testing.T) int {
	t.Helper()
	found := 0
	for _, exe := range glob(t, "/proc/[0-9]*/exe") {
		if name, err := os.Readlink(exe); err == nil && strings.Contains(name, "cri-monitor") {
			if found != 0 {
				t.Fatalf("two monitors: %d and %s", found, exe)
			}
			found = atoi(t, strings.Split(exe, "/")[2])
		}
	}
	if found == 0 {
		t.Fatal("no monitor")
	}
	return found
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
