// Package node is what the tests of containers and of faults share: a node with a
// daemon of its own, an image made for them, and short ways to say what a test does
// through the socket.
//
// It refuses nothing and decides nothing: what is right or wrong is for the tests to
// say. Everything that it starts ends with the test, which then looks for what is left;
// on disk it has only what package lab removes.
package node

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/test/images/catalogue"
	"github.com/cri-runtime/cri-runtime/test/lab"
)

// Main is the TestMain of a package whose tests use nodes.
func Main(m *testing.M, name string) int {
	// A directory of tools that is never looked into: these tests run none.
	return lab.Main(m, func() lab.Needs { return lab.Needs{Name: name, Images: example, ToolIn: os.DevNull} })
}

// Node is a running daemon with Image pulled.
type Node struct {
	*lab.Daemon
	Logs    string // parent of the pods' log directories
	ImageID string

	Registry *Registry

	empty lab.Snapshot // before there was a daemon
	ready lab.Snapshot // the daemon runs and has no pod
}

// New makes a node that is not started, and directories for it.
func New(t *testing.T, args ...string) *Node {
	t.Helper()
	setting := lab.Here(t)
	dir, err := os.MkdirTemp(setting.Work, strings.ReplaceAll(t.Name(), "/", "-")+".") //nolint:usetesting // on the disk, with room for images
	if err != nil {
		t.Fatal(err)
	}
	// Root of a user namespace walks to its root by path.
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	empty, err := lab.Take("", setting.Cgroup)
	if err != nil {
		t.Fatal(err)
	}
	d := lab.NewDaemon(t, dir, append([]string{"-v", "2", "--take-away"}, args...)...)
	t.Cleanup(func() { unmount(t, d.State) })
	return &Node{Daemon: d, Logs: filepath.Join(dir, "logs"), empty: empty}
}

// Start starts a node. When t ends its pods must be gone; the daemon is stopped, and
// nothing may be left in the kernel.
func Start(t *testing.T, args ...string) *Node {
	t.Helper()
	n := New(t, args...)
	n.Begin(t)
	return n
}

// Begin starts the daemon of a node from New and pulls Image.
func (n *Node) Begin(t *testing.T) {
	t.Helper()
	n.serve(t)
	n.Start(t)
	t.Cleanup(func() { n.end(t) })
	n.ImageID = n.Pull(t, Image)
	var err error
	if n.ready, err = lab.Take(n.State, lab.Here(t).Cgroup); err != nil {
		t.Fatal(err)
	}
	n.ready["link bridge"] = 1 // made for the first pod, it is the node's
}

// end looks for what pods have left beside the daemon, and then for what it has left.
func (n *Node) end(t *testing.T) {
	t.Helper()
	if n.ready != nil {
		lab.CheckLeaks(t, n.State, n.ready)
	}
	n.Stop(t)
	unmount(t, n.State)
	lab.CheckLeaks(t, "", n.empty)
}

// serve runs a registry with Image on loopback.
func (n *Node) serve(t *testing.T) {
	t.Helper()
	cache, err := catalogue.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	store, err := example(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	probe, err := buildProbe(t.Context(), lab.Here(t).Work)
	if err != nil {
		t.Fatal(err)
	}
	if n.Registry, err = newRegistry(store, probe); err != nil {
		t.Fatal("make image: ", err)
	}
	if err := catalogue.WriteHosts(n.Hosts, Serve(t, n.Registry)); err != nil {
		t.Fatal(err)
	}
}

// Serve answers HTTP requests on loopback until t ends.
func Serve(t *testing.T, h http.Handler) (address string) {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	var wait sync.WaitGroup
	wait.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() {
		_ = server.Close()
		wait.Wait()
	})
	return listener.Addr().String()
}

// Pull pulls an image and returns its id.
func (n *Node) Pull(t *testing.T, ref string) string {
	t.Helper()
	reply, err := n.Images.PullImage(t.Context(), &rt.PullImageRequest{Image: &rt.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatal(err)
	}
	return reply.ImageRef
}

// Pod is a pod with its configuration, which CreateContainer wants again.
type Pod struct {
	*Node
	ID     string
	Config *rt.PodSandboxConfig
}

// PodConfig is what the kubelet sends for a pod that asks for nothing.
func (n *Node) PodConfig(name string) *rt.PodSandboxConfig {
	return &rt.PodSandboxConfig{
		Metadata: &rt.PodSandboxMetadata{Name: name, Namespace: "ns", Uid: "uid-" + name}, Hostname: name,
		LogDirectory: filepath.Join(n.Logs, name),
		Linux: &rt.LinuxPodSandboxConfig{SecurityContext: &rt.LinuxSandboxSecurityContext{
			NamespaceOptions: &rt.NamespaceOption{Pid: rt.NamespaceMode_CONTAINER},
		}},
	}
}

// ContainerConfig is what the kubelet sends for a container that asks for nothing.
func (n *Node) ContainerConfig(name string, command ...string) *rt.ContainerConfig {
	return &rt.ContainerConfig{
		Metadata: &rt.ContainerMetadata{Name: name}, Image: &rt.ImageSpec{Image: n.ImageID, UserSpecifiedImage: Image},
		Command: command, LogPath: name + ".log",
		Linux: &rt.LinuxContainerConfig{Resources: &rt.LinuxContainerResources{}, SecurityContext: &rt.LinuxContainerSecurityContext{
			NamespaceOptions: &rt.NamespaceOption{Pid: rt.NamespaceMode_CONTAINER},
		}},
	}
}

// RunPod runs a pod that is stopped and removed when t ends.
func (n *Node) RunPod(t *testing.T, config *rt.PodSandboxConfig) *Pod {
	t.Helper()
	reply, err := n.Runtime.RunPodSandbox(t.Context(), &rt.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	p := &Pod{Node: n, ID: reply.PodSandboxId, Config: config}
	t.Cleanup(func() { p.Remove(t) })
	return p
}

// Remove stops and removes the pod. It may be called for a pod that is gone.
func (p *Pod) Remove(t *testing.T) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	if _, err := p.Runtime.StopPodSandbox(ctx, &rt.StopPodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		t.Errorf("stop pod: %v", err)
	}
	if _, err := p.Runtime.RemovePodSandbox(ctx, &rt.RemovePodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		t.Errorf("remove pod: %v", err)
	}
}
