package cri

import (
	"context"
	"time"

	"google.golang.org/grpc"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

func (s *runtimeService) RunPodSandbox(ctx context.Context, r *pb.RunPodSandboxRequest) (*pb.RunPodSandboxResponse, error) {
	config, err := decodePod(r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	id, err := s.deps.Runtime.RunPod(ctx, config)
	return &pb.RunPodSandboxResponse{PodSandboxId: string(id)}, err
}

func (s *runtimeService) StopPodSandbox(ctx context.Context, r *pb.StopPodSandboxRequest) (*pb.StopPodSandboxResponse, error) {
	id, err := decodeID("pod_sandbox_id", r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	return &pb.StopPodSandboxResponse{}, s.deps.Runtime.StopPod(ctx, id)
}

func (s *runtimeService) RemovePodSandbox(ctx context.Context, r *pb.RemovePodSandboxRequest) (*pb.RemovePodSandboxResponse, error) {
	id, err := decodeID("pod_sandbox_id", r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	return &pb.RemovePodSandboxResponse{}, s.deps.Runtime.RemovePod(ctx, id)
}

// PodSandboxStatus fills timestamp and containers_statuses both: one alone empties the
// pod in a kubelet with evented PLEG (kubernetes#129818). The time is taken before the
// state, so that no event after it is taken for older.
func (s *runtimeService) PodSandboxStatus(ctx context.Context, r *pb.PodSandboxStatusRequest) (*pb.PodSandboxStatusResponse, error) {
	id, err := decodeID("pod_sandbox_id", r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	now := time.Now()
	pod, err := s.deps.Runtime.Pod(id)
	if err != nil {
		return nil, err
	}
	out := &pb.PodSandboxStatusResponse{
		Status:             partsOfPod(pod).status,
		ContainersStatuses: convert(s.deps.Runtime.Containers(sandbox.ContainerFilter{Pod: pod.ID}), containerStatus),
		Timestamp:          nanos(now),
	}
	if r.GetVerbose() {
		info, err := s.deps.Runtime.PodInfo(ctx, pod.ID)
		if err != nil {
			return nil, err
		}
		if out.Info, err = encodeInfo(info); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// pods is the one list behind ListPodSandbox and StreamPodSandboxes.
func (s *runtimeService) pods(f *pb.PodSandboxFilter) ([]*pb.PodSandbox, error) {
	filter, err := decodePodFilter(f)
	if err != nil {
		return nil, err
	}
	return convert(s.deps.Runtime.Pods(filter), podItem), nil
}

func (s *runtimeService) ListPodSandbox(_ context.Context, r *pb.ListPodSandboxRequest) (*pb.ListPodSandboxResponse, error) {
	items, err := s.pods(r.GetFilter())
	return &pb.ListPodSandboxResponse{Items: items}, err
}

func (s *runtimeService) StreamPodSandboxes(r *pb.StreamPodSandboxesRequest, out grpc.ServerStreamingServer[pb.StreamPodSandboxesResponse]) error {
	items, err := s.pods(r.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(items, func(batch []*pb.PodSandbox) error {
		return out.Send(&pb.StreamPodSandboxesResponse{PodSandboxes: batch})
	})
}

func (s *runtimeService) UpdatePodSandboxResources(ctx context.Context, r *pb.UpdatePodSandboxResourcesRequest) (*pb.UpdatePodSandboxResourcesResponse, error) {
	id, err := decodeID("pod_sandbox_id", r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	overhead, err := decodeOptionalResources("overhead.", r.GetOverhead())
	if err != nil {
		return nil, err
	}
	resources, err := decodeOptionalResources("resources.", r.GetResources())
	if err != nil {
		return nil, err
	}
	return &pb.UpdatePodSandboxResourcesResponse{}, s.deps.Runtime.UpdatePodResources(ctx, id, overhead, resources)
}
