package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
)

// ContainerStats reads one container. One that does not run has a writable layer only.
func (s *Service) ContainerStats(_ context.Context, id ID) (ContainerStats, error) {
	c, err := s.containers.get(id)
	if err != nil {
		return ContainerStats{}, err
	}
	return s.containerStats(shown{c, c.view()})
}

func (s *Service) containerStats(c shown) (ContainerStats, error) {
	out := ContainerStats{Container: c.view}
	if c.view.State == ContainerRunning {
		var err error
		out.Stats, err = c.usage.read(s.Cgroups, cgroup.Path(c.view.CgroupPath))
		if err != nil && !errors.Is(err, errdef.ErrNotFound) {
			return out, fmt.Errorf("stats of container %s: %w", c.id, err)
		}
	}
	if out.Stats == nil {
		out.Stats = &Stats{At: time.Now()}
	}
	bytes, inodes, err := s.Snapshots.Usage(string(c.id))
	// A layer that is being counted for the first time is known at the next call.
	if err != nil && !errors.Is(err, errdef.ErrNotFound) && !errors.Is(err, errdef.ErrRetry) {
		return out, fmt.Errorf("writable layer of container %s: %w", c.id, err)
	}
	if err == nil {
		out.Rootfs = FilesystemUsage{At: out.Stats.At, Mountpoint: s.writablePath, Bytes: bytes, Inodes: inodes}
	}
	return out, nil
}

// ListContainerStats reads the containers that f selects, oldest first. One that
// vanishes or cannot be read meanwhile is left out: it costs itself only.
func (s *Service) ListContainerStats(_ context.Context, f ContainerFilter) ([]ContainerStats, error) {
	return s.listStats(s.selected(f)), nil
}

func (s *Service) listStats(list []shown) []ContainerStats {
	out := make([]ContainerStats, 0, len(list))
	for _, c := range list {
		if st, err := s.containerStats(c); err == nil {
			out = append(out, st)
		}
	}
	return out
}

// PodStats reads a pod: its cgroup, its network and its running containers.
func (s *Service) PodStats(_ context.Context, id ID) (PodStats, error) {
	p, err := s.pods.get(id)
	if err != nil {
		return PodStats{}, err
	}
	return s.podStats(p)
}

func (s *Service) podStats(p *pod) (PodStats, error) {
	v := p.view()
	out := PodStats{Pod: v}
	if v.of.Phase == PodRunning {
		var err error
		out.Stats, err = p.usage.read(s.Cgroups, v.of)
		if err != nil && !errors.Is(err, errdef.ErrNotFound) {
			return out, fmt.Errorf("stats of pod %s: %w", p.id, err)
		}
		running := ContainerRunning
		out.Containers = s.listStats(s.selected(ContainerFilter{Pod: p.id, State: &running}))
	}
	if out.Stats == nil {
		out.Stats = &Stats{At: time.Now()}
	}
	return out, nil
}

// ListPodStats reads the pods that f selects, leaving out those that cannot be read.
func (s *Service) ListPodStats(ctx context.Context, f PodFilter) ([]PodStats, error) {
	pods := s.Pods(f)
	out := make([]PodStats, 0, len(pods))
	for _, v := range pods {
		if st, err := s.PodStats(ctx, v.ID); err == nil {
			out = append(out, st)
		}
	}
	return out, nil
}
