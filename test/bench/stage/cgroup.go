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
func (c Cgroup) Command(argv []string) []string {
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
