package main

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/oci/monitor/wire"
)

// conn is the daemon's connection.
type conn struct {
	m     *monitor
	fd    int
	watch int32
	buf   []byte
	oob   []byte
	fds   []int // that came ahead of their packet
	queue []message
}

// message waits to be sent. Its descriptors stay what they are meanwhile: no request is
// read while there is one, and a container that nobody will ask for is freed by the
// message of its end, which comes behind all others of it.
type message struct {
	b    []byte
	fds  []int
	item string // of a container: made when it is sent
	seq  uint32
	last *container // to be freed when this was sent
}

// accept takes a new daemon; the old one is told and dropped.
func (m *monitor) accept() {
	fd, _, err := unix.Accept4(listenFd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if err != nil {
		return
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil || cred.Uid != 0 {
		closeFd(fd)
		return
	}
	if m.conn != nil {
		m.report(wire.Replaced, nil)
		m.conn.flush()
		m.conn.close()
	}
	c := &conn{m: m, fd: fd, buf: make([]byte, wire.MaxRequest), oob: make([]byte, unix.CmsgSpace(4*wire.MaxFds))}
	id, e := m.watch(fd, handler{conn: c})
	if e != 0 {
		closeFd(fd)
		return
	}
	c.watch = id
	m.conn = c
}

// close forgets the daemon; launches go on, and answer nobody.
func (c *conn) close() {
	if c.fd < 0 {
		return
	}
	c.m.unwatch(c.watch, c.fd)
	closeFd(c.fd)
	closeFd(c.fds...)
	c.fds, c.queue, c.fd = nil, nil, -1
	if c.m.conn == c {
		c.m.conn = nil
	}
	for _, x := range c.m.byID {
		if x.launch != nil {
			x.launch.seq = 0
		}
		if x.exited && x.flags&flagAbandoned != 0 {
			x.free()
		}
	}
}

func (c *conn) ready(events uint32) {
	if c.fd >= 0 && events&unix.EPOLLOUT != 0 {
		c.flush()
	}
	for c.fd >= 0 && len(c.queue) == 0 {
		if !c.receive() {
			return
		}
	}
}

// receive handles one packet; false when there is none.
func (c *conn) receive() bool {
	n, on, flags, _, err := unix.Recvmsg(c.fd, c.buf, c.oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if e := errno(err); e == unix.EAGAIN {
		return false
	} else if e == unix.EINTR {
		return true
	}
	var fds []int
	if err == nil {
		fds = rights(c.oob[:on])
	}
	h, body, ok := wire.Parse(c.buf[:max(n, 0)])
	if err != nil || n == 0 || !ok || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		closeFd(fds...)
		c.close()
		return false
	}
	c.fds = append(c.fds, fds...)
	if h.Type == wire.Fds {
		return true
	}
	if len(c.fds) != h.NumFiles() {
		c.close()
		return false
	}
	r := &request{m: c.m, h: h, body: body, fds: c.fds}
	c.fds = nil
	r.handle()
	closeFd(r.fds...)
	return true
}

// rights takes the descriptors out of control messages, without the allocations of
// package unix.
func rights(oob []byte) []int {
	var fds []int
	for len(oob) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
		if h.Len < unix.SizeofCmsghdr || int(h.Len) > len(oob) {
			return fds
		}
		if h.Level == unix.SOL_SOCKET && h.Type == unix.SCM_RIGHTS {
			for at := unix.CmsgLen(0); at+4 <= int(h.Len); at += 4 {
				fds = append(fds, int(*(*int32)(unsafe.Pointer(&oob[at]))))
			}
		}
		oob = oob[min(unix.CmsgSpace(int(h.Len)-unix.CmsgLen(0)), len(oob)):]
	}
	return fds
}

// send queues a message and sends what can be sent.
func (c *conn) send(msg message) {
	c.queue = append(c.queue, msg)
	if len(c.queue) == 1 {
		c.flush()
	}
}

func (c *conn) flush() {
	for len(c.queue) > 0 {
		msg := c.queue[0]
		if msg.item != "" {
			x := c.m.byID[msg.item]
			if x == nil {
				c.queue = c.queue[1:]
				continue
			}
			msg = x.item(msg.seq) // each time anew: what it holds may have ended since
		}
		var oob []byte
		if len(msg.fds) > 0 {
			oob = unix.UnixRights(msg.fds...)
		}
		e := errno(unix.Sendmsg(c.fd, msg.b, oob, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL))
		switch {
		case e == unix.EINTR:
			continue
		case e == unix.EAGAIN:
			c.m.rewatch(c.watch, c.fd, unix.EPOLLOUT)
			return
		case e != 0:
			c.close()
			return
		}
		c.queue = c.queue[1:]
		if x := msg.last; x != nil && c.m.byID[x.id] == x {
			x.free()
		}
	}
	c.queue = nil
	c.m.rewatch(c.watch, c.fd, unix.EPOLLIN)
}

// answer sends an answer to request seq.
func (m *monitor) answer(t wire.Type, seq uint32, fill func(*wire.Buf), mask uint32, fds ...int) {
	if m.conn == nil {
		return
	}
	h := wire.Header{Type: t, Seq: seq, Files: mask}
	b := h.Begin(make([]byte, 0, 64))
	if fill != nil {
		fill(&b)
	}
	m.conn.send(message{b: b.B, fds: fds})
}

// tellEnd says how a container ended, and frees it where nobody will ask to forget it. An
// exec session whose end could not be told waits for the next daemon's list.
func (c *container) tellEnd() {
	if c.m.conn == nil {
		if c.flags&flagAbandoned != 0 {
			c.free()
		}
		return
	}
	h := wire.Header{Type: wire.Exited}
	b := h.Begin(make([]byte, 0, 64))
	b.Str(c.id)
	c.exit.Put(&b)
	c.m.conn.send(message{b: b.B, last: c.ephemeral()})
}

// ephemeral gives the container if it is to be freed as soon as its end was told.
func (c *container) ephemeral() *container {
	if c.exited && c.flags&(wire.FlagEphemeral|flagAbandoned) != 0 {
		return c
	}
	return nil
}

func (m *monitor) report(t wire.Type, fill func(*wire.Buf)) { m.answer(t, 0, fill, 0) }

func (m *monitor) fail(seq, step uint32, e unix.Errno) {
	if seq == 0 {
		return // who asked has gone
	}
	m.answer(wire.Failed, seq, func(b *wire.Buf) {
		b.U32(step)
		b.U32(uint32(e))
	}, 0)
}

func (m *monitor) started(seq uint32, c *container) {
	if seq == 0 {
		return
	}
	var mask uint32
	var fds []int
	if c.pidfd >= 0 {
		mask, fds = wire.FilePidfd, append(fds, c.pidfd)
	}
	if c.master >= 0 {
		mask, fds = mask|wire.FileMaster, append(fds, c.master)
	}
	m.answer(wire.Started, seq, func(b *wire.Buf) {
		b.U32(uint32(c.pid))
		b.U64(c.start)
	}, mask, fds...)
}

// item tells all of a container and hands a duplicate of all it holds.
func (c *container) item(seq uint32) message {
	h := wire.Header{Type: wire.Item, Seq: seq}
	var fds []int
	add := func(bit uint32, fd int) {
		if fd >= 0 {
			h.Files |= bit
			fds = append(fds, fd)
		}
	}
	add(wire.FilePidfd, c.pidfd)
	if c.log != nil {
		add(wire.FileLog, c.log.fd)
	}
	for i, bit := range []uint32{wire.FileStdout, wire.FileStderr} {
		if s := c.streams[i]; s != nil && !s.pty {
			add(bit, s.fd)
		}
	}
	add(wire.FileStdin, c.stdin)
	add(wire.FileMaster, c.master)
	flags := c.flags
	if c.exited {
		flags |= wire.FlagExited
	}
	if c.launch != nil {
		flags |= wire.FlagLaunching
	}
	b := h.Begin(nil)
	b.Str(c.id)
	b.U32(flags)
	b.U32(uint32(c.pid))
	b.U64(c.start)
	c.exit.Put(&b)
	return message{b: b.B, fds: fds, last: c.ephemeral()}
}
