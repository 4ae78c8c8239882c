package cgroup_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/internal/linux/poll"
	"github.com/cri-runtime/cri-runtime/internal/testkit"

	"golang.org/x/sys/unix"
)

func open(t testing.TB) *cgroup.Host {
	t.Helper()
	testkit.Need(t, testkit.Root)
	h, err := cgroup.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func create(t testing.TB, h *cgroup.Host, p cgroup.Path, r cgroup.Resources) *cgroup.Group {
	t.Helper()
	g, err := h.Create(p, r)
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(g.Kill(ctx), g.Remove(ctx)); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return g
}

// start runs a shell script inside g, joined in the way of a launch.
func start(t testing.TB, g *cgroup.Group, script string) *exec.Cmd {
	t.Helper()
	files, err := g.JoinFiles()
	if err != nil {
		t.Fatal(err)
	}
	var join strings.Builder // by builtins, so that the shell itself joins
	for i := range files {
		fmt.Fprintf(&join, "echo 0 >/proc/self/fd/%d; ", i+3)
	}
	cmd := exec.Command("sh", "-c", join.String()+script)
	dir, err := g.Dir()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = files
	if dir != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		defer dir.Close()
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		f.Close()
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// until waits for a state that the test's processes bring about.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long: %s", what)
		}
	}
}

func pids(t testing.TB, g *cgroup.Group) []int {
	t.Helper()
	p, err := g.Pids()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// each runs fn on the host as it is and, on a hybrid host, on each half alone.
func each(t *testing.T, fn func(t *testing.T, h *cgroup.Host)) {
	h := open(t)
	t.Run("whole", func(t *testing.T) { fn(t, h) })
	if d := h.Mode(); d != cgroup.Legacy {
		return
	}
	t.Run("v1", func(t *testing.T) { fn(t, h.Only(false)) })
	t.Run("v2", func(t *testing.T) {
		testkit.Need(t, testkit.UnifiedTree)
		fn(t, h.Only(true))
	})
}

func TestLifeOfGroup(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	each(t, func(t *testing.T, h *cgroup.Host) {
		p := testkit.CgroupParent(t).Join("pod", "container")
		g := create(t, h, p, cgroup.Resources{})
		defer create(t, h, p.Parent(), cgroup.Resources{}).Close() // adopted; removed after g
		// Children with sessions of their own, and forks while we kill.
		start(t, g, "setsid sleep 1000 & (while :; do sleep 0.01; done) & wait")
		until(t, "three processes", func() bool { return len(pids(t, g)) >= 3 })
		if s, err := g.Stats(); err != nil || s.CPU.Usage == 0 {
			t.Errorf("Stats: got %+v, %v", s, err)
		}
		if n, err := g.Tasks(); err != nil || n < 3 && slices.Contains(h.Controllers(), "pids") {
			t.Errorf("Tasks: got %d, %v, want 3 at least", n, err)
		}
		other, err := h.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Freeze(t.Context()); err != nil {
			t.Errorf("Freeze: %v", err)
		}
		if err := g.Kill(t.Context()); err != nil { // frozen ones die too
			t.Fatalf("Kill: %v", err)
		}
		if left := pids(t, g); len(left) != 0 {
			t.Errorf("after Kill: %v left", left)
		}
		if err := g.Remove(t.Context()); err != nil {
			t.Errorf("Remove: %v", err)
		}
		if err := g.Remove(t.Context()); err != nil {
			t.Errorf("Remove again: %v", err)
		}
		if err := g.Kill(t.Context()); err != nil {
			t.Errorf("Kill of what is gone: %v", err)
		}
		if _, err := h.Open(p); !errors.Is(err, errdef.ErrNotFound) {
			t.Errorf("Open of what is gone: got %v", err)
		}
		if _, err := g.Stats(); !errors.Is(err, errdef.ErrNotFound) {
			t.Errorf("Stats of what is gone: got %v", err)
		}
	})
}

func TestExecGroup(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	each(t, func(t *testing.T, h *cgroup.Host) {
		g := create(t, h, testkit.CgroupParent(t).Join("c"), cgroup.Resources{})
		main := start(t, g, "exec sleep 1000")
		x, err := g.Exec("exec-1")
		if err != nil {
			t.Fatal(err)
		}
		start(t, x, "setsid sleep 1000 & sleep 1000 & wait")
		until(t, "three in the session, four in all", func() bool { return len(pids(t, x)) == 3 && len(pids(t, g)) == 4 })
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pids(t, x)[0]))
		if err != nil || !strings.Contains(string(b), "/c/exec-1") {
			t.Errorf("cgroup of the session: got %s, %v", b, err)
		}
		if x.RemoveEmpty() {
			t.Error("RemoveEmpty: three processes were in it")
		}
		if err := x.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := x.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := pids(t, g); len(got) != 1 || got[0] != main.Process.Pid {
			t.Errorf("left in the container: %v, want %d alone", got, main.Process.Pid)
		}
		if _, err := g.Exec("../x"); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("Exec(../x): got %v, want invalid", err)
		}
		// A forgotten session does not hold up the container's removal.
		if _, err := g.Exec("exec-2"); err != nil {
			t.Fatal(err)
		}
		if y, err := g.Exec("exec-3"); err != nil || !y.RemoveEmpty() || len(pids(t, g)) != 1 {
			t.Errorf("remove an empty session, %v: it is there, or its container is not", err)
		}
	})
}

// TestDestroy ends what is in a cgroup however it came there.
func TestDestroy(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	each(t, func(t *testing.T, h *cgroup.Host) {
		p := testkit.CgroupParent(t).Join("pod", "c")
		create(t, h, p.Parent(), cgroup.Resources{})
		gone := func(what string) {
			t.Helper()
			if err := h.Destroy(t.Context(), p); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if _, err := h.Open(p); !errors.Is(err, errdef.ErrNotFound) {
				t.Errorf("%s: got %v, want that it is gone", what, err)
			}
		}
		gone("not there")
		create(t, h, p, cgroup.Resources{})
		gone("empty")
		g := create(t, h, p, cgroup.Resources{})
		start(t, g, "setsid sleep 1000 & sleep 1000 & wait")
		x, err := g.Exec("exec-1")
		if err != nil {
			t.Fatal(err)
		}
		start(t, x, "sleep 1000")
		until(t, "five processes", func() bool { return len(pids(t, g)) == 5 })
		gone("with processes, and a session's")
		if h.Mode() == cgroup.Unified {
			return
		}
		// Somebody moved it out of the v2 tree.
		g = create(t, h, p, cgroup.Resources{})
		cmd := start(t, g, "exec sleep 1000")
		until(t, "a process that has joined all", func() bool {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid))
			return err == nil && string(b) == "sleep\n"
		})
		if dir := g.DirPath(); dir != "" {
			if err := os.WriteFile(dir[:strings.Index(dir, string(p))]+"/cgroup.procs", []byte(fmt.Sprint(cmd.Process.Pid)), 0); err != nil {
				t.Fatal(err)
			}
		}
		gone("with a process in v1 hierarchies alone")
		if err := cmd.Wait(); err == nil {
			t.Error("the process was not killed")
		}
	})
}

// TestSharedHierarchy leaves out the freezer where there is v2, but goes on with one that
// another runtime program made.
func TestSharedHierarchy(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	h := open(t)
	g := create(t, h, testkit.CgroupParent(t).Join("c"), cgroup.Resources{})
	freezer := slices.IndexFunc(h.Legacy(), func(x cgroup.Hierarchy) bool { return slices.Equal(x.Controllers, []string{"freezer"}) })
	if freezer < 0 || g.DirPath() == "" {
		return // no freezer beside v2, so nothing is shared
	}
	if !g.Shares("freezer") || g.Shares("pids") || len(g.TasksPaths()) != len(h.Legacy()) {
		t.Errorf("got own directories %v, want all but the freezer's", g.TasksPaths())
	}
	x, err := g.Exec("exec-1")
	if err != nil || !x.Shares("freezer") || x.TasksPaths()[freezer] != g.TasksPaths()[freezer] {
		t.Fatalf("session: got %v, %v, want the container's freezer", x.TasksPaths(), err)
	}
	if !x.RemoveEmpty() {
		t.Error("an empty session was not removed")
	}
	dir := strings.TrimSuffix(g.TasksPaths()[freezer], "/tasks")
	if !strings.HasSuffix(dir, string(g.Path().Parent())) {
		t.Errorf("shared: got %s, want the directory of %s", dir, g.Path().Parent())
	}
	dir += "/" + g.Path().Base()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	again, err := h.Open(g.Path())
	if err != nil || again.Shares("freezer") {
		t.Fatalf("with a directory of its own: got %v, %v", again.TasksPaths(), err)
	}
	x, err = again.Exec("exec-2")
	if err != nil || x.Shares("freezer") {
		t.Fatalf("its session: got %v, %v, want one of its own", x.TasksPaths(), err)
	}
	if err := h.Destroy(t.Context(), g.Path()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the freezer's directory: got %v, want that it is gone", err)
	}
}

func TestRemoveWaits(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	each(t, func(t *testing.T, h *cgroup.Host) {
		g := create(t, h, testkit.CgroupParent(t).Join("c"), cgroup.Resources{})
		start(t, g, "exec sleep 0.2")
		until(t, "a process", func() bool { return len(pids(t, g)) == 1 })
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		err := g.Remove(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1 left") {
			t.Errorf("Remove with a process and no time: got %v", err)
		}
		if err := g.Remove(t.Context()); err != nil {
			t.Errorf("Remove while the process ends: %v", err)
		}
	})
}

func TestLimits(t *testing.T) {
	testkit.Leaks(t)
	h := open(t)
	r := cgroup.Resources{
		CPUShares: 512, CPUQuota: 50000, CPUPeriod: 100000, MemoryLimit: 64 << 20, MemorySwapLimit: 64 << 20, PidsLimit: 20,
	}
	if slices.Contains(h.Controllers(), "cpuset") {
		r.CpusetCPUs = "0"
	}
	g := create(t, h, testkit.CgroupParent(t).Join("c"), r)
	s, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if s.Memory.Limit != 64<<20 || s.Memory.Available == 0 {
		t.Errorf("limits: got %+v", s)
	}
	if got := g.File("pids", "pids.max"); got != "20" {
		t.Errorf("limit of tasks: got %s, want 20", got)
	}
	// Growing and shrinking, both orders of memory and swap.
	for _, mb := range []int64{128, 32, 256} {
		r := cgroup.Resources{MemoryLimit: mb << 20, MemorySwapLimit: mb << 20, CPUPeriod: 20000, CPUQuota: mb * 100}
		if err := g.Update(r); err != nil {
			t.Errorf("Update to %d MiB: %v", mb, err)
		}
	}
	// 40 MB that cannot be reclaimed.
	start(t, g, "(head -c 48000000 /dev/zero; exec sleep 1000) | exec tail -c 48000000")
	until(t, "40 MB in use", func() bool { s, _ := g.Stats(); return s.Memory.RSS > 40<<20 })
	before, _ := g.Stats()
	err = g.Update(cgroup.Resources{PidsLimit: 30, CPUShares: 100, MemoryLimit: 16 << 20, MemorySwapLimit: 16 << 20})
	if !errors.Is(err, errdef.ErrPhase) {
		t.Errorf("limit below use: got %v, want %v", err, errdef.ErrPhase)
	}
	after, err := g.Stats()
	if got := g.File("pids", "pids.max"); err != nil || after.Memory.Limit != before.Memory.Limit || got != "20" {
		t.Errorf("after a refused update: got %+v and %s tasks, want %+v and 20 (%v)", after.Memory, got, before.Memory, err)
	}
	if n, err := g.OOMKills(); n != 0 || err != nil {
		t.Errorf("oom kills: got %d, %v, want none", n, err)
	}
	for name, r := range map[string]cgroup.Resources{
		"cpuset": {CpusetCPUs: "4000"}, "unified escape": {Unified: map[string]string{"cgroup.kill": "1"}},
	} {
		if err := g.Update(r); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%s: got %v, want invalid", name, err)
		}
	}
	p := g.Path().Parent().Join("refused")
	if _, err := h.Create(p, cgroup.Resources{CpusetCPUs: "4000"}); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("Create with an impossible cpuset: got %v, want invalid", err)
	}
	if _, err := h.Open(p); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("after a refused Create: got %v, want nothing left", err)
	}
}

func TestOOM(t *testing.T) {
	testkit.Leaks(t)
	h := open(t)
	g := create(t, h, testkit.CgroupParent(t).Join("c"), cgroup.Resources{MemoryLimit: 16 << 20, MemorySwapLimit: 16 << 20})
	events, err := g.OOMEvents()
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	cmd := start(t, g, "exec tail /dev/zero")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := poll.Wait(ctx, []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLIN}}); err != nil {
		t.Errorf("oom event: %v", err)
	}
	_ = cmd.Wait()
	if n, err := g.OOMKills(); n != 1 || err != nil {
		t.Errorf("oom kills: got %d, %v, want 1", n, err)
	}
}

func TestDevices(t *testing.T) {
	testkit.Need(t, testkit.Root, testkit.UnifiedTree)
	testkit.Leaks(t)
	null := cgroup.DeviceRule{Allow: true, Type: 'c', Major: 1, Minor: 3, Access: "rw"}
	none := cgroup.DeviceRule{Type: 'a', Major: -1, Minor: -1, Access: "rwm"}
	all := none
	all.Allow = true
	noWrite := cgroup.DeviceRule{Type: 'c', Major: 1, Minor: -1, Access: "w"}
	h := open(t)
	for name, tc := range map[string]struct {
		rules     []cgroup.DeviceRule
		rd, wr, z bool // read and write /dev/null, read /dev/zero
	}{
		"no rule":         {nil, false, false, false},
		"everything":      {[]cgroup.DeviceRule{none, all}, true, true, true},
		"null only":       {[]cgroup.DeviceRule{none, null}, true, true, false},
		"later wins":      {[]cgroup.DeviceRule{all, none, null}, true, true, false},
		"write denied":    {[]cgroup.DeviceRule{all, noWrite}, true, false, true},
		"split in halves": {[]cgroup.DeviceRule{{Allow: true, Type: 'c', Major: 1, Minor: 3, Access: "r"}, {Allow: true, Type: 'c', Major: 1, Minor: 3, Access: "w"}}, true, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			// By the v2 program whatever the host, then by the host's own way.
			dir := testkit.UnifiedDir(t)
			v2 := h.Only(true)
			g, err := v2.Open(cgroup.Path(dir[strings.LastIndexByte(dir, '/'):]))
			if err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second time it replaces the first
				if err := cgroup.AttachDevices(dir, tc.rules); err != nil {
					t.Fatal(err)
				}
			}
			if n, err := cgroup.Attached(dir); n != 1 || err != nil {
				t.Errorf("programs attached: got %d, %v, want 1", n, err)
			}
			own := create(t, h, testkit.CgroupParent(t).Join("c"), cgroup.Resources{Devices: tc.rules, DevicesSet: true})
			for way, g := range map[string]*cgroup.Group{"bpf": g, "host": own} {
				for access, want := range map[string]bool{"< /dev/null": tc.rd, "> /dev/null": tc.wr, "< /dev/zero": tc.z} {
					cmd := start(t, g, "true "+access)
					if got := cmd.Wait() == nil; got != want {
						t.Errorf("%s %s: got %v, want %v", way, access, got, want)
					}
				}
			}
		})
	}
}

// TestStatsIsCheap holds what a reading costs, since a node makes hundreds each second.
func TestStatsIsCheap(t *testing.T) {
	testkit.Leaks(t)
	h := open(t)
	g := create(t, h, testkit.CgroupParent(t).Join("c"), cgroup.Resources{})
	read := func() {
		if _, err := g.Stats(); err != nil {
			t.Fatal(err)
		}
	}
	most := map[cgroup.Mode]int{cgroup.Legacy: 5, cgroup.Unified: 9}[h.Mode()]
	if read(); g.Kept() > most {
		t.Errorf("descriptors: got %d, want %d at most", g.Kept(), most)
	}
	// One for each kind of pressure, which v1 does not have.
	if n := testing.AllocsPerRun(100, read); n > 4 {
		t.Errorf("allocations: got %v, want 4 at most", n)
	}
}

func BenchmarkStats(b *testing.B) {
	g := create(b, open(b), testkit.CgroupParent(b).Join("c"), cgroup.Resources{})
	for b.Loop() {
		if _, err := g.Stats(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCreateRemove(b *testing.B) {
	h := open(b)
	p := testkit.CgroupParent(b).Join("c")
	for b.Loop() {
		g, err := h.Create(p, cgroup.Resources{CPUShares: 100, MemoryLimit: 1 << 30})
		if err == nil {
			err = g.Remove(b.Context())
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkExecSession makes and removes what an exec session has: one directory beside a
// v2 tree.
func BenchmarkExecSession(b *testing.B) {
	g := create(b, open(b), testkit.CgroupParent(b).Join("c"), cgroup.Resources{})
	for b.Loop() {
		x, err := g.Exec("exec-1")
		if err != nil || !x.RemoveEmpty() {
			b.Fatal(err)
		}
	}
}
