package cri

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// These six calls are switched off. The kubelet takes the code for "this runtime does
// not have it" and goes on without; no other call may answer so.

var (
	errCheckpoint = fmt.Errorf("checkpoints: %w", errdef.ErrUnimplemented)
	errMetrics    = fmt.Errorf("pod metrics: %w", errdef.ErrUnimplemented)
)

func (*runtimeService) CheckpointContainer(context.Context, *pb.CheckpointContainerRequest) (*pb.CheckpointContainerResponse, error) {
	return nil, errCheckpoint
}

func (*runtimeService) CheckpointPod(context.Context, *pb.CheckpointPodRequest) (*pb.CheckpointPodResponse, error) {
	return nil, errCheckpoint
}

func (*runtimeService) RestorePod(context.Context, *pb.RestorePodRequest) (*pb.RestorePodResponse, error) {
	return nil, errCheckpoint
}

func (*runtimeService) ListMetricDescriptors(context.Context, *pb.ListMetricDescriptorsRequest) (*pb.ListMetricDescriptorsResponse, error) {
	return nil, errMetrics
}

func (*runtimeService) ListPodSandboxMetrics(context.Context, *pb.ListPodSandboxMetricsRequest) (*pb.ListPodSandboxMetricsResponse, error) {
	return nil, errMetrics
}

func (*runtimeService) StreamPodSandboxMetrics(*pb.StreamPodSandboxMetricsRequest, grpc.ServerStreamingServer[pb.StreamPodSandboxMetricsResponse]) error {
	return errMetrics
}
