package lab

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// Mount is a line of the mount table.
type Mount struct{ Point, Type string }

// ReadMounts reads this process's mount table.
func ReadMounts() ([]Mount, error) {
	body, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var mounts []Mount
	for line := range strings.Lines(string(body)) {
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 1 {
			return nil, fmt.Errorf("read mount table: odd line %q", line)
		}
		mounts = append(mounts, Mount{l[4], r[0]})
	}
	return mounts, nil
}

// Snapshot counts the kernel objects of this machine half, by kind and by name with
// the parts that differ from pod to pod taken out: it is compared by growth, so that
// a pool of a fixed size may change its members.
type Snapshot map[string]int

var variable = regexp.MustCompile(`[0-9a-f]{6,}|[0-9]+`)

func (s Snapshot) add(kind, name string) { s[kind+" "+variable.ReplaceAllString(name, "*")]++ }

// Take looks at mounts (which hold pinned namespaces, too), processes, links,
// cgroups and the daemon's runtime state.
func Take(state, cgroup string) (Snapshot, error) {
	s := Snapshot{}
	mounts, err := ReadMounts()
	if err != nil {
		return nil, err
	}
	for _, m := range mounts {
		s.add("mount "+m.Type, m.Point)
		if m.Type == "cgroup" || m.Type == "cgroup2" {
			below(filepath.Join(m.Point, cgroup), func(name string, d fs.DirEntry) {
				if d.IsDir() {
					s.add("cgroup", filepath.Base(m.Point)+":"+name)
				}
			})
		}
	}
	if state != "" {
		below(state, func(name string, _ fs.DirEntry) { s.add("state", name) })
	}
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, link := range links {
		s.add("link", link.Type())
	}
	return s, s.processes()
}

// below walks what is below dir; what vanishes meanwhile is passed over.
func below(dir string, visit func(name string, d fs.DirEntry)) {
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if rel, relErr := filepath.Rel(dir, p); err == nil && relErr == nil && rel != "." {
			visit(rel, d)
		}
		return nil
	})
}

// processes counts all processes of the process namespace except this one and the
// first one.
func (s Snapshot) processes() error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || pid == 1 {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		open, end := strings.IndexByte(string(stat), '('), strings.LastIndexByte(string(stat), ')')
		if err != nil || open < 0 || end < open {
			continue // gone
		}
		name, rest := string(stat[open+1:end]), strings.Fields(string(stat[end+1:]))
		if rest[0] == "Z" {
			name += " (zombie)"
		}
		s.add("process", name)
	}
	return nil
}

// Growth lists what there is more of than before.
func (s Snapshot) Growth(before Snapshot) []string {
	var more []string
	for name, n := range s {
		if n > before[name] {
			more = append(more, fmt.Sprintf("%s: %d, was %d", name, n, before[name]))
		}
	}
	slices.Sort(more)
	return more
}

// CheckLeaks waits until nothing is left that was not there before. The kernel
// removes links, and the daemon's last work for a pod ends, after the pod is gone.
func CheckLeaks(t testing.TB, state string, before Snapshot) {
	t.Helper()
	var more []string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		after, err := Take(state, here.Cgroup)
		if err != nil {
			t.Fatal(err)
		}
		if more = after.Growth(before); len(more) == 0 {
			return
		}
	}
	t.Errorf("left behind:\n  %s", strings.Join(more, "\n  "))
}
