package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// TasksPaths are the v1 files through which a process joins: see JoinFiles.
func (g *Group) TasksPaths() (out []string) {
	for _, m := range g.members {
		if !m.v2 {
			out = append(out, filepath.Join(m.path, "tasks"))
		}
	}
	return out
}

// DirPath is the directory in the v2 tree, "" where there is none: see Dir.
func (g *Group) DirPath() string {
	if m, ok := g.unified(); ok {
		return m.path
	}
	return ""
}

// Hierarchy is a v1 hierarchy as it is mounted.
type Hierarchy struct {
	Dir         string   // base name of its mount point: "cpu,cpuacct"
	Controllers []string // empty for a named one
	Name        string   // of a named one: "systemd"
	Mount       string   // where it is mounted
}

// Legacy lists the v1 hierarchies, none where v2 has the controllers.
func (h *Host) Legacy() (out []Hierarchy) {
	for _, x := range h.legacy {
		l := Hierarchy{Dir: filepath.Base(x.mount), Mount: x.mount}
		for _, c := range x.controllers {
			if name, ok := strings.CutPrefix(c, "name="); ok {
				l.Name = name
			} else {
				l.Controllers = append(l.Controllers, c)
			}
		}
		out = append(out, l)
	}
	return out
}

// Children lists the names of the cgroups in p, in any hierarchy; errdef.ErrNotFound
// when p is in none.
func (h *Host) Children(p Path) ([]string, error) {
	if err := p.Valid(); err != nil {
		return nil, err
	}
	names, found := map[string]bool{}, false
	for _, x := range h.all() {
		entries, err := os.ReadDir(x.dir(p))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list cgroup %s: %w", p, err)
		}
		found = true
		for _, e := range entries {
			if e.IsDir() {
				names[e.Name()] = true
			}
		}
	}
	if !found {
		return nil, fmt.Errorf("list cgroup %s: %w", p, errdef.ErrNotFound)
	}
	out := make([]string, 0, len(names))
	for n := range names {
		out = append(out, n)
	}
	return out, nil
}
