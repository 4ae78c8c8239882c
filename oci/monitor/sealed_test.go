package monitor

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A container that runs /proc/self/exe gets a handle of the monitor's program
// (CVE-2019-5736): it must be a copy that cannot be written to, after an upgrade too.
func TestMonitorRunsFromSealedCopy(t *testing.T) {
	w := newWorld(t)
	check := func(when string) {
		t.Helper()
		f, err := os.Open(fmt.Sprintf("/proc/%d/exe", w.c.MonitorPID()))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
		const want = unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL
		if err != nil || seals&want != want {
			t.Errorf("%s: seals of the monitor's program: got %#x, %v, want %#x", when, seals, err, want)
		}
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", w.c.MonitorPID()))
		if err != nil || string(comm) != "cri-monitor\n" {
			t.Errorf("%s: name: got %q, %v", when, comm, err)
		}
	}
	check("at the start")
	w.run("a", os.Args[0], "-test.run=^$")
	<-w.c.Done("a")
	if err := w.c.Upgrade(t.Context()); err != nil {
		t.Fatal(err)
	}
	check("after an upgrade")
}
