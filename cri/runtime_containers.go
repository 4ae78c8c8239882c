package cri

import (
	"context"

	"google.golang.org/grpc"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CreateContainer leaves sandbox_config aside: it repeats what RunPodSandbox said, and
// the pod's own record is what the pod was made from.
func (s *runtimeService) CreateContainer(ctx context.Context, r *pb.CreateContainerRequest) (*pb.CreateContainerResponse, error) {
	pod, err := decodeID("pod_sandbox_id", r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	config, err := decodeContainer(r.GetConfig())
	if err != nil {
		return nil, err
	}
	id, err := s.deps.Runtime.CreateContainer(ctx, pod, config)
	return &pb.CreateContainerResponse{ContainerId: string(id)}, err
}

func (s *runtimeService) StartContainer(ctx context.Context, r *pb.StartContainerRequest) (*pb.StartContainerResponse, error) {
	id, err := decodeID("container_id", r.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &pb.StartContainerResponse{}, s.deps.Runtime.StartContainer(ctx, id)
}

func (s *runtimeService) StopContainer(ctx context.Context, r *pb.StopContainerRequest) (*pb.StopContainerResponse, error) {
	id, err := decodeID("container_id", r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if r.GetTimeout() < 0 {
		return nil, field("timeout").refuse("%d is negative; 0 kills at once", r.GetTimeout())
	}
	return &pb.StopContainerResponse{}, s.deps.Runtime.StopContainer(ctx, id, seconds(r.GetTimeout()))
}

func (s *runtimeService) RemoveContainer(ctx context.Context, r *pb.RemoveContainerRequest) (*pb.RemoveContainerResponse, error) {
	id, err := decodeID("container_id", r.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &pb.RemoveContainerResponse{}, s.deps.Runtime.RemoveContainer(ctx, id)
}

func (s *runtimeService) ContainerStatus(ctx context.Context, r *pb.ContainerStatusRequest) (*pb.ContainerStatusResponse, error) {
	id, err := decodeID("container_id", r.GetContainerId())
	if err != nil {
		return nil, err
	}
	c, err := s.deps.Runtime.Container(id)
	if err != nil {
		return nil, err
	}
	out := &pb.ContainerStatusResponse{Status: containerStatus(c)}
	if r.GetVerbose() {
		info, err := s.deps.Runtime.ContainerInfo(ctx, c.ID)
		if err != nil {
			return nil, err
		}
		if out.Info, err = encodeInfo(info); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// containers is the one list behind ListContainers and StreamContainers.
func (s *runtimeService) containers(f *pb.ContainerFilter) ([]*pb.Container, error) {
	filter, err := decodeContainerFilter(f)
	if err != nil {
		return nil, err
	}
	return convert(s.deps.Runtime.Containers(filter), containerItem), nil
}

func (s *runtimeService) ListContainers(_ context.Context, r *pb.ListContainersRequest) (*pb.ListContainersResponse, error) {
	items, err := s.containers(r.GetFilter())
	return &pb.ListContainersResponse{Containers: items}, err
}

func (s *runtimeService) StreamContainers(r *pb.StreamContainersRequest, out grpc.ServerStreamingServer[pb.StreamContainersResponse]) error {
	items, err := s.containers(r.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(items, func(batch []*pb.Container) error {
		return out.Send(&pb.StreamContainersResponse{Containers: batch})
	})
}

// UpdateContainerResources takes a missing linux message for "leave all as it is".
func (s *runtimeService) UpdateContainerResources(ctx context.Context, r *pb.UpdateContainerResourcesRequest) (*pb.UpdateContainerResourcesResponse, error) {
	id, err := decodeID("container_id", r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if r.GetWindows() != nil {
		return nil, field("windows").refuse("is set, this is a Linux node")
	}
	resources, err := decodeResources("linux.", r.GetLinux())
	if err != nil {
		return nil, err
	}
	err = s.deps.Runtime.UpdateContainerResources(ctx, id, resources, copyMap(r.GetAnnotations()))
	return &pb.UpdateContainerResourcesResponse{}, err
}

func (s *runtimeService) ReopenContainerLog(ctx context.Context, r *pb.ReopenContainerLogRequest) (*pb.ReopenContainerLogResponse, error) {
	id, err := decodeID("container_id", r.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &pb.ReopenContainerLogResponse{}, s.deps.Runtime.ReopenContainerLog(ctx, id)
}
