package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/test/lab"
)

// patience is how long anything may take that comes by itself.
const patience = 20 * time.Second

// TryCreate is CreateContainer.
func (p *Pod) TryCreate(ctx context.Context, c *rt.ContainerConfig) (string, error) {
	reply, err := p.Runtime.CreateContainer(ctx, &rt.CreateContainerRequest{PodSandboxId: p.ID, Config: c, SandboxConfig: p.Config})
	return reply.GetContainerId(), err
}

// TryStart is StartContainer.
func (n *Node) TryStart(ctx context.Context, id string) error {
	_, err := n.Runtime.StartContainer(ctx, &rt.StartContainerRequest{ContainerId: id})
	return err
}

// Create creates a container.
func (p *Pod) Create(t *testing.T, c *rt.ContainerConfig) string {
	t.Helper()
	id, err := p.TryCreate(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// Start creates and starts a container.
func (p *Pod) Start(t *testing.T, c *rt.ContainerConfig) string {
	t.Helper()
	id := p.Create(t, c)
	if err := p.TryStart(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	return id
}

// RunToEnd runs a container to its end and returns its status and what it printed.
func (p *Pod) RunToEnd(t *testing.T, c *rt.ContainerConfig) (*rt.ContainerStatus, string) {
	t.Helper()
	s := p.Ended(t, p.Start(t, c))
	return s, LogText(t, s.LogPath)
}

// Shell runs a script in a container of its own, which must end well, and returns
// what it printed.
func (p *Pod) Shell(t *testing.T, script string, change func(*rt.ContainerConfig)) string {
	t.Helper()
	c := p.ContainerConfig(strings.NewReplacer("/", "-", ",", "").Replace(t.Name())+strconv.FormatInt(time.Now().UnixNano(), 36), "sh", "-c", script)
	if change != nil {
		change(c)
	}
	s, out := p.RunToEnd(t, c)
	if s.ExitCode != 0 {
		t.Errorf("the script ended with %d: %s", s.ExitCode, out)
	}
	return strings.TrimSpace(out)
}

// Status is ContainerStatus.
func (n *Node) Status(t *testing.T, id string) *rt.ContainerStatus {
	t.Helper()
	reply, err := n.Runtime.ContainerStatus(t.Context(), &rt.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	return reply.Status
}

// Ended waits for a container's end.
func (n *Node) Ended(t *testing.T, id string) *rt.ContainerStatus {
	t.Helper()
	var s *rt.ContainerStatus
	Eventually(t, "the container ends", func() bool {
		s = n.Status(t, id)
		return s.State == rt.ContainerState_CONTAINER_EXITED
	})
	return s
}

// Exec runs a command that must end well and returns what it printed.
func (n *Node) Exec(t *testing.T, id string, cmd ...string) string {
	t.Helper()
	reply, err := n.Runtime.ExecSync(t.Context(), &rt.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: 20})
	if err != nil {
		t.Fatal(err)
	}
	if reply.ExitCode != 0 {
		t.Fatalf("exec %q: exit code %d: %s%s", cmd, reply.ExitCode, reply.Stdout, reply.Stderr)
	}
	return strings.TrimSpace(string(reply.Stdout))
}

// Pid is a container's first process, as the tests see it.
func (p *Pod) Pid(t *testing.T, id string) int {
	t.Helper()
	first, _, _ := strings.Cut(p.CgroupFile(t, "pids", id, "cgroup.procs"), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatalf("container %s: first process %q", id, first)
	}
	return pid
}

// CgroupDir is a pod's cgroup of a v1 controller, or the only one there is in v2.
func (p *Pod) CgroupDir(t *testing.T, controller string) string {
	t.Helper()
	parent := filepath.Join(lab.Here(t).Cgroup, "cri", p.ID)
	if UnifiedCgroups() {
		return filepath.Join("/sys/fs/cgroup", parent)
	}
	return filepath.Join("/sys/fs/cgroup", controller, parent)
}

// CgroupFile reads a file of a container's cgroup.
func (p *Pod) CgroupFile(t *testing.T, controller, id, name string) string {
	t.Helper()
	body, err := os.ReadFile(filepath.Join(p.CgroupDir(t, controller), id, name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(body))
}

// UnifiedCgroups tells whether the machine has cgroup v2 only.
func UnifiedCgroups() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// LogText is what a log says less the prefixes of its lines.
func LogText(t *testing.T, path string) string {
	t.Helper()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for line := range strings.Lines(string(body)) {
		fields := strings.SplitN(line, " ", 4)
		if len(fields) != 4 {
			t.Fatalf("log line %q", line)
		}
		b.WriteString(fields[3])
	}
	return b.String()
}

// WantError checks an error's code, and that its message holds all words.
func WantError(t *testing.T, err error, code codes.Code, words ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("got %v, want code %v", err, code)
		return
	}
	for _, w := range words {
		if !strings.Contains(status.Convert(err).Message(), w) {
			t.Errorf("got %v, want %q in it", err, w)
		}
	}
}

// Eventually waits for what happens behind an answer.
func Eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never happened: %s", what)
		}
	}
}

// Sleeper is a command that runs until it is asked to end.
func Sleeper() []string {
	return []string{"sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done"}
}

// HostDir makes a directory on disk that volumes are made from.
func (n *Node) HostDir(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(n.Dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// MountTmpfs mounts a tmpfs until t ends.
func MountTmpfs(t *testing.T, dir, options string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatal("mount tmpfs: ", err)
	}
	t.Cleanup(func() { unmount(t, dir) })
}

// unmount succeeds where nothing is mounted.
func unmount(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		t.Errorf("unmount %s: %v", dir, err)
	}
}

// Words joins what is printed in several lines and columns.
func Words(s string) string { return strings.Join(strings.Fields(s), " ") }

// Field is a line of /proc/PID/status.
func Field(output, name string) string {
	for line := range strings.Lines(output) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return Words(v)
		}
	}
	return fmt.Sprintf("no field %s", name)
}
