package main

import (
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/oci/monitor/wire"
)

// request is a packet of the daemon with its descriptors. What a handler does not
// take is closed after it.
type request struct {
	m    *monitor
	h    wire.Header
	body wire.Reader
	fds  []int
}

// take gives the descriptor of a bit, or -1; it is the caller's from then on.
func (r *request) take(bit uint32) int {
	if r.h.Files&bit == 0 {
		return -1
	}
	i := wire.Files(r.h.Files & (bit - 1))
	fd := r.fds[i]
	r.fds[i] = -1
	return fd
}

// borrow gives the descriptor of a bit, or -1; it is closed after the request.
func (r *request) borrow(bit uint32) int {
	if r.h.Files&bit == 0 {
		return -1
	}
	return r.fds[wire.Files(r.h.Files&(bit-1))]
}

func (r *request) ok() { r.m.answer(wire.OK, r.h.Seq, nil, 0) }

func (r *request) fail(e unix.Errno) { r.m.fail(r.h.Seq, wire.StepSpawn, e) }

// result answers with e, or that all is well.
func (r *request) result(e unix.Errno) {
	if e != 0 {
		r.fail(e)
		return
	}
	r.ok()
}

func (r *request) handle() {
	switch r.h.Type {
	case wire.Hello:
		r.hello()
	case wire.Journal:
		r.result(r.setJournal())
	case wire.Start, wire.Spawn, wire.Adopt:
		r.create()
	case wire.Restore:
		r.result(r.restore())
	case wire.Recover:
		r.result(r.m.recoverJournal())
	case wire.List:
		r.list()
	case wire.Upgrade:
		r.fail(r.m.upgrade(r.body.Str()))
	case wire.Shutdown:
		r.shutdown()
	default:
		r.ofContainer()
	}
}

// ofContainer handles what concerns one container that must be there.
func (r *request) ofContainer() {
	id := r.body.Str()
	c := r.m.byID[id]
	if r.h.Type == wire.Forget {
		r.result(r.m.forget(id))
		return
	}
	if c == nil {
		r.fail(unix.ENOENT)
		return
	}
	switch r.h.Type {
	case wire.Reopen:
		r.result(r.reopen(c))
	case wire.Attach:
		r.result(r.attach(c))
	case wire.Detach:
		c.detach(r.body.U64())
		r.ok()
	case wire.CloseStdin:
		closeFd(c.stdin)
		c.stdin = -1
		r.ok()
	case wire.Stats:
		s := c.stats()
		r.m.answer(wire.StatsOK, r.h.Seq, s.Put, 0)
	case wire.Kill:
		c.abandon()
		r.ok()
	default:
		r.fail(unix.ENOSYS)
	}
}

func (r *request) hello() {
	var flags, mask uint32
	var fds []int
	if j := r.m.journal; j != nil {
		flags = wire.FlagJournal
		mask = wire.FileJournal | wire.FileJournalR | wire.FileJournalW
		fds = []int{j.fd, j.r, j.w}
	}
	r.m.answer(wire.HelloOK, r.h.Seq, func(b *wire.Buf) {
		b.U32(wire.Version)
		b.U32(uint32(unix.Getpid()))
		b.U32(flags)
	}, mask, fds...)
}

func (r *request) setJournal() unix.Errno {
	if r.m.journal != nil {
		return unix.EEXIST
	}
	const all = wire.FileJournal | wire.FileJournalR | wire.FileJournalW
	if r.h.Files != all {
		return unix.EINVAL
	}
	j, e := mapJournal(r.fds[0], r.fds[1], r.fds[2])
	if e != 0 {
		return e
	}
	r.fds = nil
	r.m.journal = j
	return 0
}

// create starts or adopts a process. A request for one that is there already is a
// repetition, after a connection was lost, and gets the same answer.
func (r *request) create() {
	id, flags := r.body.Str(), r.body.U32()
	switch c := r.m.byID[id]; {
	case r.body.Bad || !wire.ValidID(id):
		r.fail(unix.EINVAL)
		return
	case r.m.journal == nil || !r.m.journal.recovered:
		r.fail(unix.EAGAIN)
		return
	case c != nil && c.launch != nil:
		c.launch.seq = r.h.Seq
		return
	case c != nil:
		r.m.started(r.h.Seq, c)
		return
	}
	c := r.m.newContainer(id, flags&(wire.FlagTTY|wire.FlagEphemeral))
	e := r.takeOutputs(c, false)
	if e == 0 {
		e = r.begin(c)
	}
	switch {
	case e != 0:
		c.free()
		r.fail(e)
	case c.launch != nil:
		c.launch.seq = r.h.Seq
	default:
		r.m.started(r.h.Seq, c)
	}
}

func (r *request) begin(c *container) unix.Errno {
	switch r.h.Type { //nolint:exhaustive // create is called for three types
	case wire.Start:
		at := wire.Files(r.h.Files)
		inputs := make([]int32, 0, r.h.Extra)
		for _, fd := range r.fds[at:] {
			inputs = append(inputs, int32(fd))
		}
		var text []byte
		if r.h.Files&wire.FilePlan == 0 {
			text = r.body.Bytes()
		}
		return c.begin(text, r.borrow(wire.FilePlan), r.take(wire.FilePTYSock), inputs)
	case wire.Adopt:
		return c.adopt(int(r.body.U32()))
	}
	prog, e := readProgram(r.borrow(wire.FileProgram))
	if e != 0 {
		return e
	}
	return c.spawn(prog, [3]int{r.borrow(wire.FileIn), r.borrow(wire.FileOut), r.borrow(wire.FileErr)})
}

// takeOutputs gives a container its log, streams and standard input.
func (r *request) takeOutputs(c *container, restored bool) unix.Errno {
	c.setLog(newLog(r.take(wire.FileLog)))
	c.logNext = newLog(r.take(wire.FileLogNext))
	c.stdin = r.take(wire.FileStdin)
	c.master = r.take(wire.FileMaster)
	for i, bit := range []uint32{wire.FileStdout, wire.FileStderr} {
		fd := r.take(bit)
		if e := c.addStream(i, fd, false, restored); e != 0 || c.log == nil {
			closeFd(fd)
			if e != 0 {
				return e
			}
		}
	}
	return c.addStream(0, c.master, true, restored)
}

func readProgram(fd int) (*wire.Program, unix.Errno) {
	b, e := readAll(fd)
	if e != 0 {
		return nil, e
	}
	p := &wire.Program{}
	r := wire.Reader{B: b}
	if p.Get(&r); r.Bad {
		return nil, unix.EINVAL
	}
	return p, 0
}

func (r *request) restore() unix.Errno {
	id, flags, pid, start := r.body.Str(), r.body.U32(), int(r.body.U32()), r.body.U64()
	if r.body.Bad || !wire.ValidID(id) || r.m.journal == nil {
		return unix.EINVAL
	}
	if r.m.byID[id] != nil {
		return 0
	}
	c := r.m.newContainer(id, flags&(wire.FlagTTY|wire.FlagEphemeral))
	c.pid, c.start, c.pidfd = pid, start, r.take(wire.FilePidfd)
	r.m.byID[id] = c
	if e := r.takeOutputs(c, true); e != 0 {
		c.free()
		return e
	}
	if c.pidfd < 0 {
		return unix.EINVAL
	}
	return c.watchOrphan()
}

// recoverJournal finishes the interrupted transaction and begins to read.
func (m *monitor) recoverJournal() unix.Errno {
	j := m.journal
	if j == nil {
		return unix.EINVAL
	}
	if j.recovered {
		return 0
	}
	var last *stream
	live := map[int]bool{}
	for _, c := range m.byID {
		for _, s := range c.streams {
			if s == nil {
				continue
			}
			live[s.entry] = true
			if s.entry == int(j.rec.stream) {
				last = s
			}
		}
	}
	j.recover(last)
	j.recovered = true
	for i := range int(j.rec.high) {
		if j.table[i].key != [2]uint64{} && !live[i] {
			j.close(i)
		}
	}
	for _, c := range m.byID {
		if e := c.listen(); e != 0 {
			return e
		}
	}
	return 0
}

// listen begins to read a restored container's outputs, into the newer of its logs.
func (c *container) listen() unix.Errno {
	if c.logNext != nil {
		c.setLog(c.logNext)
		c.logNext = nil
	}
	for _, s := range c.streams {
		if s == nil || s.watch != 0 {
			continue
		}
		if e := s.listen(); e != 0 {
			return e
		}
	}
	return 0
}

func (r *request) list() {
	for id := range r.m.byID {
		if r.m.conn == nil {
			return
		}
		r.m.conn.send(message{item: id, seq: r.h.Seq})
	}
	r.ok()
}

// reopen takes a new log; the old one has got its last entry whole.
func (r *request) reopen(c *container) unix.Errno {
	if c.log == nil {
		return unix.EBUSY
	}
	fd := r.take(wire.FileLog)
	if fd < 0 {
		return unix.EINVAL
	}
	c.setLog(newLog(fd))
	return 0
}

func (r *request) attach(c *container) unix.Errno {
	if c.exited {
		return unix.EBUSY
	}
	a := attached{number: r.body.U64(), fd: [2]int{r.take(wire.FileAttachOut), r.take(wire.FileAttachErr)}}
	for _, fd := range a.fd {
		if fd < 0 {
			continue
		}
		if e := errno(unix.SetNonblock(fd, true)); e != 0 {
			closeFd(a.fd[0], a.fd[1])
			return e
		}
	}
	for _, old := range c.attached {
		if old.number == a.number {
			closeFd(a.fd[0], a.fd[1])
			return 0
		}
	}
	c.attached = append(c.attached, a)
	return 0
}

func (c *container) detach(number uint64) {
	for i, a := range c.attached {
		if a.number == number {
			closeFd(a.fd[0], a.fd[1])
			c.attached = append(c.attached[:i], c.attached[i+1:]...)
			return
		}
	}
}

// forget drops an ended container; what is not known leaves at most a record.
func (m *monitor) forget(id string) unix.Errno {
	if !wire.ValidID(id) {
		return unix.EINVAL
	}
	if c := m.byID[id]; c != nil {
		if !c.exited {
			return unix.EBUSY
		}
		c.free()
	}
	m.dropRecord(id)
	return 0
}

func (r *request) shutdown() {
	force := r.body.U32() == 1
	for _, c := range r.m.byID {
		if !c.exited && !force {
			r.fail(unix.EBUSY)
			return
		}
	}
	r.ok()
	unix.Exit(0)
}
