package rules

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// TestEventsOfAWholeLife: who follows the events of a pod needs no list: each comes
// once, in order, and what it tells is recorded already.
func TestEventsOfAWholeLife(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithTimeout(n.ctx(), 30*time.Second)
	defer cancel()
	stream, err := n.Runtime.GetContainerEvents(ctx, &rt.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // the subscription is made behind the answer
	var pod, container string
	t.Run("life", func(t *testing.T) {
		p := n.pod(t, podConfig(n, "a"))
		pod, container = p.id, p.start(t, containerConfig(n, "c", "sh", "-c", "trap 'exit 3' TERM; echo up; while :; do sleep 0.02; done"))
		log := n.status(t, container).LogPath
		eventually(t, "the trap is set", func() bool { return logText(t, log) != "" })
		if _, err := n.Runtime.StopContainer(n.ctx(), &rt.StopContainerRequest{ContainerId: container, Timeout: 10}); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Runtime.RemoveContainer(n.ctx(), &rt.RemoveContainerRequest{ContainerId: container}); err != nil {
			t.Fatal(err)
		}
	})
	var got []string
	var last int64
	for len(got) < 8 {
		e, err := stream.Recv()
		if err != nil {
			t.Fatalf("after %q: %v", got, err)
		}
		who := map[string]string{pod: "pod", container: "container"}[e.ContainerId]
		what := strings.TrimSuffix(strings.TrimPrefix(e.ContainerEventType.String(), "CONTAINER_"), "_EVENT")
		got = append(got, who+" "+what)
		if e.CreatedAt == 0 || e.CreatedAt < last && what != "STARTED" { // a start is dated when it began
			t.Errorf("%s: time %d after %d", got[len(got)-1], e.CreatedAt, last)
		}
		last = max(last, e.CreatedAt)
		if e.PodSandboxStatus.GetId() != pod {
			t.Errorf("%s: of pod %q", got[len(got)-1], e.PodSandboxStatus.GetId())
		}
		if got[len(got)-1] == "container STOPPED" {
			s := e.ContainersStatuses
			if len(s) != 1 || s[0].State != rt.ContainerState_CONTAINER_EXITED || s[0].ExitCode != 3 || s[0].FinishedAt == 0 {
				t.Errorf("the end is not in its event: %v", s)
			}
		}
	}
	want := []string{
		"pod CREATED", "pod STARTED", "container CREATED", "container STARTED", "container STOPPED", "container DELETED", "pod STOPPED", "pod DELETED",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestSignalsByNumber: the names of the enumeration changed with v0.37, the numbers did
// not; a real-time signal is what systemd in a container is stopped with.
func TestSignalsByNumber(t *testing.T) {
	n := newNode(t)
	p := n.pod(t, podConfig(n, "a"))
	for signal, number := range map[rt.Signal]int{ // Linux' numbers on amd64 and arm64
		rt.Signal_SIGNAL_SIGHUP: 1, rt.Signal_SIGNAL_SIGQUIT: 3, rt.Signal_SIGNAL_SIGWINCH: 28, rt.Signal_SIGNAL_SIGRTMINPLUS3: 37, rt.Signal_SIGNAL_SIGRTMAX: 64,
	} {
		t.Run(signal.String(), func(t *testing.T) {
			c := containerConfig(n, signal.String(), "sh", "-c", fmt.Sprintf("trap 'exit %d' %d; echo up; while :; do sleep 0.02; done", 100+number, number))
			c.StopSignal = signal
			id := p.start(t, c)
			eventually(t, "the trap is set", func() bool { return logText(t, n.status(t, id).LogPath) != "" })
			if _, err := n.Runtime.StopContainer(n.ctx(), &rt.StopContainerRequest{ContainerId: id, Timeout: 10}); err != nil {
				t.Fatal(err)
			}
			if s := n.status(t, id); s.ExitCode != int32(100+number) || s.StopSignal != signal {
				t.Errorf("got exit code %d, signal %v, want %d, %v", s.ExitCode, s.StopSignal, 100+number, signal)
			}
		})
	}
}

// TestFilters: every list by every field that its filter has; what crictl calls a
// short id is one, too.
func TestFilters(t *testing.T) {
	n := newNode(t)
	a, b := n.pod(t, podConfig(n, "a")), n.pod(t, podConfig(n, "b"))
	config := containerConfig(n, "run", sleeper()...)
	config.Labels = map[string]string{"tier": "front", "x": "y"}
	running := a.start(t, config)
	exited, _ := a.run(t, containerConfig(n, "exited", "true"))
	created := b.create(t, containerConfig(n, "created", "true"))
	if _, err := n.Runtime.StopPodSandbox(n.ctx(), &rt.StopPodSandboxRequest{PodSandboxId: b.id}); err != nil {
		t.Fatal(err)
	}
	names := map[string]string{running: "running", exited.Id: "exited", created: "created", a.id: "a", b.id: "b"}
	state := func(s rt.ContainerState) *rt.ContainerStateValue { return &rt.ContainerStateValue{State: s} }
	for want, f := range map[string]*rt.ContainerFilter{
		"created exited running": {}, "exited running": {PodSandboxId: a.id}, "created": {PodSandboxId: b.id[:12]}, "exited": {Id: exited.Id[:10]},
		"running": {LabelSelector: map[string]string{"tier": "front"}}, "": {LabelSelector: map[string]string{"tier": "front", "x": "z"}},
		"exited ": {State: state(rt.ContainerState_CONTAINER_EXITED), PodSandboxId: a.id}, " ": {State: state(rt.ContainerState_CONTAINER_RUNNING), PodSandboxId: b.id},
	} {
		reply, err := n.Runtime.ListContainers(n.ctx(), &rt.ListContainersRequest{Filter: f})
		got := named(names, reply.GetContainers())
		if err != nil || got != strings.TrimSpace(want) {
			t.Errorf("containers %v: got %q, %v, want %q", f, got, err, want)
		}
	}
	ready := func(s rt.PodSandboxState) *rt.PodSandboxStateValue { return &rt.PodSandboxStateValue{State: s} }
	for want, f := range map[string]*rt.PodSandboxFilter{
		"a b": {}, "a": {State: ready(rt.PodSandboxState_SANDBOX_READY)}, "b": {State: ready(rt.PodSandboxState_SANDBOX_NOTREADY)},
		"b ": {Id: b.id[:13]}, "a ": {LabelSelector: map[string]string{"app": "a"}}, "": {Id: a.id, LabelSelector: map[string]string{"app": "b"}},
	} {
		reply, err := n.Runtime.ListPodSandbox(n.ctx(), &rt.ListPodSandboxRequest{Filter: f})
		got := named(names, reply.GetItems())
		if err != nil || got != strings.TrimSpace(want) {
			t.Errorf("pods %v: got %q, %v, want %q", f, got, err, want)
		}
	}
	for want, f := range map[string]*rt.ContainerStatsFilter{
		"running": {Id: running[:11]}, "": {PodSandboxId: b.id, Id: running}, "running ": {LabelSelector: map[string]string{"x": "y"}},
	} {
		reply, err := n.Runtime.ListContainerStats(n.ctx(), &rt.ListContainerStatsRequest{Filter: f})
		var got []string
		for _, s := range reply.GetStats() {
			got = append(got, names[s.Attributes.Id])
		}
		if err != nil || strings.Join(got, " ") != strings.TrimSpace(want) {
			t.Errorf("stats %v: got %q, %v, want %q", f, got, err, want)
		}
	}
}

// named puts what a list holds into words, in order of names.
func named[T interface{ GetId() string }](names map[string]string, items []T) string {
	var got []string
	for _, i := range items {
		got = append(got, names[i.GetId()])
	}
	slices.Sort(got)
	return strings.Join(got, " ")
}

// TestEveryCallWithNothing makes every call of both services with an empty request. What
// is missing is the caller's fault, and none of them is a bug of ours or a feature that
// the kubelet should think missing.
func TestEveryCallWithNothing(t *testing.T) {
	n := newNode(t)
	conn, err := grpc.NewClient("unix:"+n.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	missing := map[string]bool{
		"CheckpointContainer": true, "CheckpointPod": true, "RestorePod": true,
		"ListMetricDescriptors": true, "ListPodSandboxMetrics": true, "StreamPodSandboxMetrics": true,
	}
	judge := func(name string, err error) {
		code := status.Code(err)
		switch {
		case missing[name] != (code == codes.Unimplemented):
			t.Errorf("%s: got %v, want Unimplemented: %v", name, err, missing[name])
		case code == codes.InvalidArgument && len(status.Convert(err).Message()) < 10:
			t.Errorf("%s: got %v, want the field's name", name, err)
		case !slices.Contains([]codes.Code{codes.OK, codes.InvalidArgument, codes.Unimplemented}, code):
			t.Errorf("%s: got %v", name, err)
		}
	}
	empty := new(rt.ImageFsInfoRequest) // every message can be read as this one
	for _, d := range []grpc.ServiceDesc{rt.RuntimeService_ServiceDesc, rt.ImageService_ServiceDesc} {
		for _, m := range d.Methods {
			judge(m.MethodName, conn.Invoke(n.ctx(), "/"+d.ServiceName+"/"+m.MethodName, empty, new(rt.ImageFsInfoRequest)))
		}
		for _, m := range d.Streams {
			if m.StreamName == "GetContainerEvents" { // says nothing, and does not end
				continue
			}
			stream, err := conn.NewStream(n.ctx(), &m, "/"+d.ServiceName+"/"+m.StreamName)
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.SendMsg(empty); err != nil {
				t.Fatal(err)
			}
			if err := stream.CloseSend(); err != nil {
				t.Fatal(err)
			}
			_, err = count(func() (int, error) { return 0, stream.RecvMsg(new(rt.ImageFsInfoRequest)) }, func(int) int { return 1 })
			judge(m.StreamName, err)
		}
	}
}

// TestUpdatesThatCannotBe: an update says no where it is not done, in whole.
func TestUpdatesThatCannotBe(t *testing.T) {
	testkit.Need(t, testkit.CgroupV1)
	n := newNode(t)
	p := n.pod(t, podConfig(n, "a"))
	id := p.start(t, containerConfig(n, "c", sleeper()...))
	exited, _ := p.run(t, containerConfig(n, "exited", "true"))
	update := func(id string, r *rt.LinuxContainerResources) error {
		return second(n.Runtime.UpdateContainerResources(n.ctx(), &rt.UpdateContainerResourcesRequest{ContainerId: id, Linux: r}))
	}
	wantCode(t, update(exited.Id, &rt.LinuxContainerResources{CpuShares: 100}), codes.FailedPrecondition, exited.Id)
	wantCode(t, update(id, &rt.LinuxContainerResources{OomScoreAdj: 2000}), codes.InvalidArgument, "oom_score_adj")
	wantCode(t, update(id, &rt.LinuxContainerResources{CpusetCpus: "all"}), codes.InvalidArgument, "cpuset_cpus")
	for what, r := range map[string]*rt.LinuxContainerResources{
		"a file of cgroup v2 under v1":                   {CpuShares: 77, Unified: map[string]string{"memory.high": "100000000"}},
		"a processor that is not there":                  {CpuShares: 77, CpusetCpus: "4000"},
		"a period without a quota that the kernel takes": {CpuShares: 77, CpuPeriod: 10},
	} {
		wantCode(t, update(id, r), codes.InvalidArgument, id)
		if got := n.status(t, id).Resources.GetLinux().GetCpuShares(); got == 77 {
			t.Errorf("%s: refused, and yet the status shows it", what)
		}
		found, err := filepath.Glob("/sys/fs/cgroup/cpu/cri-rules.*/cri/" + p.id + "/" + id + "/cpu.shares")
		if err != nil || len(found) != 1 {
			t.Fatal(found, err)
		}
		if body, err := os.ReadFile(found[0]); err != nil || strings.TrimSpace(string(body)) == "77" {
			t.Errorf("%s: refused, and yet the kernel has %s, %v", what, body, err)
		}
	}
}

// TestVerboseIsJSON: crictl inspect prints what info holds as it is.
func TestVerboseIsJSON(t *testing.T) {
	n := newNode(t)
	p := n.pod(t, podConfig(n, "a"))
	id := p.start(t, containerConfig(n, "c", sleeper()...))
	pod, err := n.Runtime.PodSandboxStatus(n.ctx(), &rt.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	container, err := n.Runtime.ContainerStatus(n.ctx(), &rt.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	img, err := n.Images.ImageStatus(n.ctx(), &rt.ImageStatusRequest{Image: &rt.ImageSpec{Image: image}, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	for what, info := range map[string]map[string]string{"pod": pod.Info, "container": container.Info, "image": img.Info} {
		if !json.Valid([]byte(info["info"])) {
			t.Errorf("%s: got %q, want JSON under the key info", what, info)
		}
	}
	var in struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(container.Info["info"]), &in); err != nil || !exists(fmt.Sprintf("/proc/%d/root/bin/busybox", in.PID)) {
		t.Errorf("pid %d, %v, want the container's process", in.PID, err)
	}
	quiet, err := n.Runtime.ContainerStatus(n.ctx(), &rt.ContainerStatusRequest{ContainerId: id})
	if err != nil || len(quiet.Info) != 0 {
		t.Errorf("not verbose: got %v, %v", quiet.GetInfo(), err)
	}
}
