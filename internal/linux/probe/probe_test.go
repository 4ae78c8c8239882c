package probe

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

func TestRun(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	dir := t.TempDir()
	begin := time.Now()
	h := host(t)
	file := filepath.Join(t.TempDir(), "found")
	f := run(t, h, file, dir)
	t.Logf("took %v\n%s", time.Since(begin), f)
	if !f.Overlay || !f.RecursiveReadOnly || !f.CloneIntoCgroup {
		t.Errorf("something that every supported kernel has is missing: %+v", f)
	}
	for name, newer := range map[string]bool{"exit status by pidfd": f.PidfdInfo, "overlay over detached mounts": f.OverlayDetached} {
		if has615 := testkit.Kernel(6, 15); has615.Check() == nil && !newer {
			t.Errorf("%s: not found on a kernel that has it: %s", name, f.Reasons[name])
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if again := run(t, h, file, dir); !reflect.DeepEqual(again, f) {
		t.Errorf("the second time: got %v, want %v", again, f)
	}
	for _, line := range f.Lines() {
		if strings.Contains(line, "\n") || strings.HasSuffix(line, ": ") {
			t.Errorf("line %q: want one line with a reason", line)
		}
	}
}

func host(t *testing.T) *cgroup.Host {
	t.Helper()
	h, err := cgroup.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func run(t *testing.T, h *cgroup.Host, file, dir string) Features {
	t.Helper()
	m, err := Remember(t.Context(), file, dir)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Run(t.Context(), h, m)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestMemory: what was found is not tried again, what was missing is, and nothing is
// believed that another program or another kernel found, or on another file system.
func TestMemory(t *testing.T) {
	missing := errors.New("no such thing")
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "found")
	remember := func() *Memory {
		m, err := Remember(context.Background(), file, dir)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	tried := func(m *Memory, name string, err error) bool {
		var ran bool
		if got := m.Try(name, func() error { ran = true; return err }); ran && !errors.Is(got, err) || !ran && got != nil {
			t.Errorf("%s: got %v, want %v", name, got, err)
		}
		return ran
	}
	m := remember()
	if !tried(m, "there", nil) || !tried(m, "gone", missing) {
		t.Error("believed without a trial")
	}
	m.Save(t.Context())
	if m = remember(); tried(m, "there", nil) || !tried(m, "gone", missing) || !tried(m, "other", nil) {
		t.Error("what was found was tried again, or what was missing was not")
	}
	for what, change := range map[string]func(*answers){
		"program": func(a *answers) { a.Program += "1" }, "kernel": func(a *answers) { a.Kernel += "1" }, "file system": func(a *answers) { a.Device++ },
	} {
		m := remember()
		change(&m.now)
		m.fresh = true
		m.Save(t.Context())
		if !tried(remember(), "there", nil) {
			t.Errorf("believed what was found by another %s", what)
		}
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !tried(remember(), "there", nil) {
		t.Error("believed a damaged file")
	}
}
