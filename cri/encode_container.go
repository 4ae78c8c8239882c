package cri

import (
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

func encodeContainerMetadata(m sandbox.ContainerMetadata) *pb.ContainerMetadata {
	return &pb.ContainerMetadata{Name: m.Name, Attempt: m.Attempt}
}

// encodeContainerImage shows people a name; identity is image_id beside it.
func encodeContainerImage(c *sandbox.ContainerView) *pb.ImageSpec {
	return &pb.ImageSpec{
		Image:              c.ImageName,
		UserSpecifiedImage: c.Config.UserSpecifiedImage,
		Annotations:        c.Config.ImageAnnotations,
	}
}

// encodeContainer makes the item of a list.
func encodeContainer(c *sandbox.ContainerView) *pb.Container {
	return &pb.Container{
		Id:           string(c.ID),
		PodSandboxId: string(c.Pod),
		Metadata:     encodeContainerMetadata(c.Config.Metadata),
		Image:        encodeContainerImage(c),
		ImageRef:     c.ImageRef,
		ImageId:      c.ImageID,
		State:        pb.ContainerState(c.State),
		CreatedAt:    nanos(c.CreatedAt),
		Labels:       c.Config.Labels,
		Annotations:  c.Config.Annotations,
	}
}

// encodeContainerAttributes makes what goes with a container's statistics.
func encodeContainerAttributes(c *sandbox.ContainerView) *pb.ContainerAttributes {
	return &pb.ContainerAttributes{
		Id:          string(c.ID),
		Metadata:    encodeContainerMetadata(c.Config.Metadata),
		Labels:      c.Config.Labels,
		Annotations: c.Config.Annotations,
	}
}

// encodeContainerStatus fills everything: the kubelet refuses a status without id,
// name, creation time, image or image_ref, and its image collection reads the mounts.
func encodeContainerStatus(c *sandbox.ContainerView) *pb.ContainerStatus {
	out := &pb.ContainerStatus{
		Id:          string(c.ID),
		Metadata:    encodeContainerMetadata(c.Config.Metadata),
		State:       pb.ContainerState(c.State),
		CreatedAt:   nanos(c.CreatedAt),
		StartedAt:   nanos(c.StartedAt),
		FinishedAt:  nanos(c.FinishedAt),
		ExitCode:    c.ExitCode,
		Image:       encodeContainerImage(c),
		ImageRef:    c.ImageRef,
		ImageId:     c.ImageID,
		Reason:      c.Reason,
		Message:     c.Message,
		Labels:      c.Config.Labels,
		Annotations: c.Config.Annotations,
		Mounts:      convert(c.Mounts, encodeMount),
		LogPath:     c.LogPath,
		Resources:   &pb.ContainerResources{Linux: encodeResources(c.Resources)},
		StopSignal:  encodeSignal(c.StopSignal),
	}
	if c.User != nil {
		out.User = &pb.ContainerUser{Linux: &pb.LinuxContainerUser{
			Uid: c.User.UID, Gid: c.User.GID, SupplementalGroups: c.User.Groups,
		}}
	}
	return out
}

func encodeMount(m sandbox.Mount) *pb.Mount {
	out := &pb.Mount{
		ContainerPath:     m.ContainerPath,
		HostPath:          m.HostPath,
		Readonly:          m.ReadOnly,
		RecursiveReadOnly: m.RecursiveReadOnly,
		SelinuxRelabel:    m.SELinuxRelabel,
		Propagation:       pb.MountPropagation(m.Propagation),
		UidMappings:       encodeIDMaps(m.UIDMappings),
		GidMappings:       encodeIDMaps(m.GIDMappings),
		ImageSubPath:      m.ImageSubPath,
		MountOptions:      m.Options,
	}
	if m.Image != "" {
		out.Image = &pb.ImageSpec{Image: m.Image, UserSpecifiedImage: m.ImageUserRef, ImageRef: m.ImageRef}
	}
	return out
}

func encodeResources(r sandbox.Resources) *pb.LinuxContainerResources {
	out := &pb.LinuxContainerResources{
		CpuPeriod:              r.CPUPeriod,
		CpuQuota:               r.CPUQuota,
		CpuShares:              r.CPUShares,
		MemoryLimitInBytes:     r.MemoryLimit,
		MemorySwapLimitInBytes: r.MemorySwapLimit,
		OomScoreAdj:            r.OOMScoreAdj,
		CpusetCpus:             r.CpusetCPUs,
		CpusetMems:             r.CpusetMems,
		Unified:                r.Unified,
	}
	for _, h := range r.HugepageLimits {
		out.HugepageLimits = append(out.HugepageLimits, &pb.HugepageLimit{PageSize: h.PageSize, Limit: h.Limit})
	}
	return out
}
