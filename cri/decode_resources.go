package cri

import (
	"regexp"
	"strings"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

// The lists of cpus and memory nodes, the sizes of huge pages ("2MB") and the files of
// cgroup v2 ("memory.high") as the kernel names them. They become names of files and
// contents of them, so nothing else is let through.
var (
	cpuList      = regexp.MustCompile(`^[0-9,-]*$`)
	hugepageSize = regexp.MustCompile(`^[0-9]+[KMG]i?B$`)
	unifiedKey   = regexp.MustCompile(`^[a-z0-9_]+(\.[a-zA-Z0-9_]+)+$`)
)

// unlimited is what -1 means for quotas and limits. Less is nonsense.
const unlimited = -1

// decodeOptionalResources keeps nil apart from empty: nothing said is nothing changed.
func decodeOptionalResources(f field, r *pb.LinuxContainerResources) (*sandbox.Resources, error) {
	if r == nil {
		return nil, nil
	}
	out, err := decodeResources(f, r)
	return &out, err
}

func decodeResources(f field, r *pb.LinuxContainerResources) (sandbox.Resources, error) {
	out := sandbox.Resources{
		CPUPeriod: r.GetCpuPeriod(), CPUQuota: r.GetCpuQuota(), CPUShares: r.GetCpuShares(),
		MemoryLimit: r.GetMemoryLimitInBytes(), MemorySwapLimit: r.GetMemorySwapLimitInBytes(),
		OOMScoreAdj: r.GetOomScoreAdj(),
		CpusetCPUs:  r.GetCpusetCpus(), CpusetMems: r.GetCpusetMems(),
		Unified: copyMap(r.GetUnified()),
	}
	for _, n := range []struct {
		name            string
		value, low, top int64
	}{
		{"cpu_period", out.CPUPeriod, 0, 1e6}, // microseconds; the kernel takes a second at most
		{"cpu_quota", out.CPUQuota, unlimited, 1 << 62},
		{"cpu_shares", out.CPUShares, 0, 1 << 62},
		{"memory_limit_in_bytes", out.MemoryLimit, unlimited, 1 << 62},
		{"memory_swap_limit_in_bytes", out.MemorySwapLimit, unlimited, 1 << 62},
		{"oom_score_adj", out.OOMScoreAdj, -1000, 1000},
	} {
		if n.value < n.low || n.value > n.top {
			return out, f.sub(n.name).refuse("%d is outside of %d to %d", n.value, n.low, n.top)
		}
	}
	for name, s := range map[string]string{"cpuset_cpus": out.CpusetCPUs, "cpuset_mems": out.CpusetMems} {
		if !cpuList.MatchString(s) {
			return out, f.sub(name).refuse("%q is not a list of numbers", s)
		}
	}
	for i, h := range r.GetHugepageLimits() {
		if !hugepageSize.MatchString(h.GetPageSize()) {
			return out, f.at("hugepage_limits", i).sub(".page_size").refuse("%q is not a size such as 2MB", h.GetPageSize())
		}
		out.HugepageLimits = append(out.HugepageLimits, sandbox.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	for k, v := range out.Unified {
		if !unifiedKey.MatchString(k) {
			return out, f.sub("unified").refuse("key %q is not a file of cgroup v2", k)
		}
		if strings.ContainsRune(v, 0) {
			return out, f.sub("unified").refuse("value of %s contains a NUL byte", k)
		}
	}
	return out, nil
}
