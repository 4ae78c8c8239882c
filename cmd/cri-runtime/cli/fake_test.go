package cli

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakeNode is a CRI server that keeps state and runs nothing. A container writes its
// command's words as log lines; "exit N" ends it, anything else goes on.
type fakeNode struct {
	rt.UnimplementedRuntimeServiceServer
	rt.UnimplementedImageServiceServer

	mu       sync.Mutex
	ip       string
	pullErr  error
	startErr map[string]error // by container name
	pulling  func() string    // the info of a pull in flight; nil: the runtime tells nothing
	pullWait chan struct{}    // a pull ends when it is closed; nil: at once
	auth     *rt.AuthConfig   // of the last pull
	notReady string           // message of a network that is not ready
	noEvents bool
	images   map[string]*rt.Image
	pulls    int
	pods     map[string]*rt.PodSandbox
	made     map[string]*fakeContainer
	order    []string // what happened
	watchers []chan *rt.ContainerEventResponse
}

type fakeContainer struct {
	status *rt.ContainerStatus
	pod    string
	config *rt.ContainerConfig
}

func startFake(t *testing.T) (*fakeNode, string) {
	t.Helper()
	f := &fakeNode{
		ip: "127.0.0.1", images: map[string]*rt.Image{}, pods: map[string]*rt.PodSandbox{}, made: map[string]*fakeContainer{}, startErr: map[string]error{},
	}
	socket := filepath.Join(t.TempDir(), "cri.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	rt.RegisterRuntimeServiceServer(server, f)
	rt.RegisterImageServiceServer(server, f)
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() { server.Stop(); wg.Wait() })
	return f, socket
}

func (f *fakeNode) did(format string, args ...any) {
	f.order = append(f.order, fmt.Sprintf(format, args...))
}

func (f *fakeNode) Version(context.Context, *rt.VersionRequest) (*rt.VersionResponse, error) {
	return &rt.VersionResponse{RuntimeName: "fake", RuntimeApiVersion: "v1"}, nil
}

func (f *fakeNode) Status(context.Context, *rt.StatusRequest) (*rt.StatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &rt.StatusResponse{Status: &rt.RuntimeStatus{Conditions: []*rt.RuntimeCondition{
		{Type: rt.RuntimeReady, Status: true}, {Type: rt.NetworkReady, Status: f.notReady == "", Reason: "NoConfig", Message: f.notReady},
	}}}, nil
}

func (f *fakeNode) ImageStatus(_ context.Context, r *rt.ImageStatusRequest) (*rt.ImageStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	reply := &rt.ImageStatusResponse{Image: f.images[r.Image.Image]}
	if r.Verbose && f.pulling != nil {
		reply.Info = map[string]string{"pull": f.pulling()}
	}
	return reply, nil
}

func (f *fakeNode) PullImage(_ context.Context, r *rt.PullImageRequest) (*rt.PullImageResponse, error) {
	if f.pullWait != nil {
		<-f.pullWait
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pullErr != nil {
		return nil, f.pullErr
	}
	f.auth = r.Auth
	f.pulls++
	if f.images[r.Image.Image] == nil {
		f.images[r.Image.Image] = &rt.Image{Id: "sha256:" + r.Image.Image, Size: 1e6}
	}
	return &rt.PullImageResponse{ImageRef: f.images[r.Image.Image].Id}, nil
}

func (f *fakeNode) RunPodSandbox(_ context.Context, r *rt.RunPodSandboxRequest) (*rt.RunPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := fmt.Sprintf("pod%010d", len(f.pods))
	f.pods[id] = &rt.PodSandbox{Id: id, Metadata: r.Config.Metadata, Labels: r.Config.Labels}
	f.did("run pod")
	return &rt.RunPodSandboxResponse{PodSandboxId: id}, nil
}

func (f *fakeNode) PodSandboxStatus(context.Context, *rt.PodSandboxStatusRequest) (*rt.PodSandboxStatusResponse, error) {
	return &rt.PodSandboxStatusResponse{Status: &rt.PodSandboxStatus{Network: &rt.PodSandboxNetworkStatus{Ip: f.ip}}}, nil
}

func (f *fakeNode) ListPodSandbox(_ context.Context, r *rt.ListPodSandboxRequest) (*rt.ListPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	reply := &rt.ListPodSandboxResponse{}
next:
	for _, p := range f.pods {
		for k, v := range r.Filter.GetLabelSelector() {
			if p.Labels[k] != v {
				continue next
			}
		}
		reply.Items = append(reply.Items, p)
	}
	return reply, nil
}

func (f *fakeNode) StopPodSandbox(_ context.Context, r *rt.StopPodSandboxRequest) (*rt.StopPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, c := range f.made {
		if c.pod == r.PodSandboxId {
			f.end(id, 137)
		}
	}
	f.did("stop pod")
	return &rt.StopPodSandboxResponse{}, nil
}

func (f *fakeNode) RemovePodSandbox(_ context.Context, r *rt.RemovePodSandboxRequest) (*rt.RemovePodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, c := range f.made {
		if c.pod == r.PodSandboxId {
			delete(f.made, id)
		}
	}
	delete(f.pods, r.PodSandboxId)
	f.did("remove pod")
	return &rt.RemovePodSandboxResponse{}, nil
}

func (f *fakeNode) CreateContainer(_ context.Context, r *rt.CreateContainerRequest) (*rt.CreateContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := r.Config.Metadata.Name
	f.made[name] = &fakeContainer{pod: r.PodSandboxId, config: r.Config, status: &rt.ContainerStatus{
		Id: name, Metadata: r.Config.Metadata, LogPath: filepath.Join(r.SandboxConfig.LogDirectory, r.Config.LogPath),
	}}
	return &rt.CreateContainerResponse{ContainerId: name}, nil
}

func (f *fakeNode) StartContainer(_ context.Context, r *rt.StartContainerRequest) (*rt.StartContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.made[r.ContainerId]
	if err := f.startErr[r.ContainerId]; err != nil {
		return nil, err
	}
	f.did("start %s", r.ContainerId)
	var log strings.Builder
	for _, word := range append(c.config.Command, c.config.Args...) {
		fmt.Fprintf(&log, "%s stdout F %s\n", time.Now().Format(time.RFC3339Nano), word)
	}
	if err := os.WriteFile(c.status.LogPath, []byte(log.String()), 0o600); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	c.status.State = rt.ContainerState_CONTAINER_RUNNING
	if words := c.config.Command; len(words) == 2 && words[0] == "exit" {
		code, _ := strconv.Atoi(words[1])
		f.end(r.ContainerId, int32(code))
	}
	return &rt.StartContainerResponse{}, nil
}

func (f *fakeNode) end(id string, code int32) {
	c := f.made[id]
	if c == nil || c.status.State != rt.ContainerState_CONTAINER_RUNNING {
		return
	}
	c.status.State, c.status.ExitCode = rt.ContainerState_CONTAINER_EXITED, code
	if code != 0 {
		c.status.Reason, c.status.Message = "Error", "the fake says so"
	}
	f.did("end %s", id)
	for _, w := range f.watchers {
		w <- &rt.ContainerEventResponse{ContainerId: id}
	}
}

func (f *fakeNode) StopContainer(_ context.Context, r *rt.StopContainerRequest) (*rt.StopContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.end(r.ContainerId, 0)
	return &rt.StopContainerResponse{}, nil
}

func (f *fakeNode) ContainerStatus(_ context.Context, r *rt.ContainerStatusRequest) (*rt.ContainerStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.made[r.ContainerId]
	if c == nil {
		return nil, status.Error(codes.NotFound, "no such container")
	}
	return &rt.ContainerStatusResponse{Status: &rt.ContainerStatus{
		Id: c.status.Id, State: c.status.State, ExitCode: c.status.ExitCode, Reason: c.status.Reason, Message: c.status.Message,
	}}, nil
}

func (f *fakeNode) GetContainerEvents(_ *rt.GetEventsRequest, s rt.RuntimeService_GetContainerEventsServer) error {
	f.mu.Lock()
	if f.noEvents {
		f.mu.Unlock()
		return status.Error(codes.Unimplemented, "no events")
	}
	ch := make(chan *rt.ContainerEventResponse, 100)
	f.watchers = append(f.watchers, ch)
	f.mu.Unlock()
	for {
		select {
		case <-s.Context().Done():
			return nil
		case e := <-ch:
			if err := s.Send(e); err != nil {
				return err
			}
		}
	}
}
