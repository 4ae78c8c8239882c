package cri

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

// TestFrozen sends the same as the message itself would, also within another message and
// when it cannot be sent at all.
func TestFrozen(t *testing.T) {
	m := &pb.ContainerStatus{
		Id: "c", ExitCode: 7, Labels: map[string]string{"a": "b"}, Mounts: []*pb.Mount{{HostPath: "/x"}}, Reason: "Error",
	}
	body, err := proto.Marshal(&pb.PodSandboxStatusResponse{ContainersStatuses: []*pb.ContainerStatus{frozen(m), frozen(m)}, Timestamp: 5})
	if err != nil {
		t.Fatal(err)
	}
	var got pb.PodSandboxStatusResponse
	if err := proto.Unmarshal(body, &got); err != nil {
		t.Fatal(err)
	}
	want := &pb.PodSandboxStatusResponse{ContainersStatuses: []*pb.ContainerStatus{m, m}, Timestamp: 5}
	if !proto.Equal(&got, want) {
		t.Errorf("got %v\nwant %v", &got, want)
	}
	if _, err := proto.Marshal(frozen(&pb.Container{Id: "\xff"})); err == nil {
		t.Error("what is not text was encoded")
	}
}

// views makes n pods with a container each, as a kubelet labels them.
func views(n int) (pods []*sandbox.PodView, containers []*sandbox.ContainerView) {
	for i := range n {
		id := sandbox.ID(fmt.Sprintf("%064x", i))
		labels := map[string]string{
			"io.kubernetes.pod.name": fmt.Sprint("pod-", i), "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": string(id[:36]),
		}
		p := &sandbox.PodView{ID: id, State: sandbox.PodReady, CreatedAt: time.Unix(1, 0)}
		p.Config.Metadata, p.Config.Labels = sandbox.Metadata{Name: fmt.Sprint("pod-", i), Namespace: "default", UID: string(id[:36])}, labels
		c := &sandbox.ContainerView{ID: id, Pod: id, State: sandbox.ContainerRunning, ImageID: "sha256:" + string(id), CreatedAt: time.Unix(1, 0)}
		c.Config.Metadata, c.Config.Labels = sandbox.ContainerMetadata{Name: "c"}, labels
		c.Config.Annotations = map[string]string{"io.kubernetes.container.hash": "abcdef", "io.kubernetes.container.restartCount": "0"}
		pods, containers = append(pods, p), append(containers, c)
	}
	return pods, containers
}

func BenchmarkAnswers(b *testing.B) {
	pods, containers := views(100)
	var stats []sandbox.ContainerStats
	nano, free := uint64(5), uint64(6)
	for _, c := range containers {
		stats = append(stats, sandbox.ContainerStats{Container: c, Rootfs: sandbox.FilesystemUsage{At: time.Unix(1, 0), Mountpoint: "/var/lib/x"}, Stats: &sandbox.Stats{
			At: time.Unix(200, 0), CPU: sandbox.CPUStats{UsageCoreNanoSeconds: 7e9, UsageNanoCores: &nano},
			Memory: sandbox.MemoryStats{WorkingSet: 1e6, Usage: 2e6, RSS: 3e6, PageFaults: 400, Available: &free}, Swap: &sandbox.SwapStats{},
		}})
	}
	for name, answer := range map[string]func() proto.Message{
		"ListPodSandbox": func() proto.Message { return &pb.ListPodSandboxResponse{Items: convert(pods, podItem)} },
		"ListContainers": func() proto.Message {
			return &pb.ListContainersResponse{Containers: convert(containers, containerItem)}
		},
		"ContainerStatus": func() proto.Message { return &pb.ContainerStatusResponse{Status: containerStatus(containers[0])} },
		"ListContainerStats": func() proto.Message {
			return &pb.ListContainerStatsResponse{Stats: convert(stats, encodeContainerStats)}
		},
		"no memo": func() proto.Message {
			return &pb.ListContainersResponse{Containers: convert(containers, encodeContainer)}
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := proto.Marshal(answer()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
