package promises

import (
	"strings"
	"testing"
	"time"
)

// TestParse: each call goes to whom it belongs, also when lines of threads are mixed and a
// child speaks before its parent's clone has returned.
func TestParse(t *testing.T) {
	const text = `10 100.000001 read(3, "x", 1) = 1
20 100.000002 clone3({flags=CLONE_VM|CLONE_VFORK, exit_signal=SIGCHLD, stack=0x1, stack_size=0x2}, 88 <unfinished ...>
31 100.000003 prctl(PR_SET_DUMPABLE, 0) = 0
10 100.000004 clone(child_stack=0x1, flags=CLONE_VM|CLONE_FS|CLONE_THREAD) = 11
31 100.000005 execve("/bench", ["/bench"], 0x7ff /* 2 vars */ <unfinished ...>
11 100.000006 openat(AT_FDCWD, "/f", O_RDONLY) = 5
20 100.000007 <... clone3 resumed>) = 31
31 100.000008 <... execve resumed>) = 0
31 100.000009 write(1, "ready", 5 <unfinished ...>
11 100.000010 futex(0x1, FUTEX_WAKE_PRIVATE, 1) = 1
31 100.000011 <... write resumed>) = 5
31 100.000012 clone(child_stack=NULL, flags=SIGCHLD) = 32
32 100.000013 getuid() = 0
11 100.000014 clone(child_stack=NULL, flags=SIGCHLD) = 40
40 100.000015 execve("/bin/helper", ["helper"], 0x7ff) = 0
40 100.000016 fsync(3) = 0
32 100.000017 --- SIGTERM {si_signo=SIGTERM} ---
32 100.000018 +++ exited with 0 +++
20 100.000019 sendmsg(7, {}, 0) = -1 EAGAIN (Resource temporarily unavailable)
`
	events, err := parse(strings.NewReader(text), map[int]string{10: byDaemon, 20: byMonitor})
	if err != nil {
		t.Fatal(err)
	}
	from, to := time.Unix(99, 0), time.Unix(101, 0)
	for by, want := range map[string]string{
		byDaemon:  "4: clone 2, openat, read (Go: futex)",
		byMonitor: "2: clone3, sendmsg",
		byPlan:    "2: execve, prctl",
		byOther:   "3: clone, getuid, write",
		byHelper:  "2: execve, fsync",
	} {
		if got := between(events, by, from, to).String(); got != want {
			t.Errorf("%s: got %q, want %q", by, got, want)
		}
	}
	if executed(events) != 2 || synced(events) != 1 {
		t.Errorf("got %d programs, %d syncs, want 2 and 1", executed(events), synced(events))
	}
	if c := between(events, byDaemon, time.UnixMicro(100000004), time.UnixMicro(100000006)); c.sum() != 1 {
		t.Errorf("a part of the time: got %v", c)
	}
}
