package rules

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

func TestUpdateResources(t *testing.T) {
	testkit.Need(t, testkit.CgroupV1)
	n := newNode(t)
	config := podConfig(n, "a")
	p := n.pod(t, config)
	c := containerConfig(n, "c", sleeper()...)
	c.Linux.Resources.MemoryLimitInBytes = 64 << 20
	id := p.create(t, c)
	update := func(r *rt.LinuxContainerResources) error {
		_, err := n.Runtime.UpdateContainerResources(n.ctx(), &rt.UpdateContainerResourcesRequest{ContainerId: id, Linux: r})
		return err
	}
	if err := update(&rt.LinuxContainerResources{CpuQuota: 30000, CpuPeriod: 100000}); err != nil {
		t.Fatalf("a created container: %v", err)
	}
	if _, err := n.Runtime.StartContainer(n.ctx(), &rt.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	file := func(controller, name string) string {
		t.Helper()
		found, err := filepath.Glob("/sys/fs/cgroup/" + controller + "/cri-rules.*/cri/" + p.id + "/" + id + "/" + name)
		if err != nil || len(found) != 1 {
			t.Fatalf("%s: %v, %v", name, found, err)
		}
		body, err := os.ReadFile(found[0])
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(body))
	}
	want := func(quota, memory string) {
		t.Helper()
		if q, m := file("cpu", "cpu.cfs_quota_us"), file("memory", "memory.limit_in_bytes"); q != quota || m != memory {
			t.Errorf("got quota %s, memory %s, want %s, %s", q, m, quota, memory)
		}
		r := n.status(t, id).Resources.GetLinux()
		if got := itoa(r.GetCpuQuota()) + " " + itoa(r.GetMemoryLimitInBytes()); got != quota+" "+memory {
			t.Errorf("status: got %s, want %s %s", got, quota, memory)
		}
	}
	want("30000", "67108864")
	if err := update(&rt.LinuxContainerResources{CpuQuota: 50000, MemoryLimitInBytes: 128 << 20}); err != nil {
		t.Fatal(err)
	}
	want("50000", "134217728")
	n.exec(t, id, "sh", "-c", "dd if=/dev/zero of=/dev/shm/fill bs=1M count=40 2>/dev/null")
	if err := update(&rt.LinuxContainerResources{CpuQuota: 70000, MemoryLimitInBytes: 8 << 20}); err == nil {
		t.Error("a limit below what is used was taken")
	}
	want("50000", "134217728")
	if s := n.status(t, id); s.State != rt.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %v after a refused update", s.State)
	}
	if _, err := n.Runtime.UpdatePodSandboxResources(n.ctx(), &rt.UpdatePodSandboxResourcesRequest{PodSandboxId: p.id, Resources: &rt.LinuxContainerResources{CpuShares: 100}}); err != nil {
		t.Errorf("UpdatePodSandboxResources: %v", err)
	}
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

func TestStats(t *testing.T) {
	n := newNode(t)
	p := n.pod(t, podConfig(n, "a"))
	id := p.start(t, containerConfig(n, "c", "sh", "-c", "head -c 1000000 /dev/zero > /file; while :; do :; done"))
	get := func() *rt.ContainerStats {
		t.Helper()
		reply, err := n.Runtime.ContainerStats(n.ctx(), &rt.ContainerStatsRequest{ContainerId: id})
		if err != nil {
			t.Fatal(err)
		}
		return reply.Stats
	}
	get()
	eventually(t, "a CPU rate", func() bool {
		s := get()
		return s.Cpu.GetUsageNanoCores().GetValue() > 1000000 && s.WritableLayer.GetUsedBytes().GetValue() >= 1000000
	})
	s := get()
	if s.Memory.GetWorkingSetBytes().GetValue() == 0 || s.WritableLayer.GetInodesUsed().GetValue() == 0 || !exists(s.WritableLayer.GetFsId().GetMountpoint()) {
		t.Errorf("got %v", s)
	}
	pod, err := n.Runtime.PodSandboxStats(n.ctx(), &rt.PodSandboxStatsRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	l := pod.Stats.GetLinux()
	if l.GetCpu() == nil || l.GetMemory() == nil || l.GetNetwork().GetDefaultInterface().GetName() != "eth0" || len(l.GetContainers()) != 1 || l.GetProcess().GetProcessCount().GetValue() == 0 {
		t.Errorf("pod stats: got %v", l)
	}
	fs, err := n.Images.ImageFsInfo(n.ctx(), &rt.ImageFsInfoRequest{})
	if err != nil || len(fs.ImageFilesystems) == 0 || len(fs.ContainerFilesystems) == 0 {
		t.Errorf("ImageFsInfo: got %v, %v, want both lists", fs, err)
	}
}

// count reads a stream to its end.
func count[R any](recv func() (R, error), items func(R) int) (n int, err error) {
	for {
		r, err := recv()
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		n += items(r)
	}
}

func TestStreamsListEachOnce(t *testing.T) {
	n := newNode(t)
	for _, name := range []string{"a", "b", "c"} {
		n.pod(t, podConfig(n, name)).start(t, containerConfig(n, "c", sleeper()...))
	}
	pods, err := n.Runtime.StreamPodSandboxes(n.ctx(), &rt.StreamPodSandboxesRequest{})
	check(t, "pods", err, func() (int, error) {
		return count(pods.Recv, func(r *rt.StreamPodSandboxesResponse) int { return len(r.PodSandboxes) })
	})
	containers, err := n.Runtime.StreamContainers(n.ctx(), &rt.StreamContainersRequest{})
	check(t, "containers", err, func() (int, error) {
		return count(containers.Recv, func(r *rt.StreamContainersResponse) int { return len(r.Containers) })
	})
	stats, err := n.Runtime.StreamContainerStats(n.ctx(), &rt.StreamContainerStatsRequest{})
	check(t, "container stats", err, func() (int, error) {
		return count(stats.Recv, func(r *rt.StreamContainerStatsResponse) int { return len(r.ContainerStats) })
	})
	podStats, err := n.Runtime.StreamPodSandboxStats(n.ctx(), &rt.StreamPodSandboxStatsRequest{})
	check(t, "pod stats", err, func() (int, error) {
		return count(podStats.Recv, func(r *rt.StreamPodSandboxStatsResponse) int { return len(r.PodSandboxStats) })
	})
	list, err := n.Runtime.ListPodSandbox(n.ctx(), &rt.ListPodSandboxRequest{Filter: &rt.PodSandboxFilter{LabelSelector: map[string]string{"app": "b"}}})
	if err != nil || len(list.Items) != 1 || list.Items[0].Annotations["a"] != "b" {
		t.Errorf("filter: got %v, %v", list, err)
	}
}

func check(t *testing.T, what string, err error, got func() (int, error)) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := got(); n != 3 || err != nil {
		t.Errorf("%s: got %d, %v, want 3", what, n, err)
	}
}

func TestBadInputNamesTheField(t *testing.T) {
	n := newNode(t)
	p := n.pod(t, podConfig(n, "a"))
	for word, change := range map[string]func(*rt.PodSandboxConfig){
		"metadata.name":  func(c *rt.PodSandboxConfig) { c.Metadata.Name = "" },
		"log_directory":  func(c *rt.PodSandboxConfig) { c.LogDirectory = "relative" },
		"kernel.panic":   func(c *rt.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"kernel.panic": "1"} },
		"port_mappings":  func(c *rt.PodSandboxConfig) { c.PortMappings = []*rt.PortMapping{{HostPort: 70000}} },
		"hostname":       func(c *rt.PodSandboxConfig) { c.Hostname = "a\nb" },
		"cgroup":         func(c *rt.PodSandboxConfig) { c.Linux.CgroupParent = "/../x" },
		"container id 0": func(c *rt.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = unmapped() },
	} {
		t.Run("pod "+word, func(t *testing.T) {
			c := podConfig(n, "bad")
			change(c)
			_, err := n.Runtime.RunPodSandbox(n.ctx(), &rt.RunPodSandboxRequest{Config: c})
			wantCode(t, err, codes.InvalidArgument, word)
		})
	}
	for word, change := range map[string]func(*rt.ContainerConfig){
		"log_path": func(c *rt.ContainerConfig) { c.LogPath = "../../etc/x" },
		"envs":     func(c *rt.ContainerConfig) { c.Envs = []*rt.KeyValue{{Key: "a=b"}} },
		"CAP_NOSUCH": func(c *rt.ContainerConfig) {
			c.Linux.SecurityContext.Capabilities = &rt.Capability{AddCapabilities: []string{"CAP_NOSUCH"}}
		},
		"mounts": func(c *rt.ContainerConfig) { c.Mounts = []*rt.Mount{{ContainerPath: "/x", HostPath: "relative"}} },
		"mounted twice": func(c *rt.ContainerConfig) {
			c.Mounts = []*rt.Mount{{ContainerPath: "/x", HostPath: "/tmp"}, {ContainerPath: "/x", HostPath: "/tmp"}}
		},
		"run_as_group": func(c *rt.ContainerConfig) { c.Linux.SecurityContext.RunAsGroup = &rt.Int64Value{Value: 5} },
		"seccomp": func(c *rt.ContainerConfig) {
			c.Linux.SecurityContext.Seccomp = &rt.SecurityProfile{ProfileType: rt.SecurityProfile_Localhost, LocalhostRef: "/no/such"}
		},
	} {
		t.Run("container "+word, func(t *testing.T) {
			c := containerConfig(n, "bad", "true")
			change(c)
			_, err := p.tryCreate(t.Context(), c)
			wantCode(t, err, codes.InvalidArgument, word)
		})
	}
	t.Run("image that is not there", func(t *testing.T) {
		c := containerConfig(n, "bad", "true")
		c.Image = &rt.ImageSpec{Image: "docker.io/library/nothing:1"}
		_, err := p.tryCreate(t.Context(), c)
		wantCode(t, err, codes.NotFound, "nothing")
	})
	t.Run("handler that is not there", func(t *testing.T) {
		_, err := n.Runtime.RunPodSandbox(n.ctx(), &rt.RunPodSandboxRequest{Config: podConfig(n, "h"), RuntimeHandler: "nosuch"})
		wantCode(t, err, codes.InvalidArgument, "nosuch")
	})
}

func unmapped() *rt.UserNamespace {
	ids := []*rt.IDMapping{{HostId: 100000, ContainerId: 1, Length: 10}}
	return &rt.UserNamespace{Mode: rt.NamespaceMode_POD, Uids: ids, Gids: ids}
}

func TestRestartKeepsAnExecAndItsProbes(t *testing.T) {
	n := newNode(t)
	p := n.pod(t, podConfig(n, "a"))
	id := p.start(t, containerConfig(n, "c", sleeper()...))
	begun := n.status(t, id).StartedAt
	n.Kill()
	n.Start(t)
	if s := n.status(t, id); s.State != rt.ContainerState_CONTAINER_RUNNING || s.StartedAt != begun {
		t.Errorf("got %v started %v, want running since %v", s.State, time.Unix(0, s.StartedAt), time.Unix(0, begun))
	}
	if got := n.exec(t, id, "echo", "hi"); got != "hi" {
		t.Errorf("exec: got %q", got)
	}
}
