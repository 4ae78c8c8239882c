package main

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cri-runtime/cri-runtime/test/bench/load"
	"github.com/cri-runtime/cri-runtime/test/bench/peers"
	"github.com/cri-runtime/cri-runtime/test/bench/report"
)

func memory(processes int, pss int64) map[string]load.Memory {
	return map[string]load.Memory{load.Total: {Processes: processes, PSS: pss}, "daemon": {Processes: processes, PSS: pss}}
}

// made is a result of three rounds of two phases by ours and one peer.
func made() *results {
	r := &results{
		Began: time.Unix(1700000000, 0).UTC(), Options: options{Rounds: 3}, Machine: map[string]string{"kernel": "6.18"},
		Targets: []runtime{
			{Target: peers.Target{Name: ours, Version: "v1"}, Sizes: map[string]int64{"cri-runtime": 20e6, "cri-monitor": 2e6}},
			{Target: peers.Target{Name: containerdCrun, Version: "v2", Settings: []string{"a = b"}}},
			{Target: peers.Target{Name: crioCrun, Version: "v3"}},
		},
		Missing: map[string]string{containerdRunc: "not built"},
	}
	for round := range 3 {
		slow := float64(round)
		for name, ready := range map[string]float64{ours: 5, containerdCrun: 60, crioCrun: 40} {
			r.Samples = append(r.Samples, sample{Phase: "latency", Target: name, Round: round, Length: 10, Start: 100 + slow, Latency: &load.Latency{
				Steps:     load.Steps{"Ready": {ready + slow, ready + slow, 100}, "StopContainer": {ready / 2}},
				CPUPerPod: ready * 2,
			}})
		}
	}
	r.Samples = append(r.Samples,
		sample{Phase: "throughput", Target: ours, Throughput: &load.Throughput{StartsPerSecond: 149}},
		sample{Phase: "throughput", Target: crioCrun, Throughput: &load.Throughput{StartsPerSecond: 40}},
		sample{Phase: "density", Target: ours, Density: &load.Density{
			Pods: 10, Before: memory(2, 20000), After: memory(2, 20500), Ready: make(load.Samples, 20), Poll: load.Steps{"ListContainerStats": {1, 2, 3}},
		}},
		sample{Phase: "density", Target: crioCrun, Density: &load.Density{Pods: 10, Before: memory(1, 20000), After: memory(11, 23000), Ready: make(load.Samples, 20)}},
		sample{Phase: "counts", Target: ours, Length: 10, Stolen: 1, Others: 3, Counts: &counts{Pods: 5, Programs: map[string]int{}, Syncs: map[string]int{"fsync": 5}}})
	return r
}

func TestAims(t *testing.T) {
	got := map[string][2]bool{}
	for _, j := range made().judge() {
		got[j.what] = [2]bool{j.met, j.ratioMet}
	}
	want := map[string][2]bool{
		"pod ready, built-in bridge":           {true, false}, // 6 ms, 6/41 of CRI-O's
		"StopContainer of an obedient process": {false, true}, // 2.5 ms, no ratio promised
		"CPU per pod life, built-in bridge":    {false, true}, // 10 ms, 1/8 of 80
		"pods started per second":              {false, true}, // 149, 3.7 times
		"memory per pod":                       {true, true},  // 50 KiB of 300
		"ListContainerStats":                   {true, true},  // no peer has it
		"processes of the runtime's per pod":   {true, true},
		"CPU with pods that nobody asks for":   {true, true},
		"CPU polled each second":               {true, true},
		"programs executed per pod life":       {true, true},
		"fsync and fdatasync per pod life":     {false, true},
	}
	for what, v := range want {
		if now, ok := got[what]; !ok || now != v {
			t.Errorf("%s: got %v (there: %v), want %v", what, now, ok, v)
		}
	}
	if len(got) != len(want) {
		t.Errorf("aims: got %d, want %d: %v", len(got), len(want), got)
	}
	r := made()
	if n := r.missed(); n != 5 {
		t.Errorf("missed: got %d, want 5", n)
	}
	r.Failures = []string{"one"}
	if n := r.missed(); n != 6 {
		t.Errorf("missed with a failure: got %d, want 6", n)
	}
}

// TestAimsNameFigures: an aim whose figure is renamed would be judged no more.
func TestAimsNameFigures(t *testing.T) {
	var keys []string
	for _, f := range figures() {
		if slices.Contains(keys, f.key()) {
			t.Errorf("two figures are called %s", f.key())
		}
		keys = append(keys, f.key())
	}
	for _, a := range aims {
		if !slices.Contains(keys, a.figure) {
			t.Errorf("%s: there is no figure %q", a.what, a.figure)
		}
	}
	for _, s := range barCharts {
		for _, shown := range s.figures {
			if !slices.Contains(keys, shown[0]) {
				t.Errorf("chart %s: there is no figure %q", s.file, shown[0])
			}
		}
	}
}

func TestReport(t *testing.T) {
	file := filepath.Join(t.TempDir(), resultsFile)
	if err := report.Save(file, made()); err != nil {
		t.Fatal(err)
	}
	r, err := readResult(file)
	if err != nil {
		t.Fatal(err)
	}
	text := r.markdown()
	for _, want := range []string{
		"containerd-runc was not measured: not built",
		"| pod ready, built-in bridge | ours | 6.00 ms | <= 6.00 | met | crio-crun | 0.146 | <= 1/7 | **not met** |",
		"| pods started per second | ours | 149 | >= 150 | **not met** | crio-crun | 3.73 | >= 3.50 | met |",
		"| Ready, ms | 6.00 / 100 / 100 | 61.0 / 100 / 100 | 41.0 / 100 / 100 | crio-crun | 0.146 |",
		"| PSS per pod, KiB | 50.0 | 300 | crio-crun | 0.167 |",
		"| ours | 22.0 (cri-monitor 2.00, cri-runtime 20.0) |",
		"disturbed, but counted: ours, round 1: the hypervisor took 1.0 CPU s in 10.0 s",
		"- ours: fsync 1.00", "in 1 of 14 samples others than",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("report lacks %q:\n%s", want, text)
		}
	}
	charts := r.charts()
	for _, name := range []string{"latency", "cpu", "throughput", "memory", "density"} {
		if !strings.HasPrefix(charts[name], "<svg") {
			t.Errorf("chart %s: got %q", name, charts[name])
		}
	}
	if _, ok := charts["logs"]; ok {
		t.Error("a chart of what was not measured")
	}
	dir := t.TempDir()
	if err := r.publish(dir); err != nil {
		t.Fatal(err)
	}
	if written, _ := filepath.Glob(filepath.Join(dir, "*.svg")); len(written) != len(charts) {
		t.Errorf("charts: got %v, want %d", written, len(charts))
	}
	if _, err := readResult(filepath.Join(dir, "none")); err == nil {
		t.Error("reading no results: got no error")
	}
}

func TestOptionsNameWhatIsWrong(t *testing.T) {
	for name, tc := range map[string]struct {
		o    options
		want string
	}{
		"fine":   {options{Rounds: 1, Only: "ours,mine", Phases: "exec,logs", Peers: []string{"mine=/run/x.sock"}}, ""},
		"rounds": {options{Rounds: 0}, "-rounds"},
		"only":   {options{Rounds: 1, Only: "docker"}, "-only"},
		"phases": {options{Rounds: 1, Phases: "lunch"}, "-phases"},
		"peer":   {options{Rounds: 1, Peers: []string{"mine=x.sock"}}, "-peer"},
		"twice":  {options{Rounds: 1, Peers: []string{"ours=/run/x.sock"}}, "taken"},
	} {
		t.Run(name, func(t *testing.T) {
			err := tc.o.valid()
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestPhasesApply(t *testing.T) {
	all := []runtime{{Target: peers.Target{Name: ours}}, {Target: peers.Target{Name: oursCNI}}, {Target: peers.Target{Name: containerdCrun}}, {Target: peers.Target{Name: containerdRunc}}}
	somebodys := runtime{Target: peers.Target{Name: "mine"}, Socket: "/x"}
	for _, tc := range []struct {
		phase string
		r     runtime
		want  bool
	}{
		{"latency", all[1], true},
		{"latency-host", all[1], false},
		{"density-more", all[0], true},
		{"density-more", all[2], true}, // the first peer that is there
		{"density-more", all[3], false},
		{"density-more", somebodys, false},
		{"exec", somebodys, true},
		{"restart", somebodys, false},
		{"counts", somebodys, false},
		{"idle", somebodys, false},
	} {
		i := slices.IndexFunc(phases(), func(p phase) bool { return p.name == tc.phase })
		if got := phases()[i].applies(tc.r, all); got != tc.want {
			t.Errorf("%s of %s: got %v, want %v", tc.phase, tc.r.Name, got, tc.want)
		}
	}
}

func TestCount(t *testing.T) {
	c, err := count(strings.NewReader(`12 execve("/usr/sbin/runc", ["runc", "create"], 0xc000 /* 9 vars */) = 0
12 execve("/sbin/none", ["none"], 0xc000 /* 9 vars */) = -1 ENOENT (No such file or directory)
13 execve("/opt/cni/bin/bridge", ["/opt/cni/bin/bridge"], 0xc000 /* 9 vars */ <unfinished ...>
14 clone(child_stack=0x7f, flags=CLONE_VM|CLONE_FS|CLONE_THREAD <unfinished ...>
13 <... execve resumed>)             = 0
14 <... clone resumed>, parent_tid=[15], tls=0x1, child_tidptr=0x2) = 15
15 execve("/proc/self/exe", ["runc", "init"], 0xc000) = 0
15 execveat(7, "", ["/bench", "wait"], 0x0, AT_EMPTY_PATH) = 0
16 clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|SIGCHLD, child_tidptr=0x7) = 17
16 clone3({flags=CLONE_VFORK, exit_signal=SIGCHLD}, 88) = 18
16 fdatasync(7)                      = 0
16 fsync(9)                          = -1 EINVAL (Invalid argument)
16 syscall_0x1c4(0x5, 0x7f, 0x1ff, 0, 0, 0) = 0
17 +++ exited with 0 +++
`))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Programs; len(got) != 2 || got["runc"] != 2 || got["bridge"] != 1 {
		t.Errorf("programs: got %v, want runc twice, bridge once", got)
	}
	if c.Processes != 2 {
		t.Errorf("processes: got %d, want 2", c.Processes)
	}
	if got := c.Syncs; len(got) != 1 || got["fdatasync"] != 1 {
		t.Errorf("syncs: got %v, want one fdatasync", got)
	}
}

func TestFraction(t *testing.T) {
	for v, want := range map[float64]string{1.0 / 7: "1/7", 0.55: "0.550", 1.0 / 12: "1/12"} {
		if got := fraction(v); got != want {
			t.Errorf("%v: got %s, want %s", v, got, want)
		}
	}
}
