package main

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/oci/launch/plan"
	"github.com/cri-runtime/cri-runtime/oci/monitor/wire"
)

// launch is a plan that is being carried out by a child.
type launch struct {
	c      *container
	status int // read end of the status pipe
	watch  int32
	pty    int // our end of the socket that the terminal's master comes over
	ready  bool
	failed bool
	rec    plan.Record
	seq    uint32 // of the request to answer
}

// isolateEvery is after how many launches memory is looked for that has come since and would
// be copied for children: the heap grows by 4 MiB at a time.
const isolateEvery = 256

// begin clones the child. The plan is in text or, when that is empty, in planFd; it and its
// descriptors stay the caller's.
func (c *container) begin(text []byte, planFd, pty int, inputs []int32) unix.Errno {
	if c.m.launches%isolateEvery == 0 {
		plan.Isolate()
	}
	c.m.launches++
	p, e := loadPlan(text, planFd)
	if e != 0 {
		return e
	}
	defer p.Unmap()
	child, e := p.Start(inputs)
	if e != 0 {
		return e
	}
	c.launch = &launch{c: c, status: child.Status, pty: pty}
	c.pidfd = child.PIDFD
	c.m.own(c, child.PID)
	return c.launch.listen()
}

func loadPlan(text []byte, fd int) (*plan.Loaded, unix.Errno) {
	if len(text) > 0 {
		return plan.Load(text)
	}
	return plan.Map(fd)
}

// listen waits for the end of the status pipe: what the child says on the way is read then,
// or when there is a reason to ask.
func (l *launch) listen() unix.Errno {
	id, e := l.c.m.watchFor(l.status, handler{launch: l}, 0)
	l.watch = id
	return e
}

func (l *launch) close() {
	if l.watch != 0 {
		l.c.m.unwatch(l.watch, l.status)
	}
	closeFd(l.status, l.pty)
	l.status, l.pty, l.watch = -1, -1, 0
}

// read takes what the child says about itself.
func (l *launch) read() {
	var b [plan.RecordSize]byte
	for {
		n, e := read(l.status, b[:])
		switch {
		case e == unix.EINTR:
			continue
		case e == unix.EAGAIN:
			return
		case e != 0 || n != len(b): // records are atomic, being shorter than PIPE_BUF
			l.end()
			return
		}
		switch r := plan.Decode(b[:]); r.Step {
		case plan.StepReady:
			l.ready = true
		case plan.StepClone:
			l.secondStage(int(r.Value))
		default:
			l.failed, l.rec = true, r
		}
	}
}

// secondStage makes the announced process the container's. It is our child too,
// cloned with CLONE_PARENT, and was not reaped unless it is among the strays.
func (l *launch) secondStage(pid int) {
	c := l.c
	if pid == c.pid { // both stages say so
		return
	}
	closeFd(c.pidfd)
	c.pidfd = -1
	delete(l.c.m.byPID, c.pid)
	fd, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		c.pidfd = fd
	}
	l.c.m.own(c, pid)
	c.killAbandoned()
}

// end is the end of the status pipe: exec has succeeded, or the child is gone.
func (l *launch) end() {
	c := l.c
	switch {
	case l.failed:
		l.c.m.fail(l.seq, l.rec.Step, unix.Errno(l.rec.Value))
	case !l.ready:
		l.c.m.fail(l.seq, wire.StepDied, unix.ECANCELED)
	}
	if l.failed || !l.ready {
		if c.pidfd >= 0 { // it may be on its way to its _exit
			_ = unix.PidfdSendSignal(c.pidfd, unix.SIGKILL, nil, 0)
		}
		c.free()
		return
	}
	if l.pty >= 0 {
		c.takeMaster(l.pty)
	}
	seq := l.seq
	l.close()
	c.launch = nil
	if c.flags&wire.FlagEphemeral == 0 { // nobody asks for it after an exec session
		c.start = startTime(c.pid)
	}
	l.c.m.started(seq, c)
	c.killAbandoned()
	if x, ok := l.c.m.strays.take(c.pid); ok && c.pidfd < 0 {
		delete(l.c.m.byPID, c.pid)
		c.finish(x)
	}
}

// lost is the end of a first stage that has not said whom it cloned: it was killed in
// between. The other stage lives and holds the status pipe, and nobody knows its pid:
// whoever asked for the launch kills its cgroup.
func (l *launch) lost() {
	l.c.m.fail(l.seq, wire.StepDied, unix.ECANCELED)
	l.c.free()
}

// killAbandoned ends what nobody waits for and the first kill may have missed.
func (c *container) killAbandoned() {
	if c.flags&flagAbandoned != 0 && c.pidfd >= 0 {
		_ = unix.PidfdSendSignal(c.pidfd, unix.SIGKILL, nil, 0)
	}
}

// takeMaster receives the terminal that the launch has made and sent before exec.
func (c *container) takeMaster(sock int) {
	oob := make([]byte, unix.CmsgSpace(4))
	var b [16]byte
	_, n, _, _, err := unix.Recvmsg(sock, b[:], oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return
	}
	fds := rights(oob[:n])
	if len(fds) == 0 {
		return
	}
	c.master = fds[0]
	_ = c.addStream(0, c.master, true, false)
}

// spawn runs a program; it returns once exec has succeeded.
func (c *container) spawn(prog *wire.Program, stdio [3]int) unix.Errno {
	files := make([]uintptr, 3)
	for i, fd := range stdio {
		files[i] = uintptr(c.m.null)
		if fd >= 0 {
			files[i] = uintptr(fd)
		}
	}
	pidfd := -1
	pid, err := syscall.ForkExec(prog.Path, prog.Args, &syscall.ProcAttr{
		Dir: prog.Dir, Env: prog.Env, Files: files,
		Sys: &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
	})
	if err != nil {
		return errno(err)
	}
	c.pidfd = pidfd
	c.start = startTime(pid)
	c.m.own(c, pid)
	return 0
}

// adopt takes charge of a process that was left to us.
func (c *container) adopt(pid int) unix.Errno {
	if x, ok := c.m.strays.take(pid); ok {
		c.pid = pid
		c.m.byID[c.id] = c
		c.finish(x)
		return 0
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return errno(err)
	}
	c.pidfd = fd
	c.start = startTime(pid)
	c.m.own(c, pid)
	if ourChild(pid) {
		return 0
	}
	// Its runtime still lives, or it never becomes ours: the pidfd tells anyway.
	return c.watchOrphan()
}
