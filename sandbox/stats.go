package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/internal/linux/namespace"
)

// sampler keeps the last readings of one cgroup. All callers share a reading that is
// at most sampleMaxAge old; nothing is read when nobody asks.
type sampler struct {
	mu    sync.Mutex // guards all below; held while one cgroup is read
	group *cgroup.Group
	last  cgroup.Stats
	rate  *uint64 // nanocores between the last two readings that were far enough apart
	base  cgroup.Stats
}

// rateSpan is the least time between two readings of which a rate is made: the
// kernel's counters move in ticks.
const rateSpan = 500 * time.Millisecond

// read returns a reading that is fresh enough, and the CPU rate if it is known.
func (m *sampler) read(h *cgroup.Host, path cgroup.Path) (cgroup.Stats, *uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.last.Time.IsZero() && time.Since(m.last.Time) < sampleMaxAge {
		return m.last, m.rate, nil
	}
	if m.group == nil {
		g, err := h.Open(path)
		if err != nil {
			return cgroup.Stats{}, nil, err
		}
		m.group = g
	}
	now, err := m.group.Stats()
	if err != nil {
		m.forget()
		return cgroup.Stats{}, nil, err
	}
	if span := now.Time.Sub(m.base.Time); !m.base.Time.IsZero() && span >= rateSpan && now.CPU.Usage >= m.base.CPU.Usage {
		rate := uint64(float64(now.CPU.Usage-m.base.CPU.Usage) / span.Seconds())
		m.rate, m.base = &rate, now
	} else if m.base.Time.IsZero() {
		m.base = now
	}
	m.last = now
	return now, m.rate, nil
}

// forget closes the descriptors of a cgroup that is gone.
func (m *sampler) forget() {
	if m.group != nil {
		m.group.Close()
	}
	m.group, m.last, m.base, m.rate = nil, cgroup.Stats{}, cgroup.Stats{}, nil
}

func (m *sampler) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget()
}

// statsOf translates a reading.
func statsOf(c cgroup.Stats, rate *uint64) Stats {
	s := Stats{
		At:  c.Time,
		CPU: CPUStats{UsageCoreNanoSeconds: c.CPU.Usage, UsageNanoCores: rate, PSI: psi(c.CPU.PSI)},
		Memory: MemoryStats{
			WorkingSet: c.Memory.WorkingSet, Usage: c.Memory.Usage, RSS: c.Memory.RSS,
			PageFaults: c.Memory.PageFaults, MajorPageFaults: c.Memory.MajorFault, PSI: psi(c.Memory.PSI),
		},
		IO: psi(c.IO.PSI), Processes: c.Pids.Current,
	}
	if c.Memory.Limit != 0 {
		s.Memory.Available = &c.Memory.Available
	}
	if c.Swap.Known {
		s.Swap = &SwapStats{Usage: c.Swap.Usage}
		if c.Swap.Limit != 0 {
			s.Swap.Available = &c.Swap.Available
		}
	}
	return s
}

func psi(p *cgroup.Pressure) *PSI {
	if p == nil {
		return nil
	}
	line := func(l cgroup.PressureLine) PSILine {
		return PSILine{Avg10: l.Avg10, Avg60: l.Avg60, Avg300: l.Avg300, TotalMicros: l.Total}
	}
	return &PSI{Some: line(p.Some), Full: line(p.Full)}
}

// ContainerStats reads one container. One that does not run has a writable layer only.
func (s *Service) ContainerStats(_ context.Context, id ID) (ContainerStats, error) {
	c, err := s.containers.get(id)
	if err != nil {
		return ContainerStats{}, err
	}
	return s.containerStats(c)
}

func (s *Service) containerStats(c *container) (ContainerStats, error) {
	v := c.view()
	out := ContainerStats{Container: v, Stats: Stats{At: time.Now()}}
	if v.State == ContainerRunning {
		reading, rate, err := c.usage.read(s.Cgroups, cgroup.Path(v.CgroupPath))
		if err != nil && !errors.Is(err, errdef.ErrNotFound) {
			return out, fmt.Errorf("stats of container %s: %w", c.id, err)
		}
		if err == nil {
			out.Stats = statsOf(reading, rate)
		}
	}
	bytes, inodes, err := s.Snapshots.Usage(string(c.id))
	// A layer that is being counted for the first time is known at the next call.
	if err != nil && !errors.Is(err, errdef.ErrNotFound) && !errors.Is(err, errdef.ErrRetry) {
		return out, fmt.Errorf("writable layer of container %s: %w", c.id, err)
	}
	if err == nil {
		out.Stats.Rootfs = &FilesystemUsage{At: out.Stats.At, Mountpoint: s.writablePath, Bytes: bytes, Inodes: inodes}
	}
	return out, nil
}

// ListContainerStats reads the containers that f selects. One that vanishes or cannot
// be read meanwhile is left out: it costs itself only.
func (s *Service) ListContainerStats(_ context.Context, f ContainerFilter) ([]ContainerStats, error) {
	var out []ContainerStats
	for _, c := range s.selected(f) {
		if st, err := s.containerStats(c); err == nil {
			out = append(out, st)
		}
	}
	slices.SortFunc(out, func(a, b ContainerStats) int { return a.Container.CreatedAt.Compare(b.Container.CreatedAt) })
	return out, nil
}

// PodStats reads a pod: its cgroup, its network and its containers.
func (s *Service) PodStats(ctx context.Context, id ID) (PodStats, error) {
	p, err := s.pods.get(id)
	if err != nil {
		return PodStats{}, err
	}
	return s.podStats(ctx, p)
}

func (s *Service) podStats(_ context.Context, p *pod) (PodStats, error) {
	out := PodStats{Pod: p.view(), Stats: Stats{At: time.Now()}}
	r := p.record()
	if r.Phase != PodRunning {
		return out, nil
	}
	reading, rate, err := p.usage.read(s.Cgroups, cgroup.Path(r.Parent))
	if err != nil && !errors.Is(err, errdef.ErrNotFound) {
		return out, fmt.Errorf("stats of pod %s: %w", p.id, err)
	}
	if err == nil {
		out.Stats = statsOf(reading, rate)
	}
	if ns := r.netNS(); ns != "" && !r.onHostNetwork() {
		if out.Stats.Network, err = interfaces(ns); err != nil {
			return out, fmt.Errorf("network of pod %s: %w", p.id, err)
		}
	}
	for _, c := range s.containersOf(p.id) {
		if !c.running() {
			continue
		}
		if st, err := s.containerStats(c); err == nil {
			out.Stats.Containers = append(out.Stats.Containers, st)
		}
	}
	return out, nil
}

// ListPodStats reads the pods that f selects, leaving out those that cannot be read.
func (s *Service) ListPodStats(ctx context.Context, f PodFilter) ([]PodStats, error) {
	var out []PodStats
	for _, v := range s.Pods(f) {
		if st, err := s.PodStats(ctx, v.ID); err == nil {
			out = append(out, st)
		}
	}
	return out, nil
}

// interfaces reads the counters of a network namespace, eth0 first, loopback left out.
func interfaces(ns string) ([]InterfaceStats, error) {
	var out []InterfaceStats
	err := namespace.Do(ns, namespace.Net, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			a := l.Attrs()
			if a.Name == "lo" || a.Statistics == nil {
				continue
			}
			st := a.Statistics
			out = append(out, InterfaceStats{
				Name: a.Name, RxBytes: st.RxBytes, RxErrors: st.RxErrors, TxBytes: st.TxBytes, TxErrors: st.TxErrors,
				RxPackets: st.RxPackets, TxPackets: st.TxPackets, RxDrops: st.RxDropped, TxDrops: st.TxDropped,
			})
		}
		return nil
	})
	slices.SortStableFunc(out, func(a, b InterfaceStats) int { return order(a.Name) - order(b.Name) })
	return out, err
}

func order(name string) int {
	if name == "eth0" {
		return 0
	}
	return 1
}
