package cgroup

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// setting is one write of one file.
type setting struct {
	controller string // whose hierarchy it is in
	file       string
	value      string
	// optional: a kernel without the file is fine, the value says "no limit".
	optional bool
	// afterNext: on EINVAL, write the next setting first and then this one again.
	afterNext bool
	// shrinks is the memory limit in bytes when the kernel would kill rather than
	// refuse if it is below what is in use (v2).
	shrinks uint64
}

// keep, as the first word of a value, stands for the first word in the file.
const keep = "keep"

// settings turns limits into writes, in the order in which the kernel takes them.
// where tells whether a controller is in a v2 hierarchy; swapNow is the present v1
// limit of memory and swap, which a new memory limit must not pass.
func settings(r Resources, where func(controller string) (v2 bool), swapNow uint64) ([]setting, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	var out []setting
	add := func(s ...setting) { out = append(out, s...) }
	if where("cpu") {
		add(cpuV2(r)...)
	} else {
		add(cpuV1(r)...)
	}
	if r.CpusetCPUs != "" {
		add(setting{controller: "cpuset", file: "cpuset.cpus", value: r.CpusetCPUs})
	}
	if r.CpusetMems != "" {
		add(setting{controller: "cpuset", file: "cpuset.mems", value: r.CpusetMems})
	}
	if where("memory") {
		mem, err := memoryV2(r)
		if err != nil {
			return nil, err
		}
		add(mem...)
	} else {
		add(memoryV1(r, swapNow)...)
	}
	if r.PidsLimit != 0 {
		add(setting{controller: "pids", file: "pids.max", value: limit(r.PidsLimit)})
	}
	for _, h := range r.Hugepages {
		file := "hugetlb." + h.Size + ".limit_in_bytes"
		if where("hugetlb") {
			file = "hugetlb." + h.Size + ".max"
		}
		// The kubelet sends 0 for every page size that the machine may have.
		add(setting{controller: "hugetlb", file: file, value: strconv.FormatUint(h.Limit, 10), optional: h.Limit == 0})
	}
	for _, file := range slices.Sorted(maps.Keys(r.Unified)) {
		controller, _, _ := strings.Cut(file, ".")
		if !where(controller) {
			return nil, fmt.Errorf("unified %q: no cgroup v2 with the controller %s: %w", cut(file), cut(controller), errdef.ErrInvalid)
		}
		add(setting{controller: controller, file: file, value: r.Unified[file]})
	}
	return out, nil
}

func (r Resources) check() error { //nolint:cyclop // a flat list of checks
	bad := func(what string, v any) error {
		return fmt.Errorf("%s %v: %w", what, v, errdef.ErrInvalid)
	}
	switch {
	case r.CPUQuota < -1:
		return bad("cpu quota", r.CPUQuota)
	case r.MemoryLimit < -1:
		return bad("memory limit", r.MemoryLimit)
	case r.MemorySwapLimit < -1:
		return bad("memory and swap limit", r.MemorySwapLimit)
	case r.PidsLimit < -1:
		return bad("pids limit", r.PidsLimit)
	case r.MemorySwapLimit > 0 && r.MemoryLimit > r.MemorySwapLimit:
		return bad("memory and swap limit", fmt.Sprintf("%d, below the memory limit %d", r.MemorySwapLimit, r.MemoryLimit))
	}
	for what, list := range map[string]string{"cpuset cpus": r.CpusetCPUs, "cpuset mems": r.CpusetMems} {
		if strings.Trim(list, "0123456789,- \t") != "" {
			return bad(what, strconv.Quote(cut(list)))
		}
	}
	for _, h := range r.Hugepages {
		if h.Size == "" || strings.Trim(h.Size, "0123456789KMGB") != "" {
			return bad("hugepage size", strconv.Quote(cut(h.Size)))
		}
	}
	for file := range r.Unified {
		// cgroup.procs and the like would let a request move processes.
		if !strings.Contains(file, ".") || strings.ContainsAny(file, "/\x00") || strings.HasPrefix(file, "cgroup.") {
			return bad("unified", strconv.Quote(cut(file)))
		}
	}
	return nil
}

func limit(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

func cpuV1(r Resources) (out []setting) {
	if r.CPUShares != 0 {
		out = append(out, setting{controller: "cpu", file: "cpu.shares", value: strconv.FormatUint(r.CPUShares, 10)})
	}
	if r.CPUPeriod != 0 {
		// The kernel checks quota/period against the parent's at each write: with the
		// old quota the new period may be too short.
		out = append(out, setting{controller: "cpu", file: "cpu.cfs_period_us",
			value: strconv.FormatUint(r.CPUPeriod, 10), afterNext: r.CPUQuota != 0})
	}
	if r.CPUQuota != 0 {
		out = append(out, setting{controller: "cpu", file: "cpu.cfs_quota_us", value: strconv.FormatInt(r.CPUQuota, 10)})
	}
	return out
}

func cpuV2(r Resources) (out []setting) {
	if r.CPUShares != 0 {
		out = append(out, setting{controller: "cpu", file: "cpu.weight", value: strconv.FormatUint(Weight(r.CPUShares), 10)})
	}
	if r.CPUQuota == 0 && r.CPUPeriod == 0 {
		return out
	}
	period := r.CPUPeriod
	if period == 0 {
		period = 100000
	}
	value := keep // the kernel takes no period alone
	if r.CPUQuota != 0 {
		value = limit(r.CPUQuota)
	}
	return append(out, setting{controller: "cpu", file: "cpu.max", value: value + " " + strconv.FormatUint(period, 10)})
}

// Weight converts cpu shares (2 to 262144, 1024 by default) to a weight (1 to
// 10000, 100 by default). It is the curve through these three points that runc,
// crun and the kubelet use since 2025 (opencontainers/cgroups).
func Weight(shares uint64) uint64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

// memoryV1 keeps memory at or below memory and swap at every moment, which the
// kernel insists on: the one that grows is written first.
func memoryV1(r Resources, swapNow uint64) []setting {
	mem := setting{controller: "memory", file: "memory.limit_in_bytes", value: strconv.FormatInt(r.MemoryLimit, 10)}
	swap := setting{controller: "memory", file: "memory.memsw.limit_in_bytes",
		value: strconv.FormatInt(r.MemorySwapLimit, 10), optional: true}
	switch {
	case r.MemoryLimit == 0 && r.MemorySwapLimit == 0:
		return nil
	case r.MemorySwapLimit == 0 && r.MemoryLimit == -1:
		swap.value = "-1"
		return []setting{swap, mem}
	case r.MemorySwapLimit == 0:
		return []setting{mem}
	case r.MemoryLimit == 0:
		return []setting{swap}
	case r.MemorySwapLimit == -1 || uint64(r.MemorySwapLimit) > swapNow:
		return []setting{swap, mem}
	}
	return []setting{mem, swap}
}

// memoryV2 converts the sum of memory and swap to swap alone.
func memoryV2(r Resources) (out []setting, err error) {
	switch {
	case r.MemorySwapLimit == -1, r.MemorySwapLimit == 0 && r.MemoryLimit == -1:
		out = append(out, setting{controller: "memory", file: "memory.swap.max", value: "max", optional: true})
	case r.MemorySwapLimit > 0 && r.MemoryLimit <= 0:
		return nil, fmt.Errorf("memory and swap limit %d without a memory limit: %w", r.MemorySwapLimit, errdef.ErrInvalid)
	case r.MemorySwapLimit > 0:
		// A kernel without swap has no such file, and needs no such limit.
		out = append(out, setting{controller: "memory", file: "memory.swap.max",
			value: strconv.FormatInt(r.MemorySwapLimit-r.MemoryLimit, 10), optional: true})
	}
	if r.MemoryLimit != 0 {
		s := setting{controller: "memory", file: "memory.max", value: limit(r.MemoryLimit)}
		if r.MemoryLimit > 0 {
			s.shrinks = uint64(r.MemoryLimit)
		}
		out = append(out, s)
	}
	return out, nil
}
