package spec

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

func buildResources(c Container) (*specs.LinuxResources, error) {
	out, err := c.Resources.OCI()
	if err != nil {
		return nil, err
	}
	out.Devices, err = deviceRules(c)
	return out, err
}

// OCI is the resources section for a container that has, or is updated to, r.
func (r Resources) OCI() (*specs.LinuxResources, error) {
	for _, f := range []struct {
		name  string
		value int64
	}{
		{"cpu_shares", r.CPUShares}, {"cpu_period", r.CPUPeriod}, {"memory_limit", r.MemoryLimit}, {"pids_limit", r.PidsLimit},
	} {
		if f.value < 0 {
			return nil, fmt.Errorf("resources.%s: %d is negative: %w", f.name, f.value, errdef.ErrInvalid)
		}
	}
	if r.MemoryLimit > 0 && r.MemorySwap > 0 && r.MemorySwap < r.MemoryLimit {
		return nil, fmt.Errorf("resources.memory_swap_limit: %d is below the memory limit, which it includes: %w", r.MemorySwap, errdef.ErrInvalid)
	}
	out := &specs.LinuxResources{Unified: maps.Clone(r.Unified)}
	for name := range r.Unified {
		// One path element: the value goes into a file of this name.
		if !strings.Contains(name, ".") || strings.ContainsAny(name, "/\x00") || strings.HasPrefix(name, ".") {
			return nil, fmt.Errorf("resources.unified: %.80q is no file of a cgroup: %w", name, errdef.ErrInvalid)
		}
	}
	out.CPU = r.cpu()
	if r.MemoryLimit != 0 || r.MemorySwap != 0 {
		out.Memory = &specs.LinuxMemory{Limit: nonZero(r.MemoryLimit), Swap: nonZero(r.MemorySwap)}
	}
	if r.PidsLimit > 0 {
		out.Pids = &specs.LinuxPids{Limit: nonZero(r.PidsLimit)}
	}
	for _, h := range r.Hugepages {
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.PageSize, Limit: h.Limit})
	}
	return out, nil
}

func (r Resources) cpu() *specs.LinuxCPU {
	if r.CPUShares == 0 && r.CPUQuota == 0 && r.CPUPeriod == 0 && r.CpusetCPUs == "" && r.CpusetMems == "" {
		return nil
	}
	cpu := &specs.LinuxCPU{Quota: nonZero(r.CPUQuota), Cpus: r.CpusetCPUs, Mems: r.CpusetMems}
	if r.CPUShares > 0 {
		n := uint64(r.CPUShares)
		cpu.Shares = &n
	}
	if r.CPUPeriod > 0 {
		n := uint64(r.CPUPeriod)
		cpu.Period = &n
	}
	return cpu
}

func nonZero(n int64) *int64 {
	if n == 0 {
		return nil
	}
	return &n
}

// usualDevices are open to every container: the memory devices, terminals, and tun,
// which needs CAP_NET_ADMIN besides. -1 stands for all numbers.
var usualDevices = []struct{ major, minor int64 }{
	{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 1}, {5, 2}, {136, -1}, {10, 200},
}

// deviceRules denies all, then opens: later rules win. Making nodes is allowed to all
// since a node that may not be opened is harmless, and image tools make them.
func deviceRules(c Container) ([]specs.LinuxDeviceCgroup, error) {
	if c.Privileged || c.Devices.All {
		return []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}, nil
	}
	rules := []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Access: "m"},
		{Allow: true, Type: "b", Access: "m"},
	}
	for _, d := range usualDevices {
		r := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &d.major, Access: "rwm"}
		if d.minor >= 0 {
			r.Minor = &d.minor
		}
		rules = append(rules, r)
	}
	for _, d := range c.Devices.Nodes {
		if d.Type == "p" {
			continue // a fifo is no device to the cgroup
		}
		if err := checkAccess(d.Path, d.Permissions); err != nil {
			return nil, err
		}
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: d.Permissions})
	}
	for i, d := range c.Devices.Rules {
		name := fmt.Sprintf("rule %d", i)
		if !slices.Contains([]string{"a", "b", "c"}, d.Type) {
			return nil, fmt.Errorf("device %s: type %.10q: %w", name, d.Type, errdef.ErrInvalid)
		}
		if err := checkAccess(name, d.Permissions); err != nil {
			return nil, err
		}
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: d.Major, Minor: d.Minor, Access: d.Permissions})
	}
	return rules, nil
}

func checkAccess(device, perm string) error {
	if perm == "" || strings.Trim(perm, "rwm") != "" {
		return fmt.Errorf("device %s: permissions %.10q are not of \"rwm\": %w", device, perm, errdef.ErrInvalid)
	}
	return nil
}

func buildDevices(c Container) ([]specs.LinuxDevice, error) {
	var out []specs.LinuxDevice
	seen := map[string]bool{}
	for _, d := range c.Devices.Nodes {
		p := path.Clean(d.Path)
		if !strings.HasPrefix(p, "/") || p == "/" || strings.ContainsRune(p, 0) || !slices.Contains([]string{"c", "b", "p"}, d.Type) {
			return nil, fmt.Errorf("device %.80q: no absolute path or type %.10q: %w", d.Path, d.Type, errdef.ErrInvalid)
		}
		if seen[p] {
			return nil, fmt.Errorf("device %s is given twice: %w", p, errdef.ErrInvalid)
		}
		seen[p] = true
		mode, uid, gid := d.Mode.Perm(), d.UID, d.GID
		out = append(out, specs.LinuxDevice{Path: p, Type: d.Type, Major: d.Major, Minor: d.Minor, FileMode: &mode, UID: &uid, GID: &gid})
	}
	for _, m := range c.Mounts {
		if path.Clean("/"+m.Destination) == "/dev" {
			// The caller's own /dev: nodes would be made on the host. Its rules stay.
			return nil, nil
		}
	}
	return out, nil
}
