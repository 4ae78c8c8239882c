package load

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// namespace is that of all our pods.
const namespace = "bench"

// Client is a connection to one runtime. Its measurements are taken one at a time.
type Client struct {
	options Options
	meter   Meter
	link    *link
	last    atomic.Int64 // number of the last pod
	imageID string       // as the kubelet names it in CreateContainer
}

// link is one connection.
type link struct {
	conn    *grpc.ClientConn
	runtime rt.RuntimeServiceClient
	images  rt.ImageServiceClient
}

func connect(socket string) (*link, error) {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20))) // the kubelet's limit
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", socket, err)
	}
	return &link{conn, rt.NewRuntimeServiceClient(conn), rt.NewImageServiceClient(conn)}, nil
}

// Dial connects and makes sure that the image is there, by a pull if need be. Without a
// Meter (nil) CPU and memory are not measured and stay zero. The caller must be outside
// of what the Meter counts.
func Dial(ctx context.Context, o Options, m Meter) (*Client, error) {
	l, err := connect(o.Socket)
	if err != nil {
		return nil, err
	}
	if m == nil {
		m = nothing{}
	}
	if g, ok := m.(Cgroup); ok && g.has(os.Getpid()) {
		return nil, errors.Join(fmt.Errorf("this process is below %q, whose CPU time is to be the runtime's", g.Dirs), l.conn.Close())
	}
	c := &Client{options: o, meter: m, link: l}
	if c.imageID, err = c.image(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.link.conn.Close() }

// Version is the runtime's name and version.
func (c *Client) Version(ctx context.Context) (string, error) {
	v, err := c.link.runtime.Version(ctx, &rt.VersionRequest{})
	if err != nil {
		return "", fmt.Errorf("ask for the version: %w", err)
	}
	return v.RuntimeName + " " + v.RuntimeVersion, nil
}

// image returns the id of the image, which is pulled when it is not there.
func (c *Client) image(ctx context.Context) (string, error) {
	spec := &rt.ImageSpec{Image: c.options.Image}
	for range 2 {
		reply, err := c.link.images.ImageStatus(ctx, &rt.ImageStatusRequest{Image: spec})
		if err != nil {
			return "", fmt.Errorf("look for image %s: %w", c.options.Image, err)
		}
		if reply.Image != nil {
			return reply.Image.Id, nil
		}
		if _, err := c.link.images.PullImage(ctx, &rt.PullImageRequest{Image: spec}); err != nil {
			return "", fmt.Errorf("pull image %s: %w", c.options.Image, err)
		}
	}
	return "", fmt.Errorf("image %s is not there after its pull", c.options.Image)
}

// RemoveAll removes what an earlier run left: every pod of our namespace.
func (c *Client) RemoveAll(ctx context.Context) error {
	reply, err := c.link.runtime.ListPodSandbox(ctx, &rt.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	var errs []error
	for _, s := range reply.Items {
		if s.Metadata.GetNamespace() == namespace {
			errs = append(errs, c.remove(ctx, s.Id))
		}
	}
	return errors.Join(errs...)
}

func (c *Client) remove(ctx context.Context, id string) error {
	if _, err := c.link.runtime.StopPodSandbox(ctx, &rt.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("stop pod %s: %w", id, err)
	}
	if _, err := c.link.runtime.RemovePodSandbox(ctx, &rt.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("remove pod %s: %w", id, err)
	}
	return nil
}

// A Pod has one container.
type Pod struct {
	ID, Container string
	Log           string // the container's log file
	Began         map[string]time.Time
	Took          map[string]time.Duration

	config *rt.PodSandboxConfig
}

// time keeps how long a step took.
func (p *Pod) time(step string, f func() error) error {
	p.Began[step] = time.Now()
	err := f()
	p.Took[step] = time.Since(p.Began[step])
	if err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	return nil
}

// newPod makes what a kubelet makes before it asks for a pod.
func (c *Client) newPod() (*Pod, error) {
	n := c.last.Add(1)
	name := fmt.Sprintf("pod-%d-%d", os.Getpid(), n)
	uid := fmt.Sprintf("%08x-%04x-4000-8000-%012x", os.Getpid(), n&0xffff, time.Now().UnixNano()&(1<<48-1))
	dir := filepath.Join(c.options.LogDir, uid)
	if err := os.MkdirAll(filepath.Join(dir, "c"), 0o755); err != nil {
		return nil, fmt.Errorf("make log directory: %w", err)
	}
	for _, f := range []string{"hosts", "termination-log"} {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o644); err != nil {
			return nil, fmt.Errorf("make pod's files: %w", err)
		}
	}
	p := &Pod{Began: map[string]time.Time{}, Took: map[string]time.Duration{}, Log: filepath.Join(dir, "c/0.log"), config: c.podConfig(name, uid, dir)}
	return p, MakeCgroup(p.config.Linux.CgroupParent)
}

func (c *Client) podConfig(name, uid, dir string) *rt.PodSandboxConfig {
	config := &rt.PodSandboxConfig{
		Metadata:     &rt.PodSandboxMetadata{Name: name, Namespace: namespace, Uid: uid},
		LogDirectory: dir, Hostname: name,
		Labels:    map[string]string{"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": namespace, "io.kubernetes.pod.uid": uid},
		DnsConfig: &rt.DNSConfig{Servers: []string{"10.0.0.10"}, Searches: []string{"svc.cluster.local"}, Options: []string{"ndots:5"}},
		Linux: &rt.LinuxPodSandboxConfig{SecurityContext: &rt.LinuxSandboxSecurityContext{
			NamespaceOptions: &rt.NamespaceOption{Network: rt.NamespaceMode_POD, Pid: rt.NamespaceMode_CONTAINER}, Seccomp: c.seccomp(),
		}},
	}
	if c.options.HostNetwork {
		config.Hostname, config.Linux.SecurityContext.NamespaceOptions.Network = "", rt.NamespaceMode_NODE
	}
	if c.options.CgroupParent != "" {
		config.Linux.CgroupParent = c.options.CgroupParent + "/pod" + uid
	}
	return config
}

func (c *Client) seccomp() *rt.SecurityProfile {
	if c.options.Seccomp {
		return &rt.SecurityProfile{ProfileType: rt.SecurityProfile_RuntimeDefault}
	}
	return &rt.SecurityProfile{ProfileType: rt.SecurityProfile_Unconfined}
}

func (c *Client) containerConfig(p *Pod, args []string) *rt.ContainerConfig {
	dir := p.config.LogDirectory
	return &rt.ContainerConfig{
		Metadata: &rt.ContainerMetadata{Name: "c"},
		Image:    &rt.ImageSpec{Image: c.imageID, UserSpecifiedImage: c.options.Image},
		Command:  []string{"/bench"}, Args: args, LogPath: "c/0.log", Labels: p.config.Labels,
		Envs: []*rt.KeyValue{{Key: "KUBERNETES_SERVICE_HOST", Value: []byte("10.0.0.1")}, {Key: "KUBERNETES_SERVICE_PORT", Value: []byte("443")}},
		Mounts: []*rt.Mount{
			{HostPath: filepath.Join(dir, "hosts"), ContainerPath: "/etc/hosts"},
			{HostPath: filepath.Join(dir, "termination-log"), ContainerPath: "/dev/termination-log"},
		},
		Linux: &rt.LinuxContainerConfig{
			Resources: &rt.LinuxContainerResources{CpuShares: 102, OomScoreAdj: 1000},
			SecurityContext: &rt.LinuxContainerSecurityContext{
				NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions, Seccomp: c.seccomp(),
			},
		},
	}
}
