package cni

import (
	"os"
	"path/filepath"
	"testing"
)

// Rewritten in the same tick of the file system's clock, a file of the same size shows
// the same inode and times (before kernel 6.13, whose times are finer when somebody looks).
func TestChangesWithinATick(t *testing.T) {
	c := &confDir{dir: t.TempDir(), compile: func(l *loaded) *loaded { return l }}
	file := filepath.Join(c.dir, "10-net.conflist")
	for _, name := range []string{"aa", "bb", "cc", "dd", "ee", "ff"} {
		if err := os.WriteFile(file, []byte(`{"cniVersion":"1.0.0","name":"`+name+`","plugins":[{"type":"x"}]}`), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := c.current()
		if err != nil {
			t.Fatal(err)
		}
		if got.list.Name != name {
			t.Errorf("got network %q, want %q", got.list.Name, name)
		}
	}
}
