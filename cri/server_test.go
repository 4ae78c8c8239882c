package cri

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

// served is a Server on a real socket, with clients.
type served struct {
	fake   *fakeRuntime
	images *fakeImages
	pb.RuntimeServiceClient
	img  pb.ImageServiceClient
	conn *grpc.ClientConn
	end  func() error // stops the server and returns what Serve returned
}

func serve(t *testing.T) *served {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	f := newFake()
	images := newFakeImages(f)
	srv := New(Deps{Runtime: f, Images: images, Pulls: images, Version: "1.2.3", StateDir: "/run/x/state", StopGrace: 100 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	var result error
	stopped := false
	s := &served{f, images, pb.NewRuntimeServiceClient(conn), pb.NewImageServiceClient(conn), conn, nil}
	s.end = func() error {
		if !stopped {
			stopped = true
			cancel()
			select {
			case result = <-done:
			case <-time.After(10 * time.Second):
				result = errors.New("Serve does not return")
			}
		}
		return result
	}
	t.Cleanup(func() {
		if err := s.end(); err != nil {
			t.Errorf("Serve: %v", err)
		}
		_ = conn.Close()
	})
	return s
}

// running makes a pod and a running container.
func (s *served) running(t *testing.T) (pod, container string) {
	t.Helper()
	p, err := s.RunPodSandbox(t.Context(), podRequest())
	if err != nil {
		t.Fatal(err)
	}
	r := containerRequest()
	r.PodSandboxId = p.PodSandboxId
	c, err := s.CreateContainer(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.StartContainer(t.Context(), &pb.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		t.Fatal(err)
	}
	return p.PodSandboxId, c.ContainerId
}

func wantCode(t *testing.T, what string, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("%s: got code %v (%v), want %v", what, got, err, want)
	}
}

func TestPodLife(t *testing.T) {
	s := serve(t)
	pod, container := s.running(t)
	again, err := s.RunPodSandbox(t.Context(), podRequest())
	if err != nil || again.PodSandboxId != pod {
		t.Errorf("second RunPodSandbox: got %v, %v, want the same pod", again, err)
	}
	before := time.Now().UnixNano()
	st, err := s.PodSandboxStatus(t.Context(), &pb.PodSandboxStatusRequest{PodSandboxId: pod[:20], Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if st.Status.Network.Ip != "10.1.0.2" || st.Status.Network.AdditionalIps[0].Ip != "fd00::2" || st.Status.CreatedAt != 100e9+5 {
		t.Errorf("status: %v", st.Status)
	}
	if st.Timestamp < before || len(st.ContainersStatuses) != 1 || st.ContainersStatuses[0].Id != container {
		t.Errorf("timestamp %d and containers %v must both be filled", st.Timestamp, st.ContainersStatuses)
	}
	var info map[string]any
	if err := json.Unmarshal([]byte(st.Info["info"]), &info); err != nil || info["stage"] != "up" {
		t.Errorf("info: %v, %v", st.Info, err)
	}
	for range 2 {
		if _, err := s.StopPodSandbox(t.Context(), &pb.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Error(err)
		}
	}
	l, err := s.ListPodSandbox(t.Context(), &pb.ListPodSandboxRequest{Filter: &pb.PodSandboxFilter{
		State: &pb.PodSandboxStateValue{State: pb.PodSandboxState_SANDBOX_NOTREADY}}})
	if err != nil || len(l.Items) != 1 || l.Items[0].Id != pod {
		t.Errorf("list of stopped pods: %v, %v", l, err)
	}
	if _, err := s.RemovePodSandbox(t.Context(), &pb.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Error(err)
	}
	_, err = s.PodSandboxStatus(t.Context(), &pb.PodSandboxStatusRequest{PodSandboxId: pod})
	wantCode(t, "status of a removed pod", err, codes.NotFound)
	_, err = s.ContainerStatus(t.Context(), &pb.ContainerStatusRequest{ContainerId: container})
	wantCode(t, "status of its container", err, codes.NotFound)
}

// TestContainerStatus holds every field that the kubelet reads.
func TestContainerStatus(t *testing.T) {
	s := serve(t)
	_, id := s.running(t)
	if _, err := s.StopContainer(t.Context(), &pb.StopContainerRequest{ContainerId: id, Timeout: math62()}); err != nil {
		t.Fatal(err)
	}
	r, err := s.ContainerStatus(t.Context(), &pb.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	if r.Info != nil {
		t.Errorf("info without being asked: %v", r.Info)
	}
	want := &pb.ContainerStatus{
		Id: id, Metadata: &pb.ContainerMetadata{Name: "c"}, State: pb.ContainerState_CONTAINER_EXITED,
		CreatedAt: 101e9, StartedAt: 102e9, FinishedAt: 103e9, ExitCode: 137, Reason: "Error",
		Image:    &pb.ImageSpec{Image: "example.com/a:1"},
		ImageRef: "example.com/a@sha256:2222", ImageId: "sha256:1111",
		Mounts: []*pb.Mount{{ContainerPath: "/c", HostPath: "/h"}}, LogPath: "/var/log/pods/x/",
		Resources:  &pb.ContainerResources{Linux: &pb.LinuxContainerResources{}},
		User:       &pb.ContainerUser{Linux: &pb.LinuxContainerUser{Uid: 7, Gid: 8, SupplementalGroups: []int64{8, 9}}},
		StopSignal: pb.Signal_SIGNAL_SIGTERM,
	}
	if !proto.Equal(r.Status, want) {
		t.Errorf("got  %v\nwant %v", r.Status, want)
	}
}

func math62() int64 { return 1 << 62 } // more seconds than a time.Duration can hold

// TestEncodeIsInverse decodes a full configuration and encodes its view: what comes
// back in a status must be what was asked for.
func TestEncodeIsInverse(t *testing.T) {
	r := containerRequest2()
	r.Config.Mounts = append(r.Config.Mounts, &pb.Mount{
		ContainerPath: "/d", HostPath: "/h", Readonly: true, RecursiveReadOnly: true, SelinuxRelabel: true,
		MountOptions: []string{"noexec"}, UidMappings: []*pb.IDMapping{{HostId: 5, Length: 9}}, GidMappings: []*pb.IDMapping{{ContainerId: 5, Length: 9}},
	}, &pb.Mount{ContainerPath: "/e", HostPath: "/h", Propagation: pb.MountPropagation_PROPAGATION_BIDIRECTIONAL})
	r.Config.Mounts[0].ImageSubPath = "sub"
	r.Config.Mounts[0].Image = &pb.ImageSpec{Image: "i", ImageRef: "r", UserSpecifiedImage: "u"}
	c, err := decodeContainer(r.Config)
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range c.Mounts {
		if got := encodeMount(m); !proto.Equal(got, r.Config.Mounts[i]) {
			t.Errorf("mount %d: got %v, want %v", i, got, r.Config.Mounts[i])
		}
	}
	res := &pb.LinuxContainerResources{
		CpuPeriod: 1, CpuQuota: 2, CpuShares: 3, MemoryLimitInBytes: 4, OomScoreAdj: 5, CpusetCpus: "0", CpusetMems: "1",
		HugepageLimits: []*pb.HugepageLimit{{PageSize: "2MB", Limit: 6}}, Unified: map[string]string{"memory.high": "1"}, MemorySwapLimitInBytes: 7,
	}
	d, err := decodeResources("", res)
	if err != nil || !proto.Equal(encodeResources(d), res) {
		t.Errorf("resources: got %v, %v, want %v", encodeResources(d), err, res)
	}
	n := r.Config.Linux.SecurityContext.NamespaceOptions
	ns, err := decodeNamespaces("", n, []sandbox.NamespaceMode{sandbox.ModeTarget})
	if err != nil || !proto.Equal(encodeNamespaces(ns), n) {
		t.Errorf("namespaces: got %v, %v, want %v", encodeNamespaces(ns), err, n)
	}
}

// TestUnimplemented demands that these six calls, and no others, answer Unimplemented:
// it makes every call of both services with an empty request.
func TestUnimplemented(t *testing.T) {
	want := []string{
		"CheckpointContainer", "CheckpointPod", "ListMetricDescriptors", "ListPodSandboxMetrics",
		"RestorePod", "StreamPodSandboxMetrics",
	}
	s := serve(t)
	var got []string
	total := 0
	for _, d := range []grpc.ServiceDesc{pb.RuntimeService_ServiceDesc, pb.ImageService_ServiceDesc} {
		for _, m := range d.Methods {
			total++
			// Every message of CRI can be read as an empty one.
			err := s.conn.Invoke(t.Context(), "/"+d.ServiceName+"/"+m.MethodName, &pb.ImageFsInfoRequest{}, &pb.ImageFsInfoRequest{})
			if status.Code(err) == codes.Unimplemented {
				got = append(got, m.MethodName)
			}
			if status.Code(err) == codes.Internal {
				t.Errorf("%s: %v", m.MethodName, err)
			}
		}
		for _, m := range d.Streams {
			total++
			ctx, cancel := context.WithTimeout(t.Context(), time.Second/5)
			st, err := s.conn.NewStream(ctx, &m, "/"+d.ServiceName+"/"+m.StreamName)
			if err == nil {
				err = errors.Join(st.SendMsg(&pb.ImageFsInfoRequest{}), st.CloseSend())
			}
			if err == nil {
				err = st.RecvMsg(&pb.ImageFsInfoRequest{})
			}
			if status.Code(err) == codes.Unimplemented {
				got = append(got, m.StreamName)
			}
			cancel()
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if total != 43 {
		t.Errorf("CRI has %d calls, this was written for 43", total)
	}
}

func TestStats(t *testing.T) {
	s := serve(t)
	pod, id := s.running(t)
	r, err := s.ContainerStats(t.Context(), &pb.ContainerStatsRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	// Every field of the answer must be filled; a new one in CRI shows up here.
	unset(t, "stats", reflect.ValueOf(r.Stats).Elem(), map[string]bool{"Labels": true, "Annotations": true, "Attempt": true})
	if got := r.Stats.Cpu.Psi.Some; got.Total != 2000 || got.Avg10 != 1.5 {
		t.Errorf("PSI: %v", got)
	}
	p, err := s.PodSandboxStats(t.Context(), &pb.PodSandboxStatsRequest{PodSandboxId: pod})
	if err != nil || p.Stats.Linux.Network.DefaultInterface.Name != "eth0" || len(p.Stats.Linux.Network.Interfaces) != 1 ||
		len(p.Stats.Linux.Containers) != 1 || p.Stats.Linux.Process.ProcessCount.Value != 9 {
		t.Errorf("pod stats: %v, %v", p, err)
	}
	_, err = s.ContainerStats(t.Context(), &pb.ContainerStatsRequest{ContainerId: "f"})
	wantCode(t, "stats of an unknown container", err, codes.NotFound)
}

func unset(t *testing.T, path string, v reflect.Value, not map[string]bool) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if !f.IsExported() || not[f.Name] || strings.HasPrefix(f.Type.String(), "*v1.PsiData") || f.Name == "Value" {
			continue
		}
		if v.Field(i).IsZero() {
			t.Errorf("%s.%s is not filled", path, f.Name)
		}
		if v.Field(i).Kind() == reflect.Pointer && !v.Field(i).IsNil() {
			unset(t, path+"."+f.Name, v.Field(i).Elem(), not)
		}
	}
}

// TestStreamedLists compares each Stream call with its List.
func TestStreamedLists(t *testing.T) {
	s := serve(t)
	s.running(t)
	big := strings.Repeat("x", 700<<10) // two of these do not share a message
	for i := range 3 {
		r := podRequest()
		r.Config.Metadata.Name = fmt.Sprint("big", i)
		r.Config.Annotations = map[string]string{"a": big}
		if _, err := s.RunPodSandbox(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	st, err := s.StreamPodSandboxes(t.Context(), &pb.StreamPodSandboxesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	messages := 0
	for {
		m, err := st.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		messages++
		for _, p := range m.PodSandboxes {
			ids = append(ids, p.Id)
		}
	}
	l, err := s.ListPodSandbox(t.Context(), &pb.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := convert(l.Items, func(p *pb.PodSandbox) string { return p.Id })
	if !slices.Equal(ids, want) || messages != 3 {
		t.Errorf("got %v in %d messages, want %v in 3", ids, messages, want)
	}
	c, err := s.StreamContainers(t.Context(), &pb.StreamContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := c.Recv(); err != nil || len(m.Containers) != 1 {
		t.Errorf("StreamContainers: %v, %v", m, err)
	}
	cs, err := s.StreamContainerStats(t.Context(), &pb.StreamContainerStatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := cs.Recv(); err != nil || len(m.ContainerStats) != 1 {
		t.Errorf("StreamContainerStats: %v, %v", m, err)
	}
	ps, err := s.StreamPodSandboxStats(t.Context(), &pb.StreamPodSandboxStatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := ps.Recv(); err != nil || m.PodSandboxStats[0].Attributes.Metadata.Name != "web" {
		t.Errorf("StreamPodSandboxStats: %d items, %v", len(m.GetPodSandboxStats()), err)
	}
	i, err := s.img.StreamImages(t.Context(), &pb.StreamImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("StreamImages of none: got %v, want EOF", err)
	}
}

func TestEvents(t *testing.T) {
	s := serve(t)
	pod, id := s.running(t)
	events := func() (pb.RuntimeService_GetContainerEventsClient, chan sandbox.Event) {
		n := len(s.fake.subscribers())
		st, err := s.GetContainerEvents(t.Context(), &pb.GetEventsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for len(s.fake.subscribers()) == n { // the client learns of its subscription by the first event only
			time.Sleep(time.Millisecond)
		}
		return st, s.fake.subscribers()[n]
	}
	st, ch := events()
	p, _ := s.fake.Pod(sandbox.ID(pod))
	c, _ := s.fake.Container(sandbox.ID(id))
	ch <- sandbox.Event{Container: c.ID, Kind: sandbox.EventStopped, At: time.Unix(5, 0), Pod: p, Containers: []*sandbox.ContainerView{c}}
	e, err := st.Recv()
	if err != nil || e.ContainerId != id || e.ContainerEventType != pb.ContainerEventType_CONTAINER_STOPPED_EVENT || e.CreatedAt != 5e9 ||
		e.PodSandboxStatus.GetId() != pod || len(e.ContainersStatuses) != 1 {
		t.Errorf("event: %v, %v", e, err)
	}
	close(ch)
	_, err = st.Recv()
	wantCode(t, "events of a slow client", err, codes.Unavailable)
	st, _ = events()
	if err := s.end(); err != nil {
		t.Fatal(err)
	}
	_, err = st.Recv()
	wantCode(t, "events at the end", err, codes.Unavailable)
}

// TestPanic holds that a defect in one call leaves the others alone.
func TestPanic(t *testing.T) {
	s := serve(t)
	s.fake.panics = true
	_, err := s.StopPodSandbox(t.Context(), &pb.StopPodSandboxRequest{PodSandboxId: "x"})
	wantCode(t, "panic", err, codes.Internal)
	s.fake.mu.Lock()
	s.fake.panics = false
	s.fake.mu.Unlock()
	if _, err := s.StopPodSandbox(t.Context(), &pb.StopPodSandboxRequest{PodSandboxId: "x"}); err != nil {
		t.Errorf("after a panic: %v", err)
	}
}

// TestStop holds that a call which never ends does not keep the daemon.
func TestStop(t *testing.T) {
	s := serve(t)
	s.fake.block = make(chan struct{})
	called := make(chan error, 1)
	go func() {
		_, err := s.StartContainer(t.Context(), &pb.StartContainerRequest{ContainerId: "x"})
		called <- err
	}()
	for len(s.fake.started()) == 0 {
		time.Sleep(time.Millisecond)
	}
	start := time.Now()
	if err := s.end(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	if err := <-called; err == nil {
		t.Error("the call succeeded")
	}
}

func (f *fakeRuntime) started() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(f.calls), func(c string) bool { return !strings.HasPrefix(c, "StartContainer") })
}

func TestExecSync(t *testing.T) {
	s := serve(t)
	r, err := s.ExecSync(t.Context(), &pb.ExecSyncRequest{ContainerId: "c", Cmd: []string{"a"}, Timeout: -1})
	if err != nil || string(r.Stdout) != "out" || string(r.Stderr) != "err" || r.ExitCode != 3 {
		t.Errorf("got %v, %v", r, err)
	}
	if got := s.fake.calls[0]; got != `ExecSync["c",["a"],0]` {
		t.Errorf("asked for %s", got)
	}
	_, err = s.ExecSync(t.Context(), &pb.ExecSyncRequest{ContainerId: "c"})
	wantCode(t, "no command", err, codes.InvalidArgument)
	_, err = s.StopContainer(t.Context(), &pb.StopContainerRequest{ContainerId: "c", Timeout: -1})
	wantCode(t, "negative timeout", err, codes.InvalidArgument)
}

func TestFitReply(t *testing.T) {
	for name, tc := range map[string]struct{ out, err, wantOut, wantErr int }{
		"small":      {1, 2, 1, 2},
		"both full":  {16 << 20, 16 << 20, maxReply / 2, maxReply / 2},
		"out full":   {16 << 20, 5, maxReply - 5, 5},
		"err full":   {5, 16 << 20, 5, maxReply - 5},
		"just fits":  {maxReply - 1, 1, maxReply - 1, 1},
		"err bigger": {maxReply/2 - 9, maxReply, maxReply/2 - 9, maxReply/2 + 9},
	} {
		o, e := fitReply(make([]byte, tc.out), make([]byte, tc.err))
		if len(o) != tc.wantOut || len(e) != tc.wantErr {
			t.Errorf("%s: got %d and %d, want %d and %d", name, len(o), len(e), tc.wantOut, tc.wantErr)
		}
		if n := proto.Size(&pb.ExecSyncResponse{Stdout: o, Stderr: e, ExitCode: -1}); n > 16<<20 {
			t.Errorf("%s: the reply has %d bytes", name, n)
		}
	}
}

// TestSessions holds what is refused before a URL is given out, and that one works.
func TestSessions(t *testing.T) {
	s := serve(t)
	pod, id := s.running(t)
	for what, tc := range map[string]struct {
		r    *pb.ExecRequest
		want codes.Code
	}{
		"tty and stderr": {&pb.ExecRequest{ContainerId: id, Cmd: []string{"a"}, Tty: true, Stdout: true, Stderr: true}, codes.InvalidArgument},
		"no stream":      {&pb.ExecRequest{ContainerId: id, Cmd: []string{"a"}}, codes.InvalidArgument},
		"no command":     {&pb.ExecRequest{ContainerId: id, Stdout: true}, codes.InvalidArgument},
		"unknown":        {&pb.ExecRequest{ContainerId: "f", Cmd: []string{"a"}, Stdout: true}, codes.NotFound},
		"fine":           {&pb.ExecRequest{ContainerId: id, Cmd: []string{"a"}, Stdout: true}, codes.OK},
	} {
		r, err := s.Exec(t.Context(), tc.r)
		wantCode(t, what, err, tc.want)
		if tc.want == codes.OK && !strings.HasPrefix(r.GetUrl(), "http://127.0.0.1:") {
			t.Errorf("URL %q", r.GetUrl())
		}
	}
	if _, err := s.StopContainer(t.Context(), &pb.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	_, err := s.Attach(t.Context(), &pb.AttachRequest{ContainerId: id, Stdout: true})
	wantCode(t, "attach to a stopped container", err, codes.FailedPrecondition)
	if _, err := s.PortForward(t.Context(), &pb.PortForwardRequest{PodSandboxId: pod, Port: []int32{80}}); err != nil {
		t.Error(err)
	}
	_, err = s.PortForward(t.Context(), &pb.PortForwardRequest{PodSandboxId: pod, Port: []int32{0}})
	wantCode(t, "port 0", err, codes.InvalidArgument)
}

// TestLargeRequest holds that a configuration of more than gRPC's 4 MiB comes through.
func TestLargeRequest(t *testing.T) {
	s := serve(t)
	r := podRequest()
	r.Config.Annotations = map[string]string{"a": string(bytes.Repeat([]byte("x"), 8<<20))}
	if _, err := s.RunPodSandbox(t.Context(), r); err != nil {
		t.Error(err)
	}
}

// FuzzDecode feeds wire bytes: decoding may refuse, it may not panic.
func FuzzDecode(f *testing.F) {
	for _, m := range []proto.Message{podRequest(), podRequest2(), containerRequest(), containerRequest2()} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var p pb.RunPodSandboxRequest
		if proto.Unmarshal(b, &p) == nil {
			if c, err := decodePod(p.Config, p.RuntimeHandler); err == nil {
				encodePodStatus(&sandbox.PodView{Config: c})
			}
		}
		var c pb.CreateContainerRequest
		if proto.Unmarshal(b, &c) == nil {
			if d, err := decodeContainer(c.Config); err == nil {
				encodeContainerStatus(&sandbox.ContainerView{Config: d, Mounts: d.Mounts, Resources: d.Resources, StopSignal: d.StopSignal})
			}
		}
		var u pb.UpdateContainerResourcesRequest
		if proto.Unmarshal(b, &u) == nil {
			_, _ = decodeResources("", u.Linux)
		}
	})
}
