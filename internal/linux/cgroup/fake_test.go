package cgroup

import (
	"os"
	"path/filepath"
	"testing"
)

// fakeV2 is a host whose v2 tree is a plain directory with one group, "/g".
func fakeV2(t *testing.T) *Host {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "g"), 0o755); err != nil {
		t.Fatal(err)
	}
	return &Host{mode: Unified, unified: &hierarchy{mount: dir, v2: true, controllers: []string{"cpu", "io", "memory", "pids"}}}
}

func writeNew(name, text string) error { return os.WriteFile(name, []byte(text), 0o644) }

// Only lets the kernel tests of other modes reduce a hybrid host to one of its halves.
func (h *Host) Only(v2 bool) *Host {
	if v2 {
		return &Host{mode: Unified, unified: h.unified}
	}
	out := &Host{mode: Legacy}
	for _, x := range h.legacy {
		alone := *x
		alone.shared = false
		out.legacy = append(out.legacy, &alone)
	}
	return out
}

// Shares tells whether the group uses another one's directory in a controller's hierarchy.
func (g *Group) Shares(controller string) bool {
	m, ok := g.of(controller)
	return ok && !m.own
}

// AttachDevices puts rules on a v2 directory whatever the host's mode.
func AttachDevices(dir string, rules []DeviceRule) error {
	return attachDevices(dir, deviceProgram(rules))
}

// Attached counts the device programs on a v2 directory.
func Attached(dir string) (int, error) {
	d, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer func() { _ = d.Close() }()
	ids, err := attachedPrograms(int(d.Fd()))
	return len(ids), err
}

// File reads a file of the group.
func (g *Group) File(controller, name string) string {
	m, _ := g.of(controller)
	s, err := readString(filepath.Join(m.path, name))
	if err != nil {
		return err.Error()
	}
	return s
}

// Kept counts the descriptors that Stats keeps.
func (g *Group) Kept() (n int) {
	for _, k := range g.files {
		if k.state == keptOpen {
			n++
		}
	}
	return n
}
