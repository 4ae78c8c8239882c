// Package testkit is what kernel tests share: needs, leak checks, golden files.
//
// It is imported by tests only. A check runs when its test ends and waits a bounded
// time for what the kernel does behind our back. It refuses to look at what other
// processes may own: mounts outside the test's directories, foreign cgroups. It
// leaves nothing on disk.
package testkit

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
)

// A Requirement is something that a test cannot do without.
type Requirement struct {
	name  string
	check func() error
}

// Check tells what is missing, nil for nothing.
func (r Requirement) Check() error { return r.check() }

// The requirements.
var (
	Root = Requirement{"root", func() error {
		if os.Geteuid() != 0 {
			return errors.New("not root")
		}
		return nil
	}}
	// CgroupV1 wants controllers in v1 hierarchies, CgroupV2 in the unified one, and
	// UnifiedTree a cgroup2 mount with or without controllers.
	CgroupV1 = Requirement{"cgroup v1", func() error { return cgroupMode(cgroup.Legacy) }}
	CgroupV2 = Requirement{"cgroup v2", func() error { return cgroupMode(cgroup.Unified) }}
	// UnifiedTree is a cgroup2 mount.
	UnifiedTree = Requirement{"cgroup2 mount", func() error {
		if _, ok := unifiedMount(); !ok {
			return errors.New("no cgroup2 is mounted")
		}
		return nil
	}}
	Overlay = Requirement{"overlay", func() error { return filesystem("overlay") }}
	EROFS   = Requirement{"erofs", func() error { return filesystem("erofs") }}
	// UserNamespaces are allowed by the kernel's limit.
	UserNamespaces = Requirement{"user namespaces", func() error {
		b, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
		if err == nil && strings.TrimSpace(string(b)) == "0" {
			err = errors.New("user.max_user_namespaces is 0")
		}
		return err
	}}
	// AppArmor is a kernel with profiles.
	AppArmor = Requirement{"apparmor", func() error {
		_, err := os.Stat("/sys/kernel/security/apparmor/profiles")
		return err
	}}
)

// Tool asks for a program in PATH.
func Tool(name string) Requirement {
	return Requirement{"program " + name, func() error {
		_, err := exec.LookPath(name)
		return err
	}}
}

// Kernel asks for a version.
func Kernel(major, minor int) Requirement {
	return Requirement{fmt.Sprintf("kernel %d.%d", major, minor), func() error {
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			return err
		}
		var a, b int
		release := unix.ByteSliceToString(u.Release[:])
		if _, err := fmt.Sscanf(release, "%d.%d", &a, &b); err != nil {
			return err
		}
		if a < major || a == major && b < minor {
			return fmt.Errorf("this is %s", release)
		}
		return nil
	}}
}

// Need skips t when something is missing, or fails it with CRI_TEST_STRICT=1, so
// that nothing goes untested in silence where it should be tested.
func Need(t testing.TB, needs ...Requirement) {
	t.Helper()
	for _, n := range needs {
		err := n.check()
		if err == nil {
			continue
		}
		if os.Getenv("CRI_TEST_STRICT") == "1" {
			t.Fatalf("needs %s: %v", n.name, err)
		}
		t.Skipf("needs %s: %v", n.name, err)
	}
}

func cgroupMode(want cgroup.Mode) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	v1 := strings.Contains(string(b), " - cgroup ")
	if v1 != (want == cgroup.Legacy) {
		return fmt.Errorf("the controllers are elsewhere (v1 mounts: %v)", v1)
	}
	return nil
}

func unifiedMount() (string, bool) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if i := slices.Index(f, "-"); i > 4 && i+1 < len(f) && f[i+1] == "cgroup2" {
			return f[4], true
		}
	}
	return "", false
}

// UnifiedDir makes an empty cgroup in the v2 tree and returns its directory, which
// is removed when t ends.
func UnifiedDir(t testing.TB) string {
	t.Helper()
	Need(t, Root, UnifiedTree)
	mount, _ := unifiedMount()
	dir, err := os.MkdirTemp(mount, cgroupPrefix()) //nolint:usetesting // in the v2 tree
	if err != nil {
		t.Fatalf("make cgroup: %v", err)
	}
	t.Cleanup(func() { removeCgroup(t, cgroup.Path("/"+filepath.Base(dir))) })
	return dir
}

func filesystem(name string) error {
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	if slices.Contains(strings.Fields(string(b)), name) {
		return nil
	}
	// It may be a module that the first use loads.
	fd, err := unix.Fsopen(name, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open filesystem: %w", err)
	}
	return unix.Close(fd)
}

var update = flag.Bool("update", false, "rewrite golden files")

// Golden compares got with testdata/name, or rewrites that file with -update.
func Golden(t testing.TB, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", filepath.FromSlash(name))
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("golden file (make it with -update): %v", err)
	}
	if string(want) == string(got) {
		return
	}
	line, a, b := firstDifference(string(got), string(want))
	t.Errorf("%s differs in line %d:\n got: %s\nwant: %s", file, line, a, b)
}

func firstDifference(got, want string) (line int, a, b string) {
	x, y := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(x), len(y)) {
		a, b := "(end)", "(end)"
		if i < len(x) {
			a = x[i]
		}
		if i < len(y) {
			b = y[i]
		}
		if a != b {
			return i + 1, a, b
		}
	}
	return 0, "", ""
}
