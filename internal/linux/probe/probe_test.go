package probe

import (
	"os"
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
	h, err := cgroup.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f, err := Run(t.Context(), h, dir)
	if err != nil {
		t.Fatal(err)
	}
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
	for _, line := range f.Lines() {
		if strings.Contains(line, "\n") || strings.HasSuffix(line, ": ") {
			t.Errorf("line %q: want one line with a reason", line)
		}
	}
}
