package load

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// cgroupDirs are the directories of a cgroup: one in each hierarchy of v1, or the one of v2.
func cgroupDirs(name string) []string {
	files, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup/*", name, "cgroup.procs"))
	var dirs []string
	for _, f := range append(files, filepath.Join("/sys/fs/cgroup", name, "cgroup.procs")) {
		if _, err := os.Stat(f); err == nil {
			dirs = append(dirs, filepath.Dir(f))
		}
	}
	return dirs
}

// MakeCgroup makes a cgroup in every hierarchy where its parent is, ready to hold others. A
// kubelet does it before it asks for a pod, and once for all pods.
func MakeCgroup(name string) error {
	if name == "" {
		return nil
	}
	for _, parent := range cgroupDirs(filepath.Dir(name)) {
		dir := filepath.Join(parent, filepath.Base(name))
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make cgroup: %w", err)
		}
		// v1: an empty cpuset takes no process.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			body, err := os.ReadFile(filepath.Join(parent, file))
			if err != nil || len(body) == 0 {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, file), body, 0); err != nil {
				return fmt.Errorf("make cgroup: %w", err)
			}
		}
		// v2: what the pod's cgroup has, those below it may have.
		if body, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers")); err == nil && len(body) > 1 {
			all := "+" + strings.Join(strings.Fields(string(body)), " +")
			if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte(all), 0); err != nil {
				return fmt.Errorf("make cgroup: %w", err)
			}
		}
	}
	return nil
}

// removeCgroup does what the kubelet does when a pod is gone: its cgroup has neither
// processes nor children by then.
func removeCgroup(name string) {
	if name == "" {
		return
	}
	for _, dir := range cgroupDirs(name) {
		_ = os.Remove(dir)
	}
}

// members are the processes of a pod's cgroup and of those below it.
func members(name string) []string {
	if name == "" {
		return nil
	}
	var pids []string
	for _, root := range cgroupDirs(name) {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Name() == "cgroup.procs" {
				body, _ := os.ReadFile(path)
				pids = append(pids, strings.Fields(string(body))...)
			}
			return nil
		})
	}
	slices.Sort(pids)
	return slices.Compact(pids)
}
