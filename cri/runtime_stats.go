package cri

import (
	"context"

	"google.golang.org/grpc"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

func (s *runtimeService) ContainerStats(ctx context.Context, r *pb.ContainerStatsRequest) (*pb.ContainerStatsResponse, error) {
	id, err := decodeID("container_id", r.GetContainerId())
	if err != nil {
		return nil, err
	}
	stats, err := s.deps.Runtime.ContainerStats(ctx, id)
	if err != nil {
		return nil, err
	}
	return &pb.ContainerStatsResponse{Stats: encodeContainerStats(stats)}, nil
}

// containerStats is the one list behind the two calls below.
func (s *runtimeService) containerStats(ctx context.Context, f *pb.ContainerStatsFilter) ([]*pb.ContainerStats, error) {
	stats, err := s.deps.Runtime.ListContainerStats(ctx, sandbox.ContainerFilter{
		ID: sandbox.ID(f.GetId()), Pod: sandbox.ID(f.GetPodSandboxId()), Labels: f.GetLabelSelector(),
	})
	return convert(stats, encodeContainerStats), err
}

func (s *runtimeService) ListContainerStats(ctx context.Context, r *pb.ListContainerStatsRequest) (*pb.ListContainerStatsResponse, error) {
	stats, err := s.containerStats(ctx, r.GetFilter())
	return &pb.ListContainerStatsResponse{Stats: stats}, err
}

func (s *runtimeService) StreamContainerStats(r *pb.StreamContainerStatsRequest, out grpc.ServerStreamingServer[pb.StreamContainerStatsResponse]) error {
	stats, err := s.containerStats(out.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(stats, func(batch []*pb.ContainerStats) error {
		return out.Send(&pb.StreamContainerStatsResponse{ContainerStats: batch})
	})
}

func (s *runtimeService) PodSandboxStats(ctx context.Context, r *pb.PodSandboxStatsRequest) (*pb.PodSandboxStatsResponse, error) {
	id, err := decodeID("pod_sandbox_id", r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	stats, err := s.deps.Runtime.PodStats(ctx, id)
	if err != nil {
		return nil, err
	}
	return &pb.PodSandboxStatsResponse{Stats: encodePodStats(stats)}, nil
}

// podStats is the one list behind the two calls below.
func (s *runtimeService) podStats(ctx context.Context, f *pb.PodSandboxStatsFilter) ([]*pb.PodSandboxStats, error) {
	stats, err := s.deps.Runtime.ListPodStats(ctx, sandbox.PodFilter{ID: sandbox.ID(f.GetId()), Labels: f.GetLabelSelector()})
	return convert(stats, encodePodStats), err
}

func (s *runtimeService) ListPodSandboxStats(ctx context.Context, r *pb.ListPodSandboxStatsRequest) (*pb.ListPodSandboxStatsResponse, error) {
	stats, err := s.podStats(ctx, r.GetFilter())
	return &pb.ListPodSandboxStatsResponse{Stats: stats}, err
}

func (s *runtimeService) StreamPodSandboxStats(r *pb.StreamPodSandboxStatsRequest, out grpc.ServerStreamingServer[pb.StreamPodSandboxStatsResponse]) error {
	stats, err := s.podStats(out.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(stats, func(batch []*pb.PodSandboxStats) error {
		return out.Send(&pb.StreamPodSandboxStatsResponse{PodSandboxStats: batch})
	})
}
