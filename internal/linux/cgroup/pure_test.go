package cgroup

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

func TestPathValid(t *testing.T) {
	for p, ok := range map[Path]bool{
		"/": true, "/a/b.slice/c": true, "": false, "a": false, "/a/../b": false, "/a//b": false,
		"/a/": false, "/a\nb": false, Path("/" + strings.Repeat("x", 256)): false, "/.": false,
	} {
		if err := p.Valid(); (err == nil) != ok {
			t.Errorf("%q: got %v, want valid %v", p, err, ok)
		}
	}
	if got := Path("/a").Join("b", "c"); got != "/a/b/c" || got.Parent() != "/a/b" || got.Base() != "c" {
		t.Errorf("Join: got %s, parent %s, base %s", got, got.Parent(), got.Base())
	}
}

func TestSettings(t *testing.T) {
	for name, tc := range map[string]struct {
		r       Resources
		swapNow uint64
		v1, v2  string // "error" for a refusal
	}{
		"nothing": {},
		"cpu": {r: Resources{CPUShares: 1024, CPUQuota: 50000, CPUPeriod: 100000},
			v1: "cpu.shares=1024 cpu.cfs_period_us=100000 cpu.cfs_quota_us=50000", v2: "cpu.weight=100 cpu.max=50000_100000"},
		"cpu unlimited": {r: Resources{CPUQuota: -1}, v1: "cpu.cfs_quota_us=-1", v2: "cpu.max=max_100000"},
		"period alone":  {r: Resources{CPUPeriod: 50000}, v1: "cpu.cfs_period_us=50000", v2: "cpu.max=keep_50000"},
		"no swap": {r: Resources{MemoryLimit: 100, MemorySwapLimit: 100}, swapNow: unlimited,
			v1: "memory.limit_in_bytes=100 memory.memsw.limit_in_bytes=100", v2: "memory.swap.max=0 memory.max=100"},
		"growing": {r: Resources{MemoryLimit: 100, MemorySwapLimit: 150}, swapNow: 50,
			v1: "memory.memsw.limit_in_bytes=150 memory.limit_in_bytes=100", v2: "memory.swap.max=50 memory.max=100"},
		"memory unlimited": {r: Resources{MemoryLimit: -1},
			v1: "memory.memsw.limit_in_bytes=-1 memory.limit_in_bytes=-1", v2: "memory.swap.max=max memory.max=max"},
		"swap unlimited": {r: Resources{MemoryLimit: 7, MemorySwapLimit: -1},
			v1: "memory.memsw.limit_in_bytes=-1 memory.limit_in_bytes=7", v2: "memory.swap.max=max memory.max=7"},
		"swap alone":       {r: Resources{MemorySwapLimit: 9}, v1: "memory.memsw.limit_in_bytes=9", v2: "error"},
		"swap below":       {r: Resources{MemoryLimit: 9, MemorySwapLimit: 8}, v1: "error", v2: "error"},
		"pids":             {r: Resources{PidsLimit: 5}, v1: "pids.max=5", v2: "pids.max=5"},
		"pids unlimited":   {r: Resources{PidsLimit: -1}, v1: "pids.max=max", v2: "pids.max=max"},
		"cpuset":           {r: Resources{CpusetCPUs: "0-1", CpusetMems: "0"}, v1: "cpuset.cpus=0-1 cpuset.mems=0", v2: "cpuset.cpus=0-1 cpuset.mems=0"},
		"hugepages":        {r: Resources{Hugepages: []Hugepage{{"2MB", 0}}}, v1: "hugetlb.2MB.limit_in_bytes=0", v2: "hugetlb.2MB.max=0"},
		"unified":          {r: Resources{Unified: map[string]string{"memory.high": "5"}}, v1: "error", v2: "memory.high=5"},
		"unified procs":    {r: Resources{Unified: map[string]string{"cgroup.procs": "1"}}, v1: "error", v2: "error"},
		"unified escape":   {r: Resources{Unified: map[string]string{"../memory.high": "1"}}, v1: "error", v2: "error"},
		"odd cpuset":       {r: Resources{CpusetCPUs: "0\n1x"}, v1: "error", v2: "error"},
		"odd page size":    {r: Resources{Hugepages: []Hugepage{{"../2MB", 0}}}, v1: "error", v2: "error"},
		"negative memory":  {r: Resources{MemoryLimit: -2}, v1: "error", v2: "error"},
		"weight at bounds": {r: Resources{CPUShares: 2}, v1: "cpu.shares=2", v2: "cpu.weight=1"},
	} {
		for v2, want := range map[bool]string{false: tc.v1, true: tc.v2} {
			list, err := settings(tc.r, func(string) bool { return v2 }, tc.swapNow)
			var words []string
			for _, s := range list {
				words = append(words, s.file+"="+strings.ReplaceAll(s.value, " ", "_"))
			}
			got := strings.Join(words, " ")
			if err != nil {
				got = "error"
				if !errors.Is(err, errdef.ErrInvalid) {
					t.Errorf("%s: got %v, want it invalid", name, err)
				}
			}
			if got != want {
				t.Errorf("%s, v2 %v:\n got %s\nwant %s", name, v2, got, want)
			}
		}
	}
}

func TestWeight(t *testing.T) {
	last := uint64(0)
	for shares, want := range map[uint64]uint64{0: 1, 2: 1, 1024: 100, 262144: 10000, 1 << 40: 10000} {
		if got := Weight(shares); got != want {
			t.Errorf("Weight(%d): got %d, want %d", shares, got, want)
		}
	}
	for shares := uint64(2); shares <= 262144; shares += 7 {
		w := Weight(shares)
		if w < last || w < 1 || w > 10000 {
			t.Fatalf("Weight(%d): got %d after %d, want it to grow within 1..10000", shares, w, last)
		}
		last = w
	}
}

func TestSlices(t *testing.T) {
	for in, want := range map[string]Path{
		"-.slice": "/", "a.slice": "/a.slice", "a-b-c.slice": "/a.slice/a-b.slice/a-b-c.slice",
		"kubepods-burstable-pod1_2.slice": "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice",
		"":                                "", ".slice": "", "a": "", "-a.slice": "", "a-.slice": "", "a--b.slice": "", "a/b.slice": "",
	} {
		got, err := ExpandSlice(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("ExpandSlice(%q): got %q, %v, want %q", in, got, err, want)
		}
	}
	for cgroupfs, slice := range map[Path]Path{
		"/":                        "/",
		"/kubepods/burstable/pod1": "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice",
		"/kubepods/pod12-34":       "/kubepods.slice/kubepods-pod12_34.slice",
	} {
		got, err := CgroupfsToSlice(cgroupfs)
		if err != nil || got != slice {
			t.Errorf("CgroupfsToSlice(%s): got %s, %v, want %s", cgroupfs, got, err, slice)
		}
		back, err := SliceToCgroupfs(slice)
		if err != nil || back != cgroupfs {
			t.Errorf("SliceToCgroupfs(%s): got %s, %v, want %s", slice, back, err, cgroupfs)
		}
	}
	got, err := ScopePath("/kubepods.slice/kubepods-pod1.slice", Scope("cri", "abc"))
	if want := Path("/kubepods.slice/kubepods-pod1.slice/cri-abc.scope"); err != nil || got != want {
		t.Errorf("ScopePath: got %s, %v, want %s", got, err, want)
	}
	if _, err := Slice("/kubepods/pod1"); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("a cgroupfs parent with the systemd driver: got %v, want invalid", err)
	}
}

func TestFromMounts(t *testing.T) {
	v2 := t.TempDir()
	if err := writeNew(v2+"/cgroup.controllers", "cpu memory pids\n"); err != nil {
		t.Fatal(err)
	}
	v1 := func(options string) *mountinfo.Info {
		return &mountinfo.Info{FSType: "cgroup", Mountpoint: "/x/" + options, VFSOptions: options}
	}
	two := &mountinfo.Info{FSType: "cgroup2", Mountpoint: v2}
	for name, tc := range map[string]struct {
		mounts []*mountinfo.Info
		mode   Mode
		have   string
		legacy int
	}{
		"v2":                  {[]*mountinfo.Info{two}, Unified, "[cpu memory pids]", 0},
		"v2 with name":        {[]*mountinfo.Info{two, v1("rw,name=systemd")}, Unified, "[cpu memory pids]", 0},
		"v1":                  {[]*mountinfo.Info{v1("rw,cpu,cpuacct"), v1("rw,memory"), v1("rw,memory")}, Legacy, "[cpu cpuacct memory]", 2},
		"hybrid":              {[]*mountinfo.Info{v1("rw,memory"), v1("rw,xattr,name=systemd"), two}, Legacy, "[cpu memory pids]", 2},
		"nothing":             {nil, 0, "", 0},
		"only a named v1 one": {[]*mountinfo.Info{v1("rw,name=systemd")}, 0, "", 0},
	} {
		h, err := fromMounts(tc.mounts)
		if (err != nil) != (tc.mode == 0) {
			t.Errorf("%s: got %v", name, err)
		}
		if err != nil {
			continue
		}
		if h.Mode() != tc.mode || fmt.Sprint(h.Controllers()) != tc.have || len(h.legacy) != tc.legacy {
			t.Errorf("%s: got %v %v %d, want %v %s %d", name, h.Mode(), h.Controllers(), len(h.legacy), tc.mode, tc.have, tc.legacy)
		}
	}
}

// TestStatsV2 reads files with the text of a real v2 host.
func TestStatsV2(t *testing.T) {
	h := fakeV2(t)
	dir := h.unified.mount + "/g"
	for name, text := range map[string]string{
		"cpu.stat":       "usage_usec 300\nuser_usec 100\nsystem_usec 200\n",
		"memory.current": "1000\n", "memory.max": "4000\n", "memory.swap.current": "10\n", "memory.swap.max": "30\n",
		"memory.stat":   "anon 500\nfile 400\ninactive_file 300\npgfault 7\npgmajfault 2\n",
		"memory.events": "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 0\n",
		"pids.current":  "3\n",
		"cpu.pressure":  "some avg10=1.50 avg60=0.25 avg300=0.00 total=99\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
		"cgroup.procs":  "",
	} {
		if err := writeNew(dir+"/"+name, text); err != nil {
			t.Fatal(err)
		}
	}
	g, err := h.Open("/g")
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for range 2 { // the second time from open descriptors
		s, err := g.Stats()
		if err != nil {
			t.Fatal(err)
		}
		s.Time = s.Time.Truncate(1 << 62)
		psi := &Pressure{Some: PressureLine{1.5, 0.25, 0, 99}, Full: PressureLine{Total: 7}}
		want := Stats{Time: s.Time,
			CPU:    CPUStats{Usage: 300000},
			Memory: MemoryStats{Usage: 1000, WorkingSet: 700, RSS: 500, Limit: 4000, Available: 3300, PageFaults: 7, MajorFault: 2},
			Swap:   SwapStats{Usage: 10, Limit: 30, Available: 20, Known: true}}
		if s.CPU.PSI == nil || *s.CPU.PSI != *psi {
			t.Errorf("cpu pressure: got %+v, want %+v", s.CPU.PSI, psi)
		}
		s.CPU.PSI = nil
		if s != want {
			t.Errorf("Stats:\n got %+v\nwant %+v", s, want)
		}
		if n, err := g.Tasks(); n != 3 || err != nil {
			t.Errorf("Tasks: got %d, %v, want 3", n, err)
		}
	}
	if n, err := g.OOMKills(); n != 1 || err != nil {
		t.Errorf("OOMKills: got %d, %v, want 1", n, err)
	}
}

// TestCounters holds the ways in which the kernel writes numbers, and that garbage is an
// error and not a zero.
func TestCounters(t *testing.T) {
	for text, want := range map[string]uint64{"0\n": 0, "12": 12, "max\n": unlimited, "9223372036854771712\n": 9223372036854771712} {
		if got, ok := parseCounter([]byte(text)); got != want || !ok {
			t.Errorf("%q: got %d, %v, want %d", text, got, ok, want)
		}
	}
	for _, text := range []string{"", "\n", "1 2", "-1", "x"} {
		if got, ok := parseCounter([]byte(text)); ok {
			t.Errorf("%q: got %d, want a refusal", text, got)
		}
	}
	h := fakeV2(t)
	dir := h.unified.mount + "/g"
	if err := errors.Join(writeNew(dir+"/memory.current", "many\n"), writeNew(dir+"/cgroup.procs", "")); err != nil {
		t.Fatal(err)
	}
	g, err := h.Open("/g")
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if _, err := g.Stats(); err == nil || !strings.Contains(err.Error(), "memory.current") {
		t.Errorf("garbage: got %v, want an error that names the file", err)
	}
}

// TestApplyV2 writes into plain files: what is written, and what a refusal restores.
func TestApplyV2(t *testing.T) {
	h := fakeV2(t)
	dir := h.unified.mount + "/g"
	for name, text := range map[string]string{"cpu.weight": "100", "cpu.max": "5000 100000", "memory.max": "max", "memory.current": "50", "pids.max": "max"} {
		if err := writeNew(dir+"/"+name, text); err != nil {
			t.Fatal(err)
		}
	}
	g, err := h.Open("/g")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Update(Resources{CPUPeriod: 20000, MemoryLimit: 100, MemorySwapLimit: 100, PidsLimit: 7}); err != nil {
		t.Fatal(err)
	}
	check := func(want map[string]string) {
		t.Helper()
		for name, w := range want {
			// A plain file keeps the tail of a longer value, so look at the beginning.
			if got, err := readString(dir + "/" + name); err != nil || !strings.HasPrefix(got, w) {
				t.Errorf("%s: got %q, %v, want %q", name, got, err, w)
			}
		}
	}
	check(map[string]string{"cpu.max": "5000 20000", "memory.max": "100", "pids.max": "7"})
	// Below what is in use: refused, and the weight that came first is put back.
	err = g.Update(Resources{CPUShares: 2048, MemoryLimit: 40})
	if !errors.Is(err, errdef.ErrPhase) {
		t.Errorf("limit below use: got %v, want %v", err, errdef.ErrPhase)
	}
	check(map[string]string{"cpu.weight": "100", "memory.max": "100"})
	err = g.Update(Resources{Hugepages: []Hugepage{{"2MB", 5}}})
	if !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), "hugetlb") {
		t.Errorf("missing controller: got %v", err)
	}
	if err := g.Update(Resources{Hugepages: []Hugepage{{"2MB", 0}}}); err != nil {
		t.Errorf("a zero limit of a missing controller: %v", err)
	}
}

func TestDevicesV1(t *testing.T) {
	var got []string
	for _, s := range devicesV1([]DeviceRule{
		{true, 'c', 1, 3, "rwm"}, {true, 'b', -1, -1, "m"}, {false, 'a', -1, -1, "w"}, {true, 'a', -1, -1, "rwm"},
	}) {
		got = append(got, s.file[len("devices."):]+" "+s.value)
	}
	want := []string{"deny a", "allow c 1:3 rwm", "allow b *:* m", "deny b *:* w", "deny c *:* w", "allow a"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
