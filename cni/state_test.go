package cni_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cri-runtime/cri-runtime/cni"
)

// What is known of pods of the default network ends with the boot. A daemon that was
// upgraded under its pods goes on where their addresses are.
func TestDefaultNetworkIsOfTheBoot(t *testing.T) {
	needNode(t)
	cache, state := t.TempDir(), t.TempDir()
	addresses := func(dir string) int {
		files, _ := filepath.Glob(filepath.Join(dir, "networks/cri-runtime/10.*"))
		return len(files)
	}
	// As before, all was in one directory.
	old, err := cni.New(t.Context(), cni.Config{CacheDir: cache, Default: &cni.DefaultNetwork{}})
	must(t, err)
	p := cni.Pod{ID: "old", NetNS: newNS(t)}
	was, err := old.Attach(t.Context(), p)
	must(t, err)
	must(t, old.Close())

	upgraded := func() *cni.Network {
		n, err := cni.New(t.Context(), cni.Config{CacheDir: cache, StateDir: state, Default: &cni.DefaultNetwork{}})
		must(t, err)
		return n
	}
	n := upgraded()
	again, err := n.Attach(t.Context(), p)
	must(t, err)
	if again.IPs[0] != was.IPs[0] {
		t.Errorf("pod of the old version: address %v, had %v", again.IPs[0], was.IPs[0])
	}
	second := cni.Pod{ID: "second", NetNS: newNS(t)}
	got, err := n.Attach(t.Context(), second)
	must(t, err)
	if got.IPs[0] == was.IPs[0] || addresses(cache) != 2 || addresses(state) != 0 {
		t.Errorf("second pod: address %v, first has %v; %d in the old place, %d in the new", got.IPs[0], was.IPs[0], addresses(cache), addresses(state))
	}
	must(t, n.Detach(t.Context(), p))
	must(t, n.Close())

	// The second pod's address is still there.
	n = upgraded()
	third := cni.Pod{ID: "third", NetNS: newNS(t)}
	got, err = n.Attach(t.Context(), third)
	must(t, err)
	if addresses(cache) != 2 {
		t.Errorf("third pod: address %v, %d in the old place, want 2", got.IPs[0], addresses(cache))
	}
	must(t, n.Detach(t.Context(), second))
	must(t, n.Detach(t.Context(), third))
	must(t, n.Close())

	n = upgraded()
	fourth := cni.Pod{ID: "fourth", NetNS: newNS(t)}
	_, err = n.Attach(t.Context(), fourth)
	must(t, err)
	if addresses(state) != 1 || addresses(cache) != 0 {
		t.Errorf("%d addresses in the old place, %d in the new, want 0 and 1", addresses(cache), addresses(state))
	}
	if _, err := os.Stat(filepath.Join(state, "pods/fourth.json")); err != nil {
		t.Error(err)
	}
	must(t, n.Detach(t.Context(), fourth))
	must(t, n.Purge(t.Context()))
	must(t, n.Close())
	for _, p := range []cni.Pod{p, second, third, fourth} {
		dropNS(p.NetNS)
	}
	leaks(t, cache)
	leaks(t, state)
}

// A daemon that is killed while it writes a record leaves a file that the next one removes, and no other.
func TestHalfWrittenRecordIsRemoved(t *testing.T) {
	cache, state := t.TempDir(), t.TempDir()
	var keep []string
	for _, dir := range []string{filepath.Join(cache, "pods"), filepath.Join(state, "pods")} {
		must(t, os.Mkdir(dir, 0o700))
		for _, name := range []string{".0123abcd.json.new", "x.json", "y.json.new", ".z.new"} {
			must(t, os.WriteFile(filepath.Join(dir, name), []byte("{"), 0o600))
		}
		keep = append(keep, filepath.Join(dir, ".z.new"), filepath.Join(dir, "x.json"), filepath.Join(dir, "y.json.new"))
	}
	n, err := cni.New(t.Context(), cni.Config{CacheDir: cache, StateDir: state, ConfDir: t.TempDir()})
	must(t, err)
	must(t, n.Close())
	var left []string
	for _, dir := range []string{cache, state} {
		files, err := filepath.Glob(filepath.Join(dir, "pods/*"))
		must(t, err)
		left = append(left, files...)
	}
	if !slices.Equal(left, keep) {
		t.Errorf("left: got %q, want %q", left, keep)
	}
}

// A pod that was attached without libcni is in its list of results when libcni is used on it.
func TestResultsForLibcni(t *testing.T) {
	cache := t.TempDir()
	n := node(t, cni.Config{CacheDir: cache, Default: &cni.DefaultNetwork{}})
	p, _ := pod(t, n, "p", cni.PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: cni.TCP})
	if files, _ := filepath.Glob(filepath.Join(cache, "results/*")); len(files) != 0 {
		t.Errorf("results: %v", files)
	}
	must(t, n.Check(t.Context(), p))
	must(t, n.Detach(t.Context(), p)) // by libcni
}
