package rules

import (
	"context"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestEveryCallWithAnIDThatIsUnknown: NotFound is what the kubelet understands; stop
// and remove succeed (TestIdentityAndAnswers).
func TestEveryCallWithAnIDThatIsUnknown(t *testing.T) {
	n := newNode(t)
	r, ctx := n.Runtime, n.ctx()
	calls := func(id string) map[string]error {
		return map[string]error{
			"PodSandboxStatus":          second(r.PodSandboxStatus(ctx, &rt.PodSandboxStatusRequest{PodSandboxId: id})),
			"PodSandboxStats":           second(r.PodSandboxStats(ctx, &rt.PodSandboxStatsRequest{PodSandboxId: id})),
			"UpdatePodSandboxResources": second(r.UpdatePodSandboxResources(ctx, &rt.UpdatePodSandboxResourcesRequest{PodSandboxId: id})),
			"PortForward":               second(r.PortForward(ctx, &rt.PortForwardRequest{PodSandboxId: id, Port: []int32{80}})),
			"CreateContainer": second(r.CreateContainer(ctx, &rt.CreateContainerRequest{
				PodSandboxId: id, Config: containerConfig(n, "c", "true"), SandboxConfig: podConfig(n, "a"),
			})),
			"ContainerStatus":          second(r.ContainerStatus(ctx, &rt.ContainerStatusRequest{ContainerId: id})),
			"ContainerStats":           second(r.ContainerStats(ctx, &rt.ContainerStatsRequest{ContainerId: id})),
			"StartContainer":           second(r.StartContainer(ctx, &rt.StartContainerRequest{ContainerId: id})),
			"UpdateContainerResources": second(r.UpdateContainerResources(ctx, &rt.UpdateContainerResourcesRequest{ContainerId: id, Linux: &rt.LinuxContainerResources{CpuShares: 2}})),
			"ReopenContainerLog":       second(r.ReopenContainerLog(ctx, &rt.ReopenContainerLogRequest{ContainerId: id})),
			"ExecSync":                 second(r.ExecSync(ctx, &rt.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})),
			"Exec":                     second(r.Exec(ctx, &rt.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})),
			"Attach":                   second(r.Attach(ctx, &rt.AttachRequest{ContainerId: id, Stdout: true})),
		}
	}
	for id, want := range map[string]codes.Code{"0123456789abcdef": codes.NotFound, "": codes.InvalidArgument, "../x": codes.NotFound, "*": codes.NotFound} {
		for call, err := range calls(id) {
			if got := status.Code(err); got != want {
				t.Errorf("%s(%q): got %v, want %v", call, id, err, want)
			}
		}
	}
	pods, err := r.ListPodSandbox(ctx, &rt.ListPodSandboxRequest{Filter: &rt.PodSandboxFilter{Id: "0123456789abcdef"}})
	if err != nil || len(pods.Items) != 0 {
		t.Errorf("ListPodSandbox: got %v, %v, want nothing", pods, err)
	}
	containers, err := r.ListContainers(ctx, &rt.ListContainersRequest{Filter: &rt.ContainerFilter{PodSandboxId: "0123456789abcdef"}})
	if err != nil || len(containers.Containers) != 0 {
		t.Errorf("ListContainers: got %v, %v, want nothing", containers, err)
	}
	stats, err := r.ListContainerStats(ctx, &rt.ListContainerStatsRequest{Filter: &rt.ContainerStatsFilter{Id: "0123456789abcdef"}})
	if err != nil || len(stats.Stats) != 0 {
		t.Errorf("ListContainerStats: got %v, %v, want nothing", stats, err)
	}
}

// TestUnimplementedOnPurpose: the kubelet takes the code for a missing feature, so that
// nothing else may answer it.
func TestUnimplementedOnPurpose(t *testing.T) {
	n := newNode(t)
	r, ctx := n.Runtime, n.ctx()
	first := func(recv func() error, err error) error {
		if err != nil {
			return err
		}
		return recv()
	}
	metrics, err := r.StreamPodSandboxMetrics(ctx, &rt.StreamPodSandboxMetricsRequest{})
	for call, err := range map[string]error{
		"CheckpointContainer":     second(r.CheckpointContainer(ctx, &rt.CheckpointContainerRequest{})),
		"CheckpointPod":           second(r.CheckpointPod(ctx, &rt.CheckpointPodRequest{})),
		"RestorePod":              second(r.RestorePod(ctx, &rt.RestorePodRequest{})),
		"ListMetricDescriptors":   second(r.ListMetricDescriptors(ctx, &rt.ListMetricDescriptorsRequest{})),
		"ListPodSandboxMetrics":   second(r.ListPodSandboxMetrics(ctx, &rt.ListPodSandboxMetricsRequest{})),
		"StreamPodSandboxMetrics": first(func() error { return second(metrics.Recv()) }, err),
	} {
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: got %v, want Unimplemented", call, err)
		}
	}
	cidr := &rt.RuntimeConfig{NetworkConfig: &rt.NetworkConfig{PodCidr: "10.200.0.0/24"}}
	for call, err := range map[string]error{
		"Version":                second(r.Version(ctx, &rt.VersionRequest{})),
		"UpdateRuntimeConfig":    second(r.UpdateRuntimeConfig(ctx, &rt.UpdateRuntimeConfigRequest{RuntimeConfig: cidr})),
		"UpdateRuntimeConfig{}":  second(r.UpdateRuntimeConfig(ctx, &rt.UpdateRuntimeConfigRequest{})),
		"Status":                 second(r.Status(ctx, &rt.StatusRequest{Verbose: true})),
		"RuntimeConfig":          second(r.RuntimeConfig(ctx, &rt.RuntimeConfigRequest{})),
		"ListPodSandboxStats":    second(r.ListPodSandboxStats(ctx, &rt.ListPodSandboxStatsRequest{})),
		"ListContainerStats":     second(r.ListContainerStats(ctx, &rt.ListContainerStatsRequest{})),
		"ImageFsInfo":            second(n.Images.ImageFsInfo(ctx, &rt.ImageFsInfoRequest{})),
		"ListImages with filter": second(n.Images.ListImages(ctx, &rt.ListImagesRequest{Filter: &rt.ImageFilter{Image: &rt.ImageSpec{Image: "nothing:1"}}})),
	} {
		if err != nil {
			t.Errorf("%s: %v", call, err)
		}
	}
}

// TestEventsEndWithTheirClient: a subscriber that goes away is forgotten, and one that
// is there when the daemon ends is told.
func TestEventsEndWithTheirClient(t *testing.T) {
	n := newNode(t)
	for range 20 {
		ctx, cancel := context.WithCancel(n.ctx())
		stream, err := n.Runtime.GetContainerEvents(ctx, &rt.GetEventsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, err := stream.Recv(); status.Code(err) != codes.Canceled {
			t.Errorf("got %v, want the end", err)
		}
	}
	p := n.pod(t, podConfig(n, "a"))
	if s, _ := p.run(t, containerConfig(n, "c", "true")); s.ExitCode != 0 {
		t.Errorf("exit code %d", s.ExitCode)
	}
}
