package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/moby/sys/mountinfo"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// Host is the machine's set of hierarchies. It is read-only after Open.
type Host struct {
	mode    Mode
	legacy  []*hierarchy
	unified *hierarchy // nil when no cgroup2 is mounted
	buffers sync.Pool  // of *statBuffer, for Stats
}

// hierarchy is one mounted tree.
type hierarchy struct {
	mount       string
	controllers []string // v1: of the mount; v2: offered at its root
	v2          bool
}

func (h *hierarchy) has(controller string) bool { return slices.Contains(h.controllers, controller) }

func (h *hierarchy) dir(p Path) string { return filepath.Join(h.mount, string(p)) }

// Open finds the hierarchies in this process's mount table. In a container it sees
// what is mounted there, and Paths are relative to that.
func Open(ctx context.Context) (*Host, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("find cgroup mounts: %w", err)
	}
	h, err := fromMounts(mounts)
	if err != nil {
		return nil, fmt.Errorf("find cgroup mounts: %w", err)
	}
	klog.FromContext(ctx).V(4).Info("cgroup hierarchies found", "mode", h.mode.String(), "controllers", h.Controllers())
	return h, nil
}

func fromMounts(mounts []*mountinfo.Info) (*Host, error) {
	h := &Host{mode: Unified}
	seen := map[string]bool{}
	for _, m := range mounts {
		if m.FSType == "cgroup2" {
			if h.unified != nil {
				continue // a second mount of the one tree
			}
			b, err := os.ReadFile(filepath.Join(m.Mountpoint, "cgroup.controllers"))
			if err != nil {
				return nil, fmt.Errorf("read controllers: %w", err)
			}
			h.unified = &hierarchy{mount: m.Mountpoint, controllers: strings.Fields(string(b)), v2: true}
			continue
		}
		controllers := v1Controllers(m.VFSOptions)
		key := strings.Join(controllers, ",")
		if len(controllers) == 0 || seen[key] {
			continue
		}
		seen[key] = true
		h.legacy = append(h.legacy, &hierarchy{mount: m.Mountpoint, controllers: controllers})
		if !strings.HasPrefix(key, "name=") {
			h.mode = Legacy
		}
	}
	if h.unified == nil && h.mode == Unified {
		return nil, fmt.Errorf("no cgroup filesystem is mounted: %w", errdef.ErrNotFound)
	}
	if h.mode == Unified {
		h.legacy = nil // a lone name=systemd beside v2 is of no use
	}
	return h, nil
}

// v1Controllers picks the controllers out of a mount's options, which also have
// flags such as rw and settings such as release_agent=.
func v1Controllers(options string) (out []string) {
	known := []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "net_cls", "net_prio",
		"blkio", "perf_event", "hugetlb", "pids", "rdma", "misc"}
	for o := range strings.SplitSeq(options, ",") {
		if slices.Contains(known, o) || strings.HasPrefix(o, "name=") {
			out = append(out, o)
		}
	}
	return out
}

// Mode says where the controllers are.
func (h *Host) Mode() Mode { return h.mode }

// Controllers lists what can be limited, sorted.
func (h *Host) Controllers() (out []string) {
	for _, x := range h.all() {
		for _, c := range x.controllers {
			if !strings.HasPrefix(c, "name=") {
				out = append(out, c)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// all lists the hierarchies, the unified one first.
func (h *Host) all() (out []*hierarchy) {
	if h.unified != nil {
		out = append(out, h.unified)
	}
	return append(out, h.legacy...)
}

// of finds a controller's hierarchy, nil when there is none.
func (h *Host) of(controller string) *hierarchy {
	for _, x := range h.legacy {
		if x.has(controller) {
			return x
		}
	}
	if h.unified == nil {
		return nil
	}
	// These are in every cgroup of a v2 tree.
	if h.unified.has(controller) || controller == "cgroup" || h.mode == Unified && (controller == "devices" || controller == "freezer") {
		return h.unified
	}
	return nil
}

func (h *Host) isV2(controller string) bool {
	x := h.of(controller)
	if x == nil {
		return h.mode == Unified
	}
	return x.v2
}

// Create makes the cgroup, with its parents, in all hierarchies and applies r.
// An existing cgroup is adopted, so that a retry after a crash succeeds. On
// failure nothing that this call made is left.
func (h *Host) Create(p Path, r Resources) (_ *Group, err error) {
	if err := p.Valid(); err != nil {
		return nil, err
	}
	if p == "/" {
		return nil, fmt.Errorf("create cgroup /: is the root: %w", errdef.ErrInvalid)
	}
	var made []string
	defer func() {
		if err == nil {
			return
		}
		for _, dir := range slices.Backward(made) {
			if e := os.Remove(dir); e != nil && !errors.Is(e, os.ErrNotExist) {
				err = errors.Join(err, fmt.Errorf("undo: %w", e))
			}
		}
	}()
	g := &Group{host: h, path: p}
	for _, x := range h.all() {
		if err := x.makeDirs(p, &made); err != nil {
			return nil, fmt.Errorf("create cgroup %s: %w", p, err)
		}
		g.members = append(g.members, member{x, x.dir(p), true})
	}
	if err := g.apply(r, true); err != nil {
		return nil, fmt.Errorf("create cgroup %s: %w", p, err)
	}
	return g, nil
}

// makeDirs makes what is missing of the path and prepares each directory for the
// next: v1 cpusets are unusable while empty, v2 controllers are passed on by name.
func (h *hierarchy) makeDirs(p Path, made *[]string) error {
	dir := h.mount
	for name := range strings.SplitSeq(string(p)[1:], "/") {
		if h.v2 {
			if err := h.passOn(dir); err != nil {
				return err
			}
		}
		up := dir
		dir = filepath.Join(dir, name)
		switch err := os.Mkdir(dir, 0o755); {
		case err == nil:
			*made = append(*made, dir)
		case !errors.Is(err, os.ErrExist):
			return err
		}
		if !h.v2 && h.has("cpuset") {
			if err := fillCpuset(up, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// passOn makes all controllers of a v2 cgroup available to its children.
func (h *hierarchy) passOn(dir string) error {
	if len(h.controllers) == 0 {
		return nil
	}
	have, err := readFields(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	passed, err := readFields(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	for _, c := range have {
		if slices.Contains(passed, c) {
			continue
		}
		// One by one: a controller that cannot be passed on does not hold back the
		// others. If a limit needs it, writing the limit says so.
		err := writeFile(filepath.Join(dir, "cgroup.subtree_control"), "+"+c)
		if errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// fillCpuset copies cpus and memory nodes from the parent into a new v1 cpuset.
func fillCpuset(parent, dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		now, err := readString(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if now != "" {
			continue
		}
		value, err := readString(filepath.Join(parent, name))
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(dir, name), value); err != nil {
			return err
		}
	}
	return nil
}

// Open gives an existing cgroup, or errdef.ErrNotFound when it is in no hierarchy.
// Where only some have it, after a crash, the others are left out.
func (h *Host) Open(p Path) (*Group, error) {
	if err := p.Valid(); err != nil {
		return nil, err
	}
	g := &Group{host: h, path: p}
	for _, x := range h.all() {
		switch st, err := os.Stat(x.dir(p)); {
		case err == nil && st.IsDir():
			g.members = append(g.members, member{x, x.dir(p), true})
		case err != nil && !errors.Is(err, os.ErrNotExist):
			return nil, fmt.Errorf("open cgroup: %w", err)
		}
	}
	if len(g.members) == 0 {
		return nil, fmt.Errorf("open cgroup %s: %w", p, errdef.ErrNotFound)
	}
	return g, nil
}
