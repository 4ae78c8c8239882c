package sandbox

import (
	"maps"

	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
)

// merge lays the set fields of with over r: 0 and "" mean "leave it", as in CRI.
func (r Resources) merge(with Resources) Resources {
	set := func(to *int64, v int64) {
		if v != 0 {
			*to = v
		}
	}
	set(&r.CPUPeriod, with.CPUPeriod)
	set(&r.CPUQuota, with.CPUQuota)
	set(&r.CPUShares, with.CPUShares)
	set(&r.MemoryLimit, with.MemoryLimit)
	set(&r.MemorySwapLimit, with.MemorySwapLimit)
	set(&r.OOMScoreAdj, with.OOMScoreAdj)
	if with.CpusetCPUs != "" {
		r.CpusetCPUs = with.CpusetCPUs
	}
	if with.CpusetMems != "" {
		r.CpusetMems = with.CpusetMems
	}
	if with.HugepageLimits != nil {
		r.HugepageLimits = with.HugepageLimits
	}
	r.Unified = mergeMaps(r.Unified, with.Unified)
	return r
}

func mergeMaps(a, b map[string]string) map[string]string {
	if len(b) == 0 {
		return a
	}
	out := maps.Clone(a)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, b)
	return out
}

// cgroup is what a cgroup is told of r.
func (r Resources) cgroup() cgroup.Resources {
	out := cgroup.Resources{
		CPUShares: uint64(max(r.CPUShares, 0)), CPUQuota: r.CPUQuota, CPUPeriod: uint64(max(r.CPUPeriod, 0)),
		CpusetCPUs: r.CpusetCPUs, CpusetMems: r.CpusetMems,
		MemoryLimit: r.MemoryLimit, MemorySwapLimit: r.MemorySwapLimit, Unified: r.Unified,
	}
	for _, h := range r.HugepageLimits {
		out.Hugepages = append(out.Hugepages, cgroup.Hugepage{Size: h.PageSize, Limit: h.Limit})
	}
	return out
}
