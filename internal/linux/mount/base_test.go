package mount

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/linux/thread"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// TestBase: little is in it, what is there is the host's, and the host notices nothing.
func TestBase(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	mounts := func() string {
		b, err := os.ReadFile("/proc/thread-self/mountinfo")
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	host := mounts()
	base, err := Base()
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	if got := mounts(); got != host {
		t.Errorf("mounts of the host: got\n%s, want\n%s", got, host)
	}
	var inside, null string
	var root []string
	if err := thread.Throwaway(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		if err := unix.Setns(int(base.Fd()), unix.CLONE_NEWNS); err != nil {
			return err
		}
		inside = mounts()
		root, err = filepath.Glob("/*")
		var st unix.Stat_t
		if err := unix.Stat("/dev/null", &st); err == nil && st.Rdev == unix.Mkdev(1, 3) {
			null = "null"
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(root, " "); got != "/dev /proc /sys" || null == "" {
		t.Errorf("root: got %s, null device %q", got, null)
	}
	below := func(all, dir string) (n int) {
		for line := range strings.Lines(all) {
			if f := strings.Fields(line); f[4] == dir || strings.HasPrefix(f[4], dir+"/") {
				n++
			}
		}
		return n
	}
	for _, dir := range []string{"/proc", "/sys"} {
		if got, want := below(inside, dir), below(host, dir); got != want || got == 0 {
			t.Errorf("%s: got %d mounts, want %d", dir, got, want)
		}
	}
	if got, want := strings.Count(inside, "\n"), below(host, "/proc")+below(host, "/sys")+2; got != want {
		t.Errorf("got %d mounts, want %d:\n%s", got, want, inside)
	}
}
