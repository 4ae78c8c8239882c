package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// Group is one cgroup in all hierarchies.
type Group struct {
	host    *Host
	path    Path
	members []member

	mu    sync.Mutex // guards files
	files [counters]kept
}

// member is the group's directory in one hierarchy.
type member struct {
	*hierarchy
	path string
	own  bool // false: it is another cgroup's, which this one shares
}

// Path is the cgroup's name.
func (g *Group) Path() Path { return g.path }

// of finds the directory in a controller's hierarchy.
func (g *Group) of(controller string) (member, bool) {
	if h := g.host.of(controller); h != nil {
		for _, m := range g.members {
			if m.hierarchy == h {
				return m, true
			}
		}
	}
	return member{}, false
}

// unified finds the directory in the v2 tree.
func (g *Group) unified() (member, bool) {
	for _, m := range g.members {
		if m.v2 {
			return m, true
		}
	}
	return member{}, false
}

// JoinFiles opens the v1 "tasks" files into which a fresh child writes "0" to
// join; none with Mode Unified. The caller closes them. A pid, or cgroup.procs,
// would take the kernel's thread group lock and wait for an RCU grace period.
func (g *Group) JoinFiles() (_ []*os.File, err error) {
	var out []*os.File
	defer func() {
		if err != nil {
			for _, f := range out {
				_ = f.Close()
			}
		}
	}()
	for _, m := range g.members {
		if m.v2 {
			continue
		}
		name := filepath.Join(m.path, "tasks")
		fd, err := openRaw(name, unix.O_WRONLY)
		if err != nil {
			return out, fmt.Errorf("open tasks of cgroup %s: %w", g.path, notFound(err))
		}
		out = append(out, os.NewFile(uintptr(fd), name))
	}
	return out, nil
}

// Dir opens the unified directory with O_PATH for CLONE_INTO_CGROUP, also on a
// hybrid host; nil without error when there is no unified tree. The caller closes it.
func (g *Group) Dir() (*os.File, error) {
	m, ok := g.unified()
	if !ok {
		return nil, nil
	}
	f, err := os.OpenFile(m.path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("open directory of cgroup %s: %w", g.path, notFound(err))
	}
	return f, nil
}

func notFound(err error) error {
	if gone(err) {
		return fmt.Errorf("%w: %w", err, errdef.ErrNotFound)
	}
	return err
}

// Update changes the limits; on failure the former ones are restored. A memory
// limit below what cannot be reclaimed is refused with errdef.ErrPhase, where the
// kernel would kill instead.
func (g *Group) Update(r Resources) error {
	if err := g.apply(r, false); err != nil {
		return fmt.Errorf("update cgroup %s: %w", g.path, err)
	}
	return nil
}

// apply writes the limits. A fresh cgroup has the kernel's defaults, and goes when it fails.
func (g *Group) apply(r Resources, fresh bool) error {
	swapNow := unlimited
	if m, ok := g.of("memory"); ok && !m.v2 && !fresh && r.MemorySwapLimit != 0 {
		// Absent without swap accounting; then the order does not matter.
		swapNow, _ = readNumber(filepath.Join(m.path, "memory.memsw.limit_in_bytes"))
	}
	list, err := settings(r, g.host.isV2, swapNow)
	if err != nil {
		return err
	}
	var done []written
	if err := g.write(list, fresh, &done); err != nil {
		for _, w := range slices.Backward(done) {
			if e := writeFile(w.name, w.former); e != nil {
				err = errors.Join(err, fmt.Errorf("restore: %w", e))
			}
		}
		return err
	}
	if !r.DevicesSet {
		return nil
	}
	return g.setDevices(r.Devices)
}

// written is a file that was changed and what it held before.
type written struct{ name, former string }

func (g *Group) write(list []setting, fresh bool, done *[]written) error {
	for i := 0; i < len(list); i++ {
		s := list[i]
		err := g.writeOne(s, fresh, done)
		if errors.Is(err, unix.EINVAL) && s.afterNext && i+1 < len(list) {
			if err := g.writeOne(list[i+1], fresh, done); err != nil {
				return err
			}
			err = g.writeOne(s, fresh, done)
			i++
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (g *Group) writeOne(s setting, fresh bool, done *[]written) error {
	m, ok := g.of(s.controller)
	if !ok {
		if s.optional {
			return nil
		}
		return fmt.Errorf("set %s: the node has no %s controller: %w", s.file, s.controller, errdef.ErrInvalid)
	}
	name := filepath.Join(m.path, s.file)
	rest, partly := strings.CutPrefix(s.value, keep+" ")
	former, value := "", s.value
	if !fresh || partly {
		var err error
		if former, err = readString(name); err != nil {
			return s.explain(m.path, err)
		}
	}
	if partly {
		first, _, _ := strings.Cut(former, " ")
		value = first + " " + rest
	}
	if s.shrinks != 0 && !fresh {
		if err := shrink(m.path, s.shrinks); err != nil {
			return err
		}
	}
	if err := writeFile(name, value); err != nil {
		return s.explain(m.path, err)
	}
	if !fresh {
		*done = append(*done, written{name, former})
	}
	return nil
}

// explain says why a setting failed in dir; nil when that is fine.
func (s *setting) explain(dir string, err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		if _, e := os.Stat(dir); e != nil {
			return notFound(e)
		}
		if s.optional {
			return nil
		}
		return fmt.Errorf("set %s: the kernel does not have it here: %w", s.file, errdef.ErrInvalid)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("set %s: more is in use: %w: %w", s.file, err, errdef.ErrPhase)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE), errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("set %s: %w: %w", s.file, err, errdef.ErrInvalid)
	}
	return fmt.Errorf("set %s: %w", s.file, err)
}

// shrink makes room below a new v2 memory limit by reclaiming (memory.reclaim, 5.19).
// Writing memory.max first would make the kernel kill what it cannot reclaim.
func shrink(dir string, to uint64) error {
	name := filepath.Join(dir, "memory.current")
	now, err := readNumber(name)
	if err != nil || now <= to {
		return err
	}
	// EAGAIN says that less was reclaimed; the second look decides.
	_ = writeFile(filepath.Join(dir, "memory.reclaim"), strconv.FormatUint(now-to, 10))
	if now, err = readNumber(name); err != nil {
		return err
	}
	if now > to {
		return fmt.Errorf("set memory.max to %d: %d are in use and cannot be reclaimed: %w", to, now, errdef.ErrPhase)
	}
	return nil
}

// Exec makes a sub-cgroup for one exec session, so that its whole tree can be
// killed. Its JoinFiles and Dir work like the container's own. In v2 it has no
// controllers, so the container's limits hold; in v1 only the freezer's hierarchy
// has it, where the container has one there, and the others are the container's own.
func (g *Group) Exec(name string) (_ *Group, err error) {
	p := g.path.Join(name)
	if p.Parent() != g.path {
		return nil, fmt.Errorf("exec cgroup %q: not a name: %w", cut(name), errdef.ErrInvalid)
	}
	if err := p.Valid(); err != nil {
		return nil, err
	}
	x := &Group{host: g.host, path: p}
	var made []string
	defer func() {
		if err != nil {
			for _, dir := range made {
				err = errors.Join(err, os.Remove(dir))
			}
		}
	}()
	for _, m := range g.members {
		if m.shared {
			m = m.nearest(g.path) // an OCI runtime program has made its own meanwhile
		}
		if !m.v2 && (!m.own || !m.has("freezer")) {
			x.members = append(x.members, member{m.hierarchy, m.path, false})
			continue
		}
		dir := filepath.Join(m.path, name)
		switch err := os.Mkdir(dir, 0o755); {
		case err == nil:
			made = append(made, dir)
		case !errors.Is(err, os.ErrExist):
			return nil, fmt.Errorf("make exec cgroup: %w", notFound(err))
		}
		x.members = append(x.members, member{m.hierarchy, dir, true})
	}
	return x, nil
}

// Close closes the descriptors that Stats keeps. The cgroup stays.
func (g *Group) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range g.files {
		if g.files[i].state == keptOpen {
			_ = unix.Close(g.files[i].fd)
		}
	}
	g.files = [counters]kept{}
}
