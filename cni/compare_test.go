package cni_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/cri-runtime/cri-runtime/cni"
)

// needBinaries returns the directory of the upstream plugins.
func needBinaries(t testing.TB, names ...string) string {
	t.Helper()
	cache := os.Getenv("CRI_RUNTIME_CACHE")
	if cache == "" {
		home, err := os.UserHomeDir()
		must(t, err)
		cache = filepath.Join(home, ".cache/cri-runtime")
	}
	dir := filepath.Join(cache, "bin/cni")
	for _, n := range names {
		if _, err := os.Stat(filepath.Join(dir, n)); err != nil {
			if os.Getenv("CRI_TEST_STRICT") == "1" {
				t.Fatalf("need CNI plugin binaries: %v", err)
			}
			t.Skipf("need CNI plugin binaries: %v", err)
		}
	}
	return dir
}

// dropBridge removes what a conflist's bridge leaves on purpose.
func dropBridge(t testing.TB) {
	if l, err := netlink.LinkByName("br-test"); err == nil {
		must(t, netlink.LinkDel(l))
	}
	if c, err := nftables.New(); err == nil {
		c.FlushRuleset()
		_ = c.Flush()
	}
}

// The programs and the built-in plugins give the same result for the same
// configuration, and each can take back what the other set up.
func TestSameAsTheBinaries(t *testing.T) {
	needNode(t)
	bin := needBinaries(t, "bridge", "host-local")
	f := newFiles(t)
	f.network(t, "1.0.0", "net", "10.66.0.0/24")
	t.Cleanup(func() { dropBridge(t) })
	theirs, ours := f.config(), f.config()
	theirs.BinDirs, theirs.Builtin = []string{bin}, cni.Off
	ours.Builtin = cni.Always
	t.Cleanup(func() { leaks(t, f.cache) })
	var shapes []string
	for name, pair := range map[string][2]cni.Config{"theirs to ours": {theirs, ours}, "ours to theirs": {ours, theirs}} {
		add, err := cni.New(t.Context(), pair[0])
		must(t, err)
		del, err := cni.New(t.Context(), pair[1])
		must(t, err)
		if err := add.Ready(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		p := cni.Pod{ID: "p-" + fmt.Sprint(len(shapes)), NetNS: newNS(t)}
		a, err := add.Attach(t.Context(), p)
		must(t, err)
		shapes = append(shapes, shape(t, a))
		if pair[1].Builtin == cni.Off { // the program knows random link names only from the result
			must(t, del.Check(t.Context(), p))
		}
		serve(t, p.NetNS, 80)
		if _, err := ask("", "tcp", addrPort(a.IPs[0], 80)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		must(t, del.Detach(t.Context(), p))
		if got := allocated(t, f.cache); len(got) != 0 {
			t.Errorf("%s: addresses left: %v", name, got)
		}
		dropNS(p.NetNS)
		must(t, add.Close())
		must(t, del.Close())
	}
	if shapes[0] != shapes[1] {
		t.Errorf("results differ:\n%s\n%s", shapes[0], shapes[1])
	}
}

// shape is a result without what differs by nature: addresses, names, MACs.
func shape(t testing.TB, a cni.Attachment) string {
	t.Helper()
	var r struct {
		CNIVersion string
		Interfaces []struct{ Name, Sandbox string }
		IPs        []map[string]any
		Routes     []map[string]any
	}
	must(t, json.Unmarshal(a.Result, &r))
	var kinds []string
	for _, i := range r.Interfaces {
		kinds = append(kinds, fmt.Sprint(i.Sandbox != "", i.Name == "eth0", i.Name == "br-test"))
	}
	var keys []string
	for _, ip := range r.IPs {
		for k := range ip {
			keys = append(keys, k)
		}
		keys = append(keys, fmt.Sprint(ip["interface"], ip["gateway"]))
	}
	slices.Sort(keys)
	return fmt.Sprint(r.CNIVersion, kinds, keys, r.Routes)
}

func BenchmarkAttachDetach(b *testing.B) {
	needNode(b)
	n, err := cni.New(b.Context(), cni.Config{CacheDir: b.TempDir(), Default: &cni.DefaultNetwork{}})
	must(b, err)
	defer n.Close()
	for _, ports := range []int{0, 1} {
		b.Run(fmt.Sprint(ports, "ports"), func(b *testing.B) {
			var attach, detach int64
			for i := range b.N {
				b.StopTimer()
				p := cni.Pod{ID: fmt.Sprint("p", i), NetNS: newNS(b)}
				if ports > 0 {
					p.PortMappings = []cni.PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: cni.TCP}}
				}
				b.StartTimer()
				t0 := b.Elapsed()
				if _, err := n.Attach(b.Context(), p); err != nil {
					b.Fatal(err)
				}
				t1 := b.Elapsed()
				if err := n.Detach(b.Context(), p); err != nil {
					b.Fatal(err)
				}
				attach += int64(t1 - t0)
				detach += int64(b.Elapsed() - t1)
				b.StopTimer()
				dropNS(p.NetNS)
				b.StartTimer()
			}
			b.ReportMetric(float64(attach)/float64(b.N)/1e6, "ms/attach")
			b.ReportMetric(float64(detach)/float64(b.N)/1e6, "ms/detach")
		})
	}
}
