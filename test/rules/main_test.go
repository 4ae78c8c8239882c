package rules

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/test/images/catalogue"
	"github.com/cri-runtime/cri-runtime/test/lab"
)

// image is what all containers here are made of: busybox.
const image = "docker.io/library/busybox:1.37"

func TestMain(m *testing.M) {
	os.Exit(lab.Main(m, func() lab.Needs { return lab.Needs{Name: "rules", Tools: []string{"runc"}, Images: example} }))
}

func example(ctx context.Context, cache string) (*catalogue.Store, error) {
	return catalogue.Example(ctx, cache, image)
}

// node is a running daemon with the image pulled, and a test's way to talk to it.
type node struct {
	*lab.Daemon
	t     *testing.T
	logs  string
	image string // id
}

// newNode starts a daemon and, at the end of t, stops it and looks for leaks.
func newNode(t *testing.T, args ...string) *node {
	t.Helper()
	// A directory of its own each time: with -count the logs of the run before are there.
	dir, err := os.MkdirTemp(lab.Here(t).Work, strings.ReplaceAll(t.Name(), "/", "-")+".") //nolint:usetesting // on the disk, with room for images
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil { // for the root of a user namespace
		t.Fatal(err)
	}
	cgroup := lab.Here(t).Cgroup
	before, err := lab.Take("", cgroup)
	if err != nil {
		t.Fatal(err)
	}
	d := lab.NewDaemon(t, dir, append([]string{"-v", "2", "--take-away"}, args...)...)
	before["mount tmpfs "+d.State]++
	cache, err := catalogue.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	store, err := example(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	d.Serve(t, "127.0.0.1:0", store)
	n := &node{Daemon: d, t: t, logs: filepath.Join(dir, "logs")}
	t.Cleanup(func() { n.end(before) })
	d.Start(t)
	reply, err := d.Images.PullImage(t.Context(), &rt.PullImageRequest{Image: &rt.ImageSpec{Image: image}})
	if err != nil {
		t.Fatal(err)
	}
	n.image = reply.ImageRef
	return n
}

// end sees that with its pods nothing of a daemon is left.
func (n *node) end(before lab.Snapshot) {
	n.Stop(n.t)
	var left []string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		after, err := lab.Take("", lab.Here(n.t).Cgroup)
		if err != nil {
			n.t.Fatal(err)
		}
		left = left[:0]
		for _, l := range after.Growth(before) {
			if !strings.Contains(l, filepath.Base(n.State)) { // its own tmpfs
				left = append(left, l)
			}
		}
		if len(left) == 0 {
			return
		}
	}
	n.t.Errorf("left behind: %q", left)
}

func (n *node) ctx() context.Context { return n.t.Context() }

func podConfig(n *node, name string) *rt.PodSandboxConfig {
	return &rt.PodSandboxConfig{
		Metadata: &rt.PodSandboxMetadata{Name: name, Namespace: "ns", Uid: "uid-" + name}, Hostname: name,
		LogDirectory: filepath.Join(n.logs, name), Labels: map[string]string{"app": name}, Annotations: map[string]string{"a": "b"},
		Linux: &rt.LinuxPodSandboxConfig{SecurityContext: &rt.LinuxSandboxSecurityContext{
			NamespaceOptions: &rt.NamespaceOption{Pid: rt.NamespaceMode_CONTAINER},
		}},
	}
}

func containerConfig(n *node, name string, command ...string) *rt.ContainerConfig {
	return &rt.ContainerConfig{
		Metadata: &rt.ContainerMetadata{Name: name}, Image: &rt.ImageSpec{Image: n.image, UserSpecifiedImage: image},
		Command: command, LogPath: name + ".log",
		Linux: &rt.LinuxContainerConfig{Resources: &rt.LinuxContainerResources{}, SecurityContext: &rt.LinuxContainerSecurityContext{
			NamespaceOptions: &rt.NamespaceOption{Pid: rt.NamespaceMode_CONTAINER},
		}},
	}
}

// pod is a pod with its configuration, which CreateContainer wants again.
type pod struct {
	*node
	id     string
	config *rt.PodSandboxConfig
}

func (n *node) pod(t *testing.T, config *rt.PodSandboxConfig) *pod {
	t.Helper()
	reply, err := n.Runtime.RunPodSandbox(t.Context(), &rt.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{node: n, id: reply.PodSandboxId, config: config}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if _, err := n.Runtime.StopPodSandbox(ctx, &rt.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
			t.Errorf("stop pod: %v", err)
		}
		if _, err := n.Runtime.RemovePodSandbox(ctx, &rt.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
			t.Errorf("remove pod: %v", err)
		}
	})
	return p
}

func (p *pod) tryCreate(ctx context.Context, c *rt.ContainerConfig) (string, error) {
	reply, err := p.Runtime.CreateContainer(ctx, &rt.CreateContainerRequest{PodSandboxId: p.id, Config: c, SandboxConfig: p.config})
	return reply.GetContainerId(), err
}

func (p *pod) create(t *testing.T, c *rt.ContainerConfig) string {
	t.Helper()
	id, err := p.tryCreate(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (p *pod) start(t *testing.T, c *rt.ContainerConfig) string {
	t.Helper()
	id := p.create(t, c)
	if _, err := p.Runtime.StartContainer(t.Context(), &rt.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	return id
}

func (n *node) status(t *testing.T, id string) *rt.ContainerStatus {
	t.Helper()
	reply, err := n.Runtime.ContainerStatus(t.Context(), &rt.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	return reply.Status
}

// ended waits for a container's end.
func (n *node) ended(t *testing.T, id string) *rt.ContainerStatus {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if s := n.status(t, id); s.State == rt.ContainerState_CONTAINER_EXITED {
			return s
		}
	}
	t.Fatalf("container %s has not ended", id)
	return nil
}

// run runs a container to its end and returns its status and log lines without prefix.
func (p *pod) run(t *testing.T, c *rt.ContainerConfig) (*rt.ContainerStatus, string) {
	t.Helper()
	s := p.ended(t, p.start(t, c))
	return s, logText(t, s.LogPath)
}

func logText(t *testing.T, path string) string {
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

func (n *node) exec(t *testing.T, id string, cmd ...string) string {
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

// wantCode checks an error's gRPC code and that its message holds all words.
func wantCode(t *testing.T, err error, code codes.Code, words ...string) {
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

// eventually waits for what happens behind an answer.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Errorf("never: %s", what)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, os.ErrNotExist)
}

func sleeper() []string {
	return []string{"sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done"}
}
