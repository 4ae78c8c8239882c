package main

import (
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/linux/clone"
	"github.com/cri-runtime/cri-runtime/oci/monitor/wire"
)

// waiter is the thread that waits for children. waitid tells of every child, the
// ones that were left to us as a subreaper included; SIGCHLD would not do, since
// the Go runtime takes it on any thread and keeps it from a signalfd. It is no thread of the
// Go runtime, whose one processor would be handed to and fro for it.
type waiter struct {
	told int // eventfd: a child has ended
	wake int // eventfd: look again
	one  uint64
	got  uint64
}

func newWaiter() (*waiter, unix.Errno) {
	told, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errno(err)
	}
	again, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, errno(err)
	}
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, errno(err)
	}
	w := (*waiter)(unsafe.Pointer(&page[0]))
	*w = waiter{told: told, wake: again, one: 1}
	return w, 0
}

// run begins to wait. The thread ends with the process.
func (w *waiter) run() unix.Errno { return clone.Thread(waitForChildren, unsafe.Pointer(w)) }

//go:norace
//go:nosplit
func waitForChildren(p unsafe.Pointer, _ syscall.Errno) {
	w := (*waiter)(p)
	for {
		_, _, e := syscall.RawSyscall6(unix.SYS_WAITID, unix.P_ALL, 0, 0, unix.WEXITED|unix.WNOWAIT, 0, 0)
		if e == 0 {
			_, _, _ = syscall.RawSyscall(unix.SYS_WRITE, uintptr(w.told), uintptr(unsafe.Pointer(&w.one)), 8)
		}
		// Without children there is nothing to wait for until the next clone; with
		// an ended one the main thread must reap it first.
		_, _, _ = syscall.RawSyscall(unix.SYS_READ, uintptr(w.wake), uintptr(unsafe.Pointer(&w.got)), 8)
	}
}

// again lets the thread look again.
func (w *waiter) again() { signal(w.wake) }

func signal(eventfd int) {
	one := [8]byte{1}
	_, _ = unix.Write(eventfd, one[:])
}

// childInfo is struct siginfo as waitid fills it on 64-bit machines.
type childInfo struct {
	signo, errno, code, _ int32
	pid                   int32
	uid                   uint32
	status                int32
	_                     [25]int32
}

// waitStatus is what wait4 would give.
func (i *childInfo) waitStatus() uint32 {
	const exited, dumped = 1, 3 // CLD_EXITED, CLD_DUMPED
	switch i.code {
	case exited:
		return uint32(i.status&0xff) << 8
	case dumped:
		return uint32(i.status&0x7f) | 0x80
	}
	return uint32(i.status & 0x7f)
}

// peekChild looks at an ended child without reaping it.
func peekChild(flags int) (childInfo, unix.Errno) {
	for {
		var info childInfo
		_, _, e := unix.Syscall6(unix.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)),
			uintptr(unix.WEXITED|unix.WNOWAIT|flags), 0, 0)
		if e != unix.EINTR {
			return info, e
		}
	}
}

// ourChild tells whether waitid knows pid.
func ourChild(pid int) bool {
	for {
		_, _, e := unix.Syscall6(unix.SYS_WAITID, unix.P_PID, uintptr(pid), 0,
			unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, 0, 0)
		if e != unix.EINTR {
			return e == 0
		}
	}
}

// reap takes all ended children. A child stays a zombie until its exit is
// recorded: if this process is killed in between, whoever inherits the zombie
// reaps it, and its pidfd tells the next monitor the status.
func (m *monitor) reap() {
	drainEvent(m.waiter.told)
	for {
		info, e := peekChild(unix.WNOHANG)
		if e != 0 || info.pid == 0 {
			break
		}
		m.ended1(int(info.pid), wire.Exit{
			Status: info.waitStatus(), Known: true, At: time.Now().UnixNano(), Boot: bootTime(),
		})
		if _, err := unix.Wait4(int(info.pid), nil, 0, nil); err != nil {
			break
		}
	}
	m.waiter.again()
}

func (m *monitor) ended1(pid int, x wire.Exit) {
	if m.byPID[pid] == nil {
		// It may be a second stage that has not been announced to us yet.
		m.readLaunches()
	}
	if c := m.byPID[pid]; c != nil && c.launch != nil {
		c.launch.read()
	}
	c := m.byPID[pid]
	if c == nil {
		m.strays.add(pid, x)
		return
	}
	if l := c.launch; l != nil {
		if !l.ready && !l.failed {
			l.lost()
			return
		}
		// It has said its last word, although a first stage that was slow to end may still
		// hold the pipe.
		if l.end(); m.byPID[pid] != c {
			return
		}
	}
	delete(m.byPID, pid)
	c.finish(x)
}

func drainEvent(fd int) {
	var b [8]byte
	_, _ = unix.Read(fd, b[:])
}

// strays remembers the last children that nobody had asked for, for those who ask
// late: an OCI runtime's container may have ended before its Adopt arrives.
type strays struct {
	last [512]struct {
		pid  int
		exit wire.Exit
	}
	next int
}

func (s *strays) add(pid int, x wire.Exit) {
	s.last[s.next%len(s.last)].pid = pid
	s.last[s.next%len(s.last)].exit = x
	s.next++
}

// strayAge bounds how old a stray's exit may be: pids are used again.
const strayAge = 60e9

func (s *strays) take(pid int) (wire.Exit, bool) {
	for i := range s.last {
		l := &s.last[i]
		if l.pid == pid && bootTime()-l.exit.Boot < strayAge {
			l.pid = 0
			return l.exit, true
		}
	}
	return wire.Exit{}, false
}

// watchOrphan waits for a process that is not our child.
func (c *container) watchOrphan() unix.Errno {
	c.orphan = true
	id, e := c.m.watch(c.pidfd, handler{orphan: c})
	c.orphanWatch = id
	return e
}

// orphanPatience is how long pid 1 may take to reap.
const orphanPatience = 5e9

// orphanEnded finds out how an orphan ended. The kernel tells (since 6.15) once
// somebody has reaped it, which a hang-up on the pidfd announces.
func (c *container) orphanEnded() {
	if c.exited || ourChild(c.pid) && c.m.byPID[c.pid] == c {
		return // reap does it
	}
	x := wire.Exit{At: time.Now().UnixNano(), Boot: bootTime()}
	if c.orphanSeen.Boot == 0 {
		c.orphanSeen = x
	}
	x.At, x.Boot = c.orphanSeen.At, c.orphanSeen.Boot
	if old, ok := c.m.readRecord(c.id); ok {
		x = old // the last monitor was killed after it had recorded this
	} else {
		status, reaped, able := exitInfo(c.pidfd)
		if able && !reaped && bootTime()-c.orphanSeen.Boot < orphanPatience {
			// Only the hang-up from now on; the timer is for a pid 1 that sleeps.
			c.m.rewatch(c.orphanWatch, c.pidfd, 0)
			c.m.waiting = true
			return
		}
		x.Status, x.Known = status, able && reaped
	}
	c.finish(x)
}
