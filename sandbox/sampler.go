package sandbox

import (
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/internal/linux/netdev"
)

// sampler keeps the last reading of one cgroup, for all who ask within sampleMaxAge.
// Nothing is read when nobody asks.
type sampler struct {
	mu    sync.Mutex // guards all below; held while one cgroup is read
	group *cgroup.Group
	last  *Stats // nil: none yet
	base  cpuReading
}

// cpuReading is what a rate is made from.
type cpuReading struct {
	at    time.Time
	usage uint64
}

// rateSpan is the least time between two readings of which a rate is made: the
// kernel's counters move in ticks.
const rateSpan = 500 * time.Millisecond

// read returns a reading that is fresh enough; errdef.ErrNotFound when the cgroup is gone.
func (m *sampler) read(h *cgroup.Host, path cgroup.Path) (*Stats, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fresh() {
		return m.last, nil
	}
	now, err := m.sample(h, path)
	if err != nil {
		return nil, err
	}
	m.last = now
	return now, nil
}

func (m *sampler) fresh() bool { return m.last != nil && time.Since(m.last.At) < sampleMaxAge }

// sample reads the cgroup. The lock is held.
func (m *sampler) sample(h *cgroup.Host, path cgroup.Path) (*Stats, error) {
	if m.group == nil {
		g, err := h.Open(path)
		if err != nil {
			return nil, err
		}
		m.group = g
	}
	reading, err := m.group.Stats()
	if err != nil {
		m.forget()
		return nil, err
	}
	now := statsOf(&reading)
	now.CPU.UsageNanoCores = m.rate(reading.Time, reading.CPU.Usage)
	return now, nil
}

// rate is in nanocores, since the last reading that was far enough from the present one.
// Until there are two such, it is the former rate.
func (m *sampler) rate(at time.Time, usage uint64) *uint64 {
	span := at.Sub(m.base.at)
	switch {
	case m.base.at.IsZero():
		m.base = cpuReading{at, usage}
	case span >= rateSpan && usage >= m.base.usage:
		rate := uint64(float64(usage-m.base.usage) / span.Seconds())
		m.base = cpuReading{at, usage}
		return &rate
	}
	if m.last == nil {
		return nil
	}
	return m.last.CPU.UsageNanoCores
}

// forget closes the descriptors of a cgroup that is gone.
func (m *sampler) forget() {
	if m.group != nil {
		m.group.Close()
	}
	m.group, m.last, m.base = nil, nil, cpuReading{}
}

func (m *sampler) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget()
}

// podSampler is the sampler of a pod, which has a network besides. The descriptor of its
// counters would keep the pod's network namespace, and with it its links, alive: after
// close nothing is opened again.
type podSampler struct {
	sampler
	net    *netdev.Table
	closed bool
}

func (m *podSampler) read(h *cgroup.Host, r *podRecord) (*Stats, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errdef.ErrNotFound
	}
	if m.fresh() {
		return m.last, nil
	}
	now, err := m.sample(h, cgroup.Path(r.Parent))
	// The network tells also when the cgroup is gone.
	if errors.Is(err, errdef.ErrNotFound) {
		now, err = &Stats{At: time.Now()}, nil
	}
	if err == nil && m.group != nil {
		now.Processes, err = m.group.Tasks()
	}
	if err == nil {
		now.Network, err = m.interfaces(r)
	}
	if err != nil {
		return nil, err
	}
	m.last = now
	return now, nil
}

// interfaces reads the counters of the pod's own network, eth0 first.
func (m *podSampler) interfaces(r *podRecord) ([]InterfaceStats, error) {
	if m.net == nil {
		ns := r.netNS()
		if ns == "" || r.onHostNetwork() {
			return nil, nil
		}
		var err error
		if m.net, err = netdev.Open(ns); err != nil {
			return nil, err
		}
	}
	var last []InterfaceStats
	if m.last != nil {
		last = m.last.Network
	}
	out, err := m.net.Read(last)
	slices.SortStableFunc(out, func(a, b InterfaceStats) int { return order(a.Name) - order(b.Name) })
	return out, err
}

func order(name string) int {
	if name == "eth0" {
		return 0
	}
	return 1
}

func (m *podSampler) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget()
	if m.net != nil {
		m.net.Close()
	}
	m.net, m.closed = nil, true
}

// statsOf translates a reading.
func statsOf(c *cgroup.Stats) *Stats {
	s := &Stats{
		At:  c.Time,
		CPU: CPUStats{UsageCoreNanoSeconds: c.CPU.Usage, PSI: psi(c.CPU.PSI)},
		Memory: MemoryStats{
			WorkingSet: c.Memory.WorkingSet, Usage: c.Memory.Usage, RSS: c.Memory.RSS,
			PageFaults: c.Memory.PageFaults, MajorPageFaults: c.Memory.MajorFault, PSI: psi(c.Memory.PSI),
		},
		IO: psi(c.IO.PSI),
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
