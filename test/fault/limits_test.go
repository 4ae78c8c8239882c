package fault

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/test/container/node"
)

// TestPidsLimit fills the pod's pids cgroup. A process that joins a cgroup of version 1
// is not refused, only one that is made in it: there a container of its own pid
// namespace starts, and cannot fork.
func TestPidsLimit(t *testing.T) {
	n := node.Start(t)
	p := n.RunPod(t, n.PodConfig("a"))
	ctr := p.Start(t, p.ContainerConfig("c", "sleep", "1000"))
	set := func(limit string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(p.CgroupDir(t, "pids"), "pids.max"), []byte(limit), 0); err != nil {
			t.Fatal(err)
		}
	}
	processes := func() int { return len(strings.Fields(p.CgroupFile(t, "pids", ctr, "cgroup.procs"))) }
	// The first container that shares the pod's pid namespace brings its init: not part of this.
	p.Shell(t, "true", func(c *rt.ContainerConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = rt.NamespaceMode_POD })
	set("1")
	t.Run("exec", func(t *testing.T) {
		_, err := n.Runtime.ExecSync(t.Context(), &rt.ExecSyncRequest{ContainerId: ctr, Cmd: []string{"true"}, Timeout: 10})
		node.WantError(t, err, codes.ResourceExhausted, ctr, "pids.max")
		if got := processes(); got != 1 {
			t.Errorf("%d processes in the container, want the first one", got)
		}
	})
	for _, mode := range []rt.NamespaceMode{rt.NamespaceMode_POD, rt.NamespaceMode_TARGET, rt.NamespaceMode_CONTAINER, rt.NamespaceMode_NODE} {
		t.Run("start "+mode.String(), func(t *testing.T) {
			c := p.ContainerConfig(mode.String(), "sh", "-c", "ls; exit 0")
			c.Linux.SecurityContext.NamespaceOptions.Pid = mode
			if mode == rt.NamespaceMode_TARGET {
				c.Linux.SecurityContext.NamespaceOptions.TargetId = ctr
			}
			id := p.Create(t, c)
			err := p.TryStart(t.Context(), id)
			if err == nil && !node.UnifiedCgroups() && (mode == rt.NamespaceMode_CONTAINER || mode == rt.NamespaceMode_NODE) {
				s := p.Ended(t, id)
				if out := node.LogText(t, s.LogPath); !strings.Contains(out, "can't fork") {
					t.Errorf("it could fork: %d, %q", s.ExitCode, out)
				}
				return
			}
			node.WantError(t, err, codes.ResourceExhausted, id, "pids.max")
			s := p.Status(t, id)
			if s.State != rt.ContainerState_CONTAINER_EXITED || s.Reason != "StartError" || s.ExitCode != 128 || !strings.Contains(s.Message, "pids.max") {
				t.Errorf("got %v %s %d %q", s.State, s.Reason, s.ExitCode, s.Message)
			}
			if _, err := os.Stat(filepath.Join(p.CgroupDir(t, "pids"), id)); err == nil {
				t.Error("its cgroup is still there")
			}
		})
	}
	set("max")
	if got := p.Exec(t, ctr, "echo", "again"); got != "again" {
		t.Errorf("afterwards: got %q", got)
	}
	p.Shell(t, "ls >/dev/null", nil)
}

// TestManyPods runs fifty pods by eight workers, who stop and remove what they run.
func TestManyPods(t *testing.T) {
	n := node.Start(t)
	const pods, workers = 50, 8
	next := make(chan int)
	t.Run("workers", func(t *testing.T) {
		for w := range workers {
			t.Run(fmt.Sprint(w), func(t *testing.T) {
				t.Parallel()
				for i := range next {
					t.Run(fmt.Sprint(i), func(t *testing.T) {
						p := n.RunPod(t, n.PodConfig(fmt.Sprint("pod", i)))
						c := p.ContainerConfig("c", "sh", "-c", fmt.Sprintf("echo %d; hostname; exit %d", i, i))
						if s, out := p.RunToEnd(t, c); s.ExitCode != int32(i) || out != fmt.Sprintf("%d\npod%d\n", i, i) {
							t.Errorf("got exit code %d, %q", s.ExitCode, out)
						}
						stays := p.Start(t, p.ContainerConfig("stays", node.Sleeper()...))
						if got := p.Exec(t, stays, "hostname"); got != fmt.Sprint("pod", i) {
							t.Errorf("exec: got %q", got)
						}
					})
				}
			})
		}
		go func() { // ends with the last pod, which the workers take
			for i := range pods {
				next <- i
			}
			close(next)
		}()
	})
	wantPods(t, n, 0)
	list, err := n.Runtime.ListContainers(t.Context(), &rt.ListContainersRequest{})
	if err != nil || len(list.Containers) != 0 {
		t.Errorf("containers left: %v, %v", list, err)
	}
}
