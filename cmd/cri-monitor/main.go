// Command cri-monitor is the parent of all containers of a node. It carries out
// launch plans, reaps, writes container logs, and survives the daemon.
//
// It does no more than that: no JSON, no network, no fmt, one thread that loops
// over epoll and one that waits for children. The daemon talks to it over one
// SOCK_SEQPACKET socket in the state directory (package oci/monitor/wire); a new
// connection replaces the old, and only root is served. It never waits for the
// daemon, for attached clients, for a launch or for a full disk.
//
// It may be killed at any instruction: the daemon holds duplicates of all
// descriptors and hands them to the next monitor; see journal.go for why no log
// line is lost or repeated then. It replaces itself by execve when asked to, and runs
// from a sealed copy of its file in memory, so that no container gets at the file.
//
// On disk it leaves exits/<id>, one record for each process that has ended until
// the daemon forgets it, and in monitor.log what the Go runtime says in a crash.
// The socket and both directories are made by the daemon, which passes them as
// descriptors 3 and 4.
package main

import (
	"runtime"

	"golang.org/x/sys/unix"
)

const (
	listenFd = 3
	exitsFd  = 4
)

func main() {
	// Children are cloned from this thread, and a parent's death signal or a
	// ptrace relation would be the thread's.
	runtime.LockOSThread()
	if e := given(); e != 0 {
		die("cri-monitor: this is started by cri-runtime serve, not by hand: ", e)
	}
	if e := runSealed(); e != 0 {
		die("cri-monitor: run from a sealed copy: ", e)
	}
	tightTimers()
	m, e := newMonitor()
	if fd, ok := resumed(); ok && e == 0 {
		e = m.resume(fd)
	}
	if e == 0 {
		e = m.loop()
	}
	die("cri-monitor: ", e)
}

// given sees that the daemon's descriptors are there. Whatever else happens to have these
// numbers, when somebody tries the program by hand, would be readable for ever and keep
// the loop spinning.
func given() unix.Errno {
	if listens, err := unix.GetsockoptInt(listenFd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil {
		return errno(err)
	} else if listens == 0 {
		return unix.EINVAL
	}
	var st unix.Stat_t
	if err := unix.Fstat(exitsFd, &st); err != nil {
		return errno(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return unix.ENOTDIR
	}
	return 0
}

func die(what string, e unix.Errno) {
	msg := what + e.Error() + "\n"
	_, _ = unix.Write(2, []byte(msg))
	unix.Exit(1)
}

// handler is who looks after a descriptor.
type handler struct {
	stream *stream
	launch *launch
	orphan *container
	conn   *conn
	what   int // 0 or one of the below
}

const (
	onListen = iota + 1
	onWaiter
)

// monitor is the whole state; only the main thread touches it.
type monitor struct {
	epoll    int
	null     int
	handlers map[int32]handler
	lastID   int32
	waiter   *waiter
	strays   strays
	journal  *journal
	conn     *conn
	waiting  bool // for pid 1 to reap an orphan: look again soon
	launches uint // so far
	byID     map[string]*container
	byPID    map[int]*container
	ended    map[string]*wireStats
}

func newMonitor() (*monitor, unix.Errno) {
	for _, fd := range []int{listenFd, exitsFd} {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return nil, errno(err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, errno(err)
	}
	m := &monitor{
		handlers: map[int32]handler{}, byID: map[string]*container{},
		byPID: map[int]*container{}, ended: map[string]*wireStats{},
	}
	var err error
	if m.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, errno(err)
	}
	if m.null, err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return nil, errno(err)
	}
	var e unix.Errno
	if m.waiter, e = newWaiter(); e != 0 {
		return nil, e
	}
	if _, e = m.watch(m.waiter.told, handler{what: onWaiter}); e != 0 {
		return nil, e
	}
	if _, e = m.watch(listenFd, handler{what: onListen}); e != 0 {
		return nil, e
	}
	return m, 0
}

// watch adds a descriptor to the loop, for reading.
func (m *monitor) watch(fd int, h handler) (int32, unix.Errno) {
	return m.watchFor(fd, h, unix.EPOLLIN)
}

// watchFor adds a descriptor to the loop; a hang-up is told in any case. Ids are never used
// twice, so that an event fetched before an unwatch finds nobody.
func (m *monitor) watchFor(fd int, h handler, events uint32) (int32, unix.Errno) {
	for m.lastID++; m.lastID <= 0 || m.handlers[m.lastID] != (handler{}); m.lastID++ {
	}
	id := m.lastID
	if err := unix.EpollCtl(m.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: id}); err != nil {
		return 0, errno(err)
	}
	m.handlers[id] = h
	return id, 0
}

func (m *monitor) rewatch(id int32, fd int, events uint32) {
	_ = unix.EpollCtl(m.epoll, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Events: events, Fd: id})
}

func (m *monitor) unwatch(id int32, fd int) {
	// The daemon's duplicates keep the file open: closing ours does not remove it.
	_ = unix.EpollCtl(m.epoll, unix.EPOLL_CTL_DEL, fd, nil)
	delete(m.handlers, id)
}

// loop never returns unless epoll fails.
func (m *monitor) loop() unix.Errno {
	if e := m.waiter.run(); e != 0 {
		return e
	}
	m.waiter.again()
	events := make([]unix.EpollEvent, 64)
	for {
		wait := -1
		if m.waiting {
			wait = 1000
		}
		n, err := unix.EpollWait(m.epoll, events, wait)
		if err != nil && errno(err) != unix.EINTR {
			return errno(err)
		}
		if n == 0 && m.waiting {
			m.lookAtOrphans()
		}
		for _, ev := range events[:max(n, 0)] {
			m.dispatch(m.handlers[ev.Fd], ev.Events)
		}
	}
}

func (m *monitor) dispatch(h handler, events uint32) {
	switch {
	case h.stream != nil:
		h.stream.readable()
	case h.launch != nil:
		h.launch.read()
	case h.orphan != nil:
		h.orphan.orphanEnded()
	case h.conn != nil:
		h.conn.ready(events)
	case h.what == onWaiter:
		m.reap()
	case h.what == onListen:
		m.accept()
	}
}

// lookAtOrphans is for a pid 1 that is slow to reap: there is no other sign.
func (m *monitor) lookAtOrphans() {
	m.waiting = false
	for _, c := range m.byID {
		if c.orphanSeen.Boot != 0 && !c.exited {
			c.orphanEnded()
		}
	}
}

func (m *monitor) readLaunches() {
	for _, c := range m.byID {
		if c.launch != nil {
			c.launch.read()
		}
	}
}

// own notes that pid is the container's process and our child.
func (m *monitor) own(c *container, pid int) {
	c.pid = pid
	m.byID[c.id] = c
	m.byPID[pid] = c
	m.waiter.again()
}
