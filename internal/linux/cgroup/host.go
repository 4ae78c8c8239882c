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
	"golang.org/x/sys/unix"
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
	// shared: a cgroup does not need a directory of its own here, and uses its parent's.
	shared bool
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
	for _, x := range h.legacy {
		// It limits and counts nothing, and v2 kills and freezes better.
		x.shared = h.unified != nil && len(x.controllers) == 1 && x.has("freezer")
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
	all := h.all()
	g := &Group{host: h, path: p, members: make([]member, 0, len(all))}
	fresh := true
	for _, x := range all {
		if x.shared {
			m, err := x.share(p, &made)
			if err != nil {
				return nil, fmt.Errorf("create cgroup %s: %w", p, err)
			}
			g.members = append(g.members, m)
			continue
		}
		m := member{x, x.dir(p), true}
		isNew, err := x.make(m.path, p, &made)
		if err != nil {
			return nil, fmt.Errorf("create cgroup %s: %w", p, err)
		}
		fresh = fresh && isNew
		g.members = append(g.members, m)
	}
	if err := g.apply(r, fresh); err != nil {
		return nil, fmt.Errorf("create cgroup %s: %w", p, err)
	}
	return g, nil
}

// make makes the directory and tells whether it was not there. It tries the last one
// first: its parents are there as a rule, and prepared for it.
func (h *hierarchy) make(dir string, p Path, made *[]string) (isNew bool, err error) {
	up := filepath.Dir(dir)
	cpuset := !h.v2 && h.has("cpuset")
	if cpuset {
		// The kernel then gives a new cpuset what its parent has. Writing the same values
		// into it would have them applied, which takes the locks of CPU hotplug.
		_ = writeFile(up+"/cgroup.clone_children", "1")
	}
	err = mkdir(dir)
	if errors.Is(err, unix.ENOENT) {
		if err = h.makeDirs(p.Parent(), made); err == nil {
			err = mkdir(dir)
		}
	}
	switch {
	case err == nil:
		isNew = true
		*made = append(*made, dir)
	case !errors.Is(err, unix.EEXIST):
		return false, err
	}
	switch {
	case h.v2:
		return isNew, h.ensurePassed(dir, p)
	case cpuset:
		if cpusetFilled(dir) {
			return isNew, nil
		}
		return isNew, h.makeDirs(p, made)
	}
	return isNew, nil
}

// cpusetFilled tells whether processes can join.
func cpusetFilled(dir string) bool {
	cpus, err1 := readString(dir + "/cpuset.cpus")
	mems, err2 := readString(dir + "/cpuset.mems")
	return err1 == nil && err2 == nil && cpus != "" && mems != ""
}

// share makes the parent's directory, which the containers of a pod share: what is in the
// others must not be seen by theirs. A directory of the cgroup's own is used where it is.
func (h *hierarchy) share(p Path, made *[]string) (member, error) {
	m := h.nearest(p)
	if up := p.Parent(); !m.own && m.path != h.dir(up) {
		if err := h.makeDirs(up, made); err != nil {
			return m, err
		}
		m.path = h.dir(up)
	}
	return m, nil
}

// nearest finds the directory of the cgroup, or else the next one above it.
func (h *hierarchy) nearest(p Path) member {
	for at := p; at != "/"; at = at.Parent() {
		if dir := h.dir(at); isDir(dir) {
			return member{h, dir, at == p}
		}
	}
	return member{h, h.mount, false}
}

func isDir(dir string) bool {
	var st unix.Stat_t
	return unix.Stat(dir, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// ensurePassed makes the controllers of the root available to the cgroup, as far as they
// can be passed down to it.
func (h *hierarchy) ensurePassed(dir string, p Path) error {
	if len(h.controllers) == 0 {
		return nil
	}
	have, err := readFields(dir + "/cgroup.controllers")
	if err != nil || len(have) == len(h.controllers) {
		return err
	}
	up := h.mount
	for name := range strings.SplitSeq(string(p)[1:], "/") {
		if err := h.passOn(up); err != nil {
			return err
		}
		up = filepath.Join(up, name)
	}
	return nil
}

func mkdir(dir string) error {
	for {
		switch err := unix.Mkdir(dir, 0o755); {
		case err == nil:
			return nil
		case err != unix.EINTR:
			return &os.PathError{Op: "mkdir", Path: dir, Err: err}
		}
	}
}

// makeDirs makes what is missing of the path, and fills v1 cpusets, which are unusable
// while they are empty.
func (h *hierarchy) makeDirs(p Path, made *[]string) error {
	dir := h.mount
	for name := range strings.SplitSeq(string(p)[1:], "/") {
		up := dir
		dir = filepath.Join(dir, name)
		switch err := mkdir(dir); {
		case err == nil:
			*made = append(*made, dir)
		case !errors.Is(err, unix.EEXIST):
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
	have, err := readFields(dir + "/cgroup.controllers")
	if err != nil {
		return err
	}
	passed, err := readFields(dir + "/cgroup.subtree_control")
	if err != nil {
		return err
	}
	for _, c := range have {
		if slices.Contains(passed, c) {
			continue
		}
		// One by one: a controller that cannot be passed on does not hold back the
		// others. If a limit needs it, writing the limit says so.
		err := writeFile(dir+"/cgroup.subtree_control", "+"+c)
		if errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// fillCpuset copies cpus and memory nodes from the parent into a v1 cpuset that has none.
func fillCpuset(parent, dir string) error {
	for _, name := range []string{"/cpuset.cpus", "/cpuset.mems"} {
		now, err := readString(dir + name)
		if err != nil {
			return err
		}
		if now != "" {
			continue
		}
		value, err := readString(parent + name)
		if err != nil {
			return err
		}
		if err := writeFile(dir+name, value); err != nil {
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
	found := false
	for _, x := range h.all() {
		m := member{x, x.dir(p), true}
		if x.shared {
			m = x.nearest(p)
		} else if !isDir(m.path) {
			continue
		}
		g.members = append(g.members, m)
		found = found || m.own
	}
	if !found {
		return nil, fmt.Errorf("open cgroup %s: %w", p, errdef.ErrNotFound)
	}
	return g, nil
}
