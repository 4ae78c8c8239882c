package testkit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
)

// settle is how long the kernel may take for what it does behind our back: links of
// a closed network namespace, exits of killed processes.
const settle = 5 * time.Second

// Leaks makes t fail when it ends with more mounts in its temporary directories or
// in dirs, cgroups of CgroupParent, child processes, descriptors, goroutines or
// network links than it began with. Open each kernel test with it: its check then
// runs after all other clean-up.
func Leaks(t testing.TB, dirs ...string) {
	t.Helper()
	root, _, _ := strings.Cut(t.Name(), "/")
	// The first call also makes the base of TempDir, whose removal comes after us.
	dirs = append(dirs, filepath.Dir(t.TempDir()), filepath.Join(os.TempDir(), root))
	before := take(t, dirs)
	t.Cleanup(func() {
		deadline := time.Now().Add(settle)
		var left []string
		for {
			left = take(t, dirs).minus(before)
			if len(left) == 0 {
				return
			}
			if time.Now().After(deadline) {
				break
			}
			time.Sleep(5 * time.Millisecond) //nolint:forbidigo // nothing tells when the kernel has finished behind us
		}
		for _, s := range left {
			t.Errorf("left behind: %s", s)
			// Else the removal of TempDir would go through the mount.
			if path, ok := strings.CutPrefix(s, "mount "); ok {
				_ = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			}
		}
		if t.Failed() && slices.ContainsFunc(left, func(s string) bool { return strings.HasPrefix(s, "goroutine") }) {
			buf := make([]byte, 1<<16)
			t.Logf("goroutines:\n%s", buf[:runtime.Stack(buf, true)])
		}
	})
}

// snapshot counts things by name.
type snapshot map[string]int

func (s snapshot) minus(before snapshot) (out []string) {
	for _, name := range slices.Sorted(maps.Keys(s)) {
		for range s[name] - before[name] {
			out = append(out, name)
		}
	}
	return out
}

func take(t testing.TB, dirs []string) snapshot {
	t.Helper()
	s := snapshot{}
	s.mounts(t, dirs)
	s.cgroups(t)
	s.children(t)
	s.descriptors(t)
	s["goroutine"] = runtime.NumGoroutine()
	links, err := net.Interfaces()
	if err != nil {
		t.Fatalf("list links: %v", err)
	}
	for _, l := range links {
		s["link "+l.Name]++
	}
	return s
}

func (s snapshot) mounts(t testing.TB, dirs []string) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatalf("list mounts: %v", err)
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		at := unescape.Replace(f[4])
		if slices.ContainsFunc(dirs, func(d string) bool { return strings.HasPrefix(at, d) }) {
			s["mount "+at]++
		}
	}
}

// cgroupPrefix is in the names of all cgroups of this process's tests.
func cgroupPrefix() string { return "cri-test-" + strconv.Itoa(os.Getpid()) + "-" }

func (s snapshot) cgroups(t testing.TB) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatalf("list mounts: %v", err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if i := slices.Index(f, "-"); i < 0 || i+1 >= len(f) || !strings.HasPrefix(f[i+1], "cgroup") {
			continue
		}
		found, _ := filepath.Glob(filepath.Join(f[4], cgroupPrefix()+"*"))
		for _, dir := range found {
			s["cgroup "+dir]++
		}
	}
}

func (s snapshot) children(t testing.TB) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatalf("list children: %v", err)
	}
	for _, name := range tasks {
		b, err := os.ReadFile(name)
		if err != nil { // the thread is gone
			continue
		}
		for pid := range strings.FieldsSeq(string(b)) {
			comm, _ := os.ReadFile("/proc/" + pid + "/comm")
			s[fmt.Sprintf("process %s (%s)", pid, strings.TrimSpace(string(comm)))]++
		}
	}
}

// descriptors leaves out those of the Go runtime's poller.
func (s snapshot) descriptors(t testing.TB) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatalf("list descriptors: %v", err)
	}
	for _, fd := range fds {
		to, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err != nil || strings.HasPrefix(to, "anon_inode:[eventpoll]") || strings.HasPrefix(to, "anon_inode:[eventfd]") ||
			strings.HasSuffix(to, "/fd") {
			continue
		}
		if strings.HasPrefix(to, "pipe:") || strings.HasPrefix(to, "socket:") {
			to = strings.SplitN(to, ":", 2)[0]
		}
		s["descriptor of "+to]++
	}
}

// CgroupParent makes a fresh cgroup in all hierarchies and returns its path. When t
// ends it is removed; sub-cgroups that are still there then fail the test, and are
// killed and removed as well.
func CgroupParent(t testing.TB) cgroup.Path {
	t.Helper()
	Need(t, Root)
	h, err := cgroup.Open(t.Context())
	if err != nil {
		t.Fatalf("make cgroup: %v", err)
	}
	p := cgroup.Path("/").Join(cgroupPrefix() + strconv.FormatInt(time.Now().UnixNano(), 36))
	g, err := h.Create(p, cgroup.Resources{})
	if err != nil {
		t.Fatalf("make cgroup: %v", err)
	}
	t.Cleanup(func() {
		g.Close()
		b, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 5 {
				continue
			}
			below, _ := filepath.Glob(f[4] + string(p) + "/*/cgroup.procs")
			for _, dir := range below {
				t.Errorf("left behind: cgroup %s", filepath.Dir(dir))
			}
		}
		removeCgroup(t, p)
	})
	return p
}

func removeCgroup(t testing.TB, p cgroup.Path) {
	t.Helper()
	// The test's context has ended by now.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), settle)
	defer cancel()
	h, err := cgroup.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	g, err := h.Open(p)
	if errors.Is(err, errdef.ErrNotFound) {
		return
	}
	if err == nil {
		err = errors.Join(g.Kill(ctx), g.Remove(ctx))
	}
	if err != nil {
		t.Errorf("remove cgroup: %v", err)
	}
}
