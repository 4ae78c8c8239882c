package main

import (
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/oci/monitor/wire"
)

// container is a process that the daemon asked for, an exec session included.
type container struct {
	m        *monitor
	id       string
	flags    uint32 // of package wire
	pid      int
	start    uint64
	pidfd    int
	master   int
	stdin    int
	log      *logFile
	logNext  *logFile // only between Restore and Recover
	streams  [2]*stream
	attached []attached
	exited   bool
	orphan   bool // not our child: its parent was another monitor
	// orphanWatch is its pidfd's watch, orphanSeen when it was seen to have ended.
	orphanWatch int32
	orphanSeen  wire.Exit
	exit        wire.Exit
	launch      *launch // nil once exec has succeeded
}

// stream is an output of a container.
type stream struct {
	c     *container
	which int // 0 stdout or terminal, 1 stderr
	fd    int
	entry int // in the journal
	watch int32
	pty   bool
}

func (s *stream) name() string {
	if s.which == 1 {
		return "stderr"
	}
	return "stdout"
}

// attached is a client that looks on.
type attached struct {
	number uint64
	fd     [2]int
}

func (m *monitor) newContainer(id string, flags uint32) *container {
	return &container{m: m, id: id, flags: flags, pidfd: -1, master: -1, stdin: -1}
}

// logFor is the log that an interrupted write went to.
func (c *container) logFor(dev, ino uint64) *logFile {
	for _, l := range []*logFile{c.log, c.logNext} {
		if l != nil && l.dev == dev && l.ino == ino {
			return l
		}
	}
	return nil
}

// copyToAttached never waits: who does not read is dropped.
func (c *container) copyToAttached(which int, b []byte) {
	for i := 0; i < len(c.attached); i++ {
		fd := c.attached[i].fd[which]
		if fd < 0 {
			continue
		}
		if n, err := unix.Write(fd, b); err != nil || n < len(b) {
			c.dropAttached(i)
			i--
		}
	}
}

func (c *container) dropAttached(i int) {
	a := c.attached[i]
	closeFd(a.fd[0], a.fd[1])
	c.attached = append(c.attached[:i], c.attached[i+1:]...)
	c.m.report(wire.Detached, func(b *wire.Buf) {
		b.Str(c.id)
		b.U64(a.number)
	})
}

// setLog makes f the log.
func (c *container) setLog(f *logFile) {
	if c.log != nil && c.log != f {
		closeFd(c.log.fd)
	}
	c.log = f
}

// addStream registers an output; it is read once the journal has recovered.
func (c *container) addStream(which, fd int, pty, restored bool) unix.Errno {
	if fd < 0 || c.log == nil {
		return 0
	}
	j := c.m.journal
	key := streamKey(c.id, which)
	at := -1
	if restored {
		at = j.find(key)
	}
	if at < 0 {
		at = j.open(key)
	}
	if at < 0 {
		return unix.ENFILE
	}
	if pty {
		// Others read and write the terminal too; a splice from it must not wait.
		if e := errno(unix.SetNonblock(fd, true)); e != 0 {
			return e
		}
	}
	s := &stream{c: c, which: which, fd: fd, entry: at, pty: pty}
	c.streams[which] = s
	if j.recovered {
		return s.listen()
	}
	return 0
}

func (s *stream) listen() unix.Errno {
	id, e := s.c.m.watch(s.fd, handler{stream: s})
	s.watch = id
	return e
}

// readable moves what there is; an output that has ended is not looked at again.
func (s *stream) readable() {
	n, e := s.c.m.journal.pump(s)
	if e == unix.EAGAIN || n > 0 {
		return
	}
	s.c.m.unwatch(s.watch, s.fd)
	s.watch = 0
}

// drain reads what the process has left behind, at most what was there when it
// ended: a stray child that goes on writing must not hold up the exit.
func (s *stream) drain() {
	left := pending(s.fd)
	if s.pty {
		left = 1 << 20 // a terminal does not tell
	}
	for left > 0 {
		n, e := s.c.m.journal.pump(s)
		if e != 0 || n == 0 {
			break
		}
		left -= n
	}
	s.c.m.journal.flush(s)
}

// finish is the end of a process: the log first, then the record, then the word.
func (c *container) finish(x wire.Exit) {
	if c.exited {
		return
	}
	c.exit = x
	if c.orphanWatch != 0 {
		c.m.unwatch(c.orphanWatch, c.pidfd)
		c.orphanWatch = 0
	}
	if c.m.journal != nil && c.m.journal.recovered {
		for _, s := range c.streams {
			if s != nil {
				s.drain()
			}
		}
	}
	if c.flags&(wire.FlagEphemeral|flagAbandoned) == 0 {
		c.m.writeRecord(c.id, &x)
	}
	c.exited = true
	c.closeOutputs()
	c.tellEnd()
}

func (c *container) closeOutputs() {
	for i, s := range c.streams {
		if s == nil {
			continue
		}
		if s.watch != 0 {
			c.m.unwatch(s.watch, s.fd)
		}
		c.addStats(s)
		c.m.journal.close(s.entry)
		if !s.pty {
			closeFd(s.fd)
		}
		c.streams[i] = nil
	}
	for _, a := range c.attached {
		closeFd(a.fd[0], a.fd[1])
	}
	c.attached = nil
	if c.log != nil {
		closeFd(c.log.fd)
		c.log = nil
	}
	closeFd(c.stdin)
	c.stdin = -1
}

func (c *container) stats() wire.LogStats {
	var sum wire.LogStats
	if l := c.m.ended[c.id]; l != nil {
		sum = *l
	}
	for _, s := range c.streams {
		if s != nil {
			k := c.m.journal.table[s.entry].counters
			sum.Bytes += k.bytes
			sum.LostBytes += k.lostBytes
			sum.LostLines += k.lostLines
		}
	}
	return sum
}

// addStats keeps the counters of a stream that ends, if there is anything to tell.
func (c *container) addStats(s *stream) {
	k := c.m.journal.table[s.entry].counters
	if k.bytes+k.lostLines == 0 {
		return
	}
	l := c.m.ended[c.id]
	if l == nil {
		l = &wire.LogStats{}
		c.m.ended[c.id] = l
	}
	l.Bytes += k.bytes
	l.LostBytes += k.lostBytes
	l.LostLines += k.lostLines
}

// flagAbandoned is set in container.flags: nobody asks for the exit any more.
const flagAbandoned = 1 << 31

// abandon ends a container whose start nobody waits for any more. It may have been
// executed just before: it is dropped when it ends, whatever it has become.
func (c *container) abandon() {
	if c.exited {
		c.m.dropRecord(c.id)
		c.free()
		return
	}
	c.flags |= flagAbandoned
	if c.launch != nil {
		c.launch.read() // which stage is it in?
		if c.m.byID[c.id] != c {
			return // it has failed
		}
	}
	c.killAbandoned()
}

// free drops everything that is left of a container.
func (c *container) free() {
	if c.orphanWatch != 0 {
		c.m.unwatch(c.orphanWatch, c.pidfd)
		c.orphanWatch = 0
	}
	c.closeOutputs()
	if c.launch != nil {
		c.launch.close()
		c.launch = nil
	}
	closeFd(c.pidfd, c.master)
	delete(c.m.byID, c.id)
	delete(c.m.ended, c.id)
	if c.m.byPID[c.pid] == c {
		delete(c.m.byPID, c.pid)
	}
}
