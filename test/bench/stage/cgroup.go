package stage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Cgroup counts the processor time of a runtime and all its children, those included
// that have ended.
type Cgroup struct{ dir string }

// NewCgroup makes one in the hierarchy that counts processor time: cpuacct of version
// 1, or version 2.
func NewCgroup(name string) (Cgroup, error) {
	mounts, err := cgroupMounts()
	if err != nil {
		return Cgroup{}, err
	}
	root := ""
	for _, m := range mounts {
		if m.FSType == "cgroup" && slices.Contains(strings.Split(m.VFSOptions, ","), "cpuacct") {
			root = m.Mountpoint
			break
		}
		if m.FSType == "cgroup2" && root == "" {
			root = m.Mountpoint
		}
	}
	if root == "" {
		return Cgroup{}, errors.New("count processor time: neither cpuacct nor cgroup2 is mounted")
	}
	c := Cgroup{filepath.Join(root, name)}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return Cgroup{}, fmt.Errorf("make cgroup: %w", err)
	}
	return c, nil
}

func cgroupMounts() ([]*mountinfo.Info, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	return mounts, nil
}

// Command puts the program of a command line into the cgroup: a shell goes there first.
// No cgroup leaves it where it is.
func (c Cgroup) Command(argv []string) []string {
	if c.dir == "" {
		return argv
	}
	return append([]string{"/bin/sh", "-c", `echo 0 >"$1/cgroup.procs" && shift && exec "$@"`, "sh", c.dir}, argv...)
}

// CPU is the time used so far.
func (c Cgroup) CPU() (time.Duration, error) {
	if body, err := os.ReadFile(filepath.Join(c.dir, "cpuacct.usage")); err == nil {
		n, err := strconv.ParseInt(strings.TrimSpace(string(body)), 10, 64)
		return time.Duration(n), err
	}
	body, err := os.ReadFile(filepath.Join(c.dir, "cpu.stat"))
	if err != nil {
		return 0, fmt.Errorf("read processor time: %w", err)
	}
	for line := range strings.Lines(string(body)) {
		if v, ok := strings.CutPrefix(line, "usage_usec "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return time.Duration(n) * time.Microsecond, err
		}
	}
	return 0, fmt.Errorf("read processor time: no usage_usec in %s", c.dir)
}

// PIDs are the processes of the cgroup and of those below it.
func (c Cgroup) PIDs() (out []int) {
	_ = filepath.WalkDir(c.dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // a cgroup below it that has just gone has no processes
		}
		body, _ := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		for field := range strings.FieldsSeq(string(body)) {
			if pid, err := strconv.Atoi(field); err == nil {
				out = append(out, pid)
			}
		}
		return nil
	})
	return out
}

// RemoveCgroups removes the cgroups called name from all hierarchies, deepest first. A
// cgroup is busy for a moment after its last process has ended.
func RemoveCgroups(name string) error {
	mounts, err := cgroupMounts()
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		var busy error
		for _, m := range mounts {
			var dirs []string
			_ = filepath.WalkDir(filepath.Join(m.Mountpoint, name), func(p string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, p)
				}
				return nil
			})
			for _, dir := range slices.Backward(dirs) {
				if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
					busy = fmt.Errorf("remove cgroup %s: %w", dir, err)
				}
			}
		}
		if busy == nil || time.Now().After(deadline) {
			return busy
		}
		<-time.After(20 * time.Millisecond)
	}
}

// Dir is its directory in the hierarchy that counts.
func (c Cgroup) Dir() string { return c.dir }

// MakeCgroups makes a cgroup, and those above it, in all hierarchies, ready to hold pods:
// what a kubelet does for the parent of its pods' cgroups.
func MakeCgroups(name string) error {
	mounts, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		dir := m.Mountpoint
		for part := range strings.SplitSeq(name, "/") {
			parent := dir
			dir = filepath.Join(dir, part)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make cgroup: %w", err)
			}
			if err := fill(parent, dir); err != nil {
				return fmt.Errorf("make cgroup: %w", err)
			}
		}
	}
	return nil
}

// fill gives a new cgroup what it needs to take processes and children: in version 1 a
// cpuset takes none while it is empty, in version 2 controllers are handed down.
func fill(parent, dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		own, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || len(strings.TrimSpace(string(own))) > 0 {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, "cgroup.controllers")); err == nil {
			continue // empty means all there
		}
		body, err := os.ReadFile(filepath.Join(parent, file))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), body, 0); err != nil {
			return err
		}
	}
	if body, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers")); err == nil && len(body) > 1 {
		all := "+" + strings.Join(strings.Fields(string(body)), " +")
		return os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte(all), 0)
	}
	return nil
}
