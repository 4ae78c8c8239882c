package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// OOMKills counts the processes that the kernel's OOM killer ended in the cgroup
// and, in v2, in its descendants.
func (g *Group) OOMKills() (uint64, error) {
	m, ok := g.of("memory")
	if !ok {
		return 0, fmt.Errorf("count oom kills: no memory controller: %w", errdef.ErrNotFound)
	}
	name := "memory.oom_control"
	if m.v2 {
		name = "memory.events"
	}
	s, err := readString(filepath.Join(m.path, name))
	if err != nil {
		return 0, fmt.Errorf("count oom kills of cgroup %s: %w", g.path, notFound(err))
	}
	n, err := strconv.ParseUint(field(s, "oom_kill"), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("count oom kills of cgroup %s: %w", g.path, err)
	}
	return n, nil
}

// OOMEvents gives a file that becomes readable (POLLIN) when the cgroup runs out of
// memory, and at other changes of its memory events in v2; the reader then looks at
// OOMKills. It also becomes readable when the cgroup is removed. The caller drains
// and closes it.
func (g *Group) OOMEvents() (*os.File, error) {
	m, ok := g.of("memory")
	if !ok {
		return nil, fmt.Errorf("watch oom: no memory controller: %w", errdef.ErrNotFound)
	}
	watch := watchV1
	if m.v2 {
		watch = watchV2
	}
	f, err := watch(m.path)
	if err != nil {
		return nil, fmt.Errorf("watch oom of cgroup %s: %w", g.path, notFound(err))
	}
	return f, nil
}

func watchV2(dir string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "oom events")
	if _, err := unix.InotifyAddWatch(fd, filepath.Join(dir, "memory.events"), unix.IN_MODIFY); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// watchV1 registers an eventfd; the registration ends with the eventfd or the cgroup.
func watchV1(dir string) (*os.File, error) {
	control, err := os.Open(filepath.Join(dir, "memory.oom_control"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = control.Close() }()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "oom events")
	err = writeFile(filepath.Join(dir, "cgroup.event_control"), fmt.Sprintf("%d %d", fd, control.Fd()))
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}
