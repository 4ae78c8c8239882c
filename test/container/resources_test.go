package container

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/test/container/node"
	"github.com/cri-runtime/cri-runtime/test/lab"
)

// limits are the files of a container's cgroup that this file looks at.
type limits struct{ quota, shares, memory, cpus string }

func readLimits(t *testing.T, p *node.Pod, ctr string) limits {
	t.Helper()
	if node.UnifiedCgroups() {
		return limits{
			p.CgroupFile(t, "", ctr, "cpu.max"), p.CgroupFile(t, "", ctr, "cpu.weight"),
			p.CgroupFile(t, "", ctr, "memory.max"), p.CgroupFile(t, "", ctr, "cpuset.cpus"),
		}
	}
	return limits{
		p.CgroupFile(t, "cpu", ctr, "cpu.cfs_quota_us") + " " + p.CgroupFile(t, "cpu", ctr, "cpu.cfs_period_us"), p.CgroupFile(t, "cpu", ctr, "cpu.shares"),
		p.CgroupFile(t, "memory", ctr, "memory.limit_in_bytes"), p.CgroupFile(t, "cpuset", ctr, "cpuset.cpus"),
	}
}

// weight is what the kernel shows for shares, which v2 does not know.
func weight(v1, v2 string) string {
	if node.UnifiedCgroups() {
		return v2
	}
	return v1
}

func TestResources(t *testing.T) {
	n := node.Start(t)
	p := n.RunPod(t, n.PodConfig("a"))
	c := p.ContainerConfig("c", node.Sleeper()...)
	c.Linux.Resources = &rt.LinuxContainerResources{
		CpuQuota: 30000, CpuPeriod: 50000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, CpusetCpus: "0", OomScoreAdj: 789,
	}
	ctr := p.Start(t, c)
	want := func(t *testing.T, want limits) {
		t.Helper()
		if got := readLimits(t, p, ctr); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	first := limits{"30000 50000", weight("512", "20"), "67108864", "0"}
	want(t, first)
	if got := p.Exec(t, ctr, "cat", "/proc/1/oom_score_adj"); got != "789" {
		t.Errorf("oom_score_adj: got %s, want 789", got)
	}
	update := func(ctx context.Context, r *rt.LinuxContainerResources) error {
		_, err := p.Runtime.UpdateContainerResources(ctx, &rt.UpdateContainerResourcesRequest{ContainerId: ctr, Linux: r})
		return err
	}
	if err := update(t.Context(), &rt.LinuxContainerResources{CpuQuota: 40000, CpuPeriod: 80000, MemoryLimitInBytes: 32 << 20}); err != nil {
		t.Fatal(err)
	}
	second := limits{"40000 80000", first.shares, "33554432", "0"}
	want(t, second)
	if r := p.Status(t, ctr).Resources.GetLinux(); r.GetCpuQuota() != 40000 || r.GetCpuShares() != 512 || r.GetMemoryLimitInBytes() != 32<<20 {
		t.Errorf("status: got %v", r)
	}
	if err := update(t.Context(), &rt.LinuxContainerResources{CpuQuota: 10000, CpusetCpus: "4711"}); err == nil {
		t.Error("a processor that is not there was taken")
	}
	want(t, second) // all or nothing
	t.Run("of a container that has ended", func(t *testing.T) {
		s, _ := p.RunToEnd(t, p.ContainerConfig("ended", "true"))
		_, err := p.Runtime.UpdateContainerResources(t.Context(), &rt.UpdateContainerResourcesRequest{ContainerId: s.Id, Linux: &rt.LinuxContainerResources{CpuQuota: 1000}})
		node.WantError(t, err, codes.FailedPrecondition, s.Id)
	})
	t.Run("a restart keeps them", func(t *testing.T) {
		n.Kill()
		n.Start(t)
		want(t, second)
	})
}

func TestOOM(t *testing.T) {
	n := node.Start(t)
	p := n.RunPod(t, n.PodConfig("a"))
	const eat = "tail -c 200000000 /dev/zero"
	for name, tc := range map[string]struct {
		script, reason string
		code           int32
	}{
		"the first process":               {"exec " + eat, "OOMKilled", 137},
		"a child":                         {eat + " | cat >/dev/null; sleep 0.1; exit 4", "Error", 4},
		"killed, but not for its memory":  {"kill -KILL $$; sleep 10", "Error", 137},
		"well, after a child was too big": {eat + " | cat >/dev/null; exit 0", "Completed", 0},
	} {
		t.Run(name, func(t *testing.T) {
			c := p.ContainerConfig(strings.NewReplacer(" ", "-", ",", "").Replace(name), "sh", "-c", tc.script)
			c.Linux.Resources.MemoryLimitInBytes = 16 << 20
			// As process 1 it could not kill itself.
			c.Linux.SecurityContext.NamespaceOptions.Pid = rt.NamespaceMode_POD
			if s, _ := p.RunToEnd(t, c); s.Reason != tc.reason || s.ExitCode != tc.code {
				t.Errorf("got %s %d, want %s %d", s.Reason, s.ExitCode, tc.reason, tc.code)
			}
		})
	}
}

// TestCgroupParent holds that a pod goes where the kubelet says, and that what the
// kubelet has made stays.
func TestCgroupParent(t *testing.T) {
	n := node.Start(t)
	h, err := cgroup.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	parent := cgroup.Path("/" + lab.Here(t).Cgroup).Join("kubepods").Join("pod1")
	g, err := h.Create(parent, cgroup.Resources{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Remove(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("the given cgroup could not be removed: %v", err)
		}
		g.Close()
		up, err := h.Open(cgroup.Path("/" + lab.Here(t).Cgroup).Join("kubepods"))
		if err != nil {
			t.Fatal(err)
		}
		defer up.Close()
		if err := up.Remove(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}()
	config := n.PodConfig("a")
	config.Linux.CgroupParent = string(parent)
	p := n.RunPod(t, config)
	c := p.ContainerConfig("c", node.Sleeper()...)
	// The kubelet's names of cgroups are the host's: without a namespace they can be read.
	c.Linux.SecurityContext.Privileged = true
	ctr := p.Start(t, c)
	for line := range strings.Lines(p.Exec(t, ctr, "cat", "/proc/1/cgroup")) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if f[1] == "" && !node.UnifiedCgroups() || strings.HasPrefix(f[1], "name=") {
			continue // a hierarchy without controllers
		}
		want := string(parent) + "/" + ctr
		if f[1] == "freezer" && g.DirPath() != "" && strings.HasPrefix(want, f[2]) {
			continue // v2 freezes and kills: the container shares the freezer of what is above it
		}
		if f[2] != want {
			t.Errorf("%s: in %s, want %s", f[1], f[2], want)
		}
	}
	p.Remove(t)
	if _, err := h.Open(parent); err != nil {
		t.Errorf("the given cgroup: %v, want it still there", err)
	}
	for _, bad := range []string{"/../outside", "relative/../..", "/a/./b"} {
		config := n.PodConfig("bad")
		config.Linux.CgroupParent = bad
		_, err := n.Runtime.RunPodSandbox(t.Context(), &rt.RunPodSandboxRequest{Config: config})
		node.WantError(t, err, codes.InvalidArgument, "cgroup_parent")
	}
}

// TestOpenFiles holds that a container has the hard limit that the daemon was started
// with, and the soft one that programs with select can live with: neither the daemon's
// nor what Go's runtime makes of it in its own process.
func TestOpenFiles(t *testing.T) {
	n := node.New(t)
	n.Command = append([]string{"/bin/sh", "-c", `ulimit -Sn 1234; ulimit -Hn 5678; exec "$@"`, "sh", filepath.Join(lab.Here(t).Bin, "cri-runtime"), "serve"}, n.Args...)
	n.Begin(t)
	p := n.RunPod(t, n.PodConfig("a"))
	ctr := p.Start(t, p.ContainerConfig("c", "sh", "-c", "/opt/probe nofile; while :; do sleep 1; done"))
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", p.Pid(t, ctr)))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(body)) {
		if strings.HasPrefix(line, "Max open files") && node.Words(line) != "Max open files 1024 5678 files" {
			t.Errorf("container: got %q, want 1024 and 5678", line)
		}
	}
	if got := p.Exec(t, ctr, "sh", "-c", "ulimit -Sn; ulimit -Hn"); node.Words(got) != "1024 5678" {
		t.Errorf("exec: got %q, want 1024 and 5678", got)
	}
}

// TestStartErrors holds the exit codes and messages that the kubelet shows.
func TestStartErrors(t *testing.T) {
	n := node.Start(t)
	p := n.RunPod(t, n.PodConfig("a"))
	volume := n.HostDir(t, "volume")
	for name, tc := range map[string]struct {
		change func(*rt.ContainerConfig)
		code   int32
		words  []string
	}{
		"not in PATH":            {command("nosuch"), 127, []string{"nosuch", "executable file not found in $PATH"}},
		"not there":              {command("/no/such"), 127, []string{"/no/such", "no such file or directory"}},
		"no interpreter":         {command("/opt/orphan"), 127, []string{"/opt/orphan", "no such file or directory"}},
		"no right to execute":    {command("/opt/plain"), 126, []string{"/opt/plain", "permission denied"}},
		"a directory":            {command("/opt"), 126, []string{"/opt", "permission denied"}},
		"neither ELF nor script": {command("/opt/garbage"), 126, []string{"/opt/garbage", "exec format error"}},
		"PATH without it": {func(c *rt.ContainerConfig) {
			c.Command, c.Envs = []string{"sh"}, []*rt.KeyValue{{Key: "PATH", Value: []byte("/opt:/tmp")}}
		}, 127, []string{"sh", "executable file not found in $PATH"}},
		"a file in the way": {func(c *rt.ContainerConfig) {
			c.Mounts = []*rt.Mount{{ContainerPath: "/etc/passwd/x", HostPath: volume}}
		}, 128, []string{"/etc/passwd/x"}},
		"a working directory that is none": {func(c *rt.ContainerConfig) { c.WorkingDir = "/etc/passwd" }, 128, []string{"/etc/passwd", "not a directory"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := p.ContainerConfig(strings.ReplaceAll(name, " ", "-"), "true")
			tc.change(c)
			ctr := p.Create(t, c)
			err := p.TryStart(t.Context(), ctr)
			if err == nil {
				t.Fatal("it started")
			}
			s := p.Status(t, ctr)
			if s.State != rt.ContainerState_CONTAINER_EXITED || s.Reason != "StartError" || s.ExitCode != tc.code || s.StartedAt == 0 || s.FinishedAt == 0 {
				t.Errorf("got %v, %s, exit code %s, want StartError %d", s.State, s.Reason, strconv.Itoa(int(s.ExitCode)), tc.code)
			}
			for _, w := range tc.words {
				if !strings.Contains(s.Message, w) || !strings.Contains(err.Error(), w) {
					t.Errorf("status %q, answer %v, want %q in both", s.Message, err, w)
				}
			}
			node.WantError(t, p.TryStart(t.Context(), ctr), codes.FailedPrecondition, ctr)
		})
	}
}

func command(words ...string) func(*rt.ContainerConfig) {
	return func(c *rt.ContainerConfig) { c.Command = words }
}
