package load

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Total is the sum of all programs in what a Meter tells of memory.
const Total = "total"

// nothing measures nothing.
type nothing struct{}

func (nothing) CPU() (time.Duration, error)        { return 0, nil }
func (nothing) Memory() (map[string]Memory, error) { return map[string]Memory{}, nil }

// Cgroup is a Meter of a runtime whose processes and pods are in cgroups of their own.
type Cgroup struct {
	Dirs     []string // with cpuacct.usage or cpu.stat; processes below them count
	Programs []string // that belong to the runtime, by the base name of their executable
}

// CPU is exact also for what has ended.
func (c Cgroup) CPU() (t time.Duration, err error) {
	for _, dir := range c.Dirs {
		used, err := cgroupCPU(dir)
		if err != nil {
			return 0, err
		}
		t += used
	}
	return t, nil
}

func cgroupCPU(dir string) (time.Duration, error) {
	body, err := os.ReadFile(filepath.Join(dir, "cpuacct.usage"))
	if err == nil {
		n, err := strconv.ParseInt(string(bytes.TrimSpace(body)), 10, 64)
		return time.Duration(n), err
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	if body, err = os.ReadFile(filepath.Join(dir, "cpu.stat")); err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	fields := strings.Fields(string(body))
	i := slices.Index(fields, "usage_usec")
	if i < 0 || i+1 == len(fields) {
		return 0, fmt.Errorf("read CPU time: no usage_usec in %s", dir)
	}
	n, err := strconv.ParseInt(fields[i+1], 10, 64)
	return time.Duration(n) * time.Microsecond, err
}

// Processes are the runtime's, by program.
func (c Cgroup) Processes() (map[string][]int, error) {
	all, err := c.pids()
	if err != nil {
		return nil, err
	}
	found := map[string][]int{}
	for _, pid := range all {
		if name := program(pid); slices.Contains(c.Programs, name) {
			found[name] = append(found[name], pid)
		}
	}
	return found, nil
}

// has tells whether a process is in there.
func (c Cgroup) has(pid int) bool {
	all, err := c.pids()
	return err == nil && slices.Contains(all, pid)
}

// pids are all processes in there.
func (c Cgroup) pids() ([]int, error) {
	var all []int
	for _, root := range c.Dirs {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.Name() != "cgroup.procs" {
				return ignoreGone(err)
			}
			body, err := os.ReadFile(path)
			for field := range strings.FieldsSeq(string(body)) {
				if pid, err := strconv.Atoi(field); err == nil {
					all = append(all, pid)
				}
			}
			return ignoreGone(err)
		})
		if err != nil {
			return nil, fmt.Errorf("look for processes: %w", err)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// ignoreGone passes over cgroups of pods that end meanwhile.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// program is the base name of a process's executable. A program may have been replaced on
// disk meanwhile, or run from memory.
func program(pid int) string {
	exe, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "exe"))
	if err != nil {
		return ""
	}
	return strings.TrimPrefix(filepath.Base(strings.TrimSuffix(exe, " (deleted)")), "memfd:")
}

// Memory reads smaps_rollup.
func (c Cgroup) Memory() (map[string]Memory, error) {
	processes, err := c.Processes()
	if err != nil {
		return nil, err
	}
	all := map[string]Memory{}
	for name, pids := range processes {
		for _, pid := range pids {
			m, err := MemoryOf(pid)
			if err != nil {
				return nil, err
			}
			all[name], all[Total] = all[name].plus(m), all[Total].plus(m)
		}
	}
	return all, nil
}

func (m Memory) plus(o Memory) Memory {
	return Memory{m.Processes + o.Processes, m.PSS + o.PSS, m.RSS + o.RSS, m.PrivateDirty + o.PrivateDirty}
}

// MemoryOf is that of one process.
func MemoryOf(pid int) (Memory, error) {
	body, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		return Memory{}, fmt.Errorf("read memory: %w", err)
	}
	m := Memory{Processes: 1}
	for line := range strings.Lines(string(body)) {
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[2] != "kB" {
			continue
		}
		n, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			return Memory{}, fmt.Errorf("read memory: %q: %w", line, err)
		}
		switch fields[0] {
		case "Pss:":
			m.PSS = n
		case "Rss:":
			m.RSS = n
		case "Private_Dirty:":
			m.PrivateDirty = n
		}
	}
	return m, nil
}
