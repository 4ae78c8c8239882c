package main

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/oci/monitor/wire"
)

// resumeArg precedes the number of the memfd that the state is in.
const resumeArg = "--resume="

// stateVersion is the format of that memfd.
const stateVersion = 1

// upgrade executes a new binary in place: pid, children and descriptors stay. The
// connection is closed, so that the daemon greets the new one as it would any. It
// returns only if that failed, with everything as it was.
func (m *monitor) upgrade(path string) unix.Errno {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return errno(err)
	}
	closeFd(fd)
	state, err := unix.MemfdCreate("cri-monitor-state", 0)
	if err != nil {
		return errno(err)
	}
	b, keep := m.save()
	if n, err := unix.Write(state, b); err != nil || n != len(b) {
		closeFd(state)
		return unix.ENOSPC
	}
	setCloexec(keep, 0)
	argv := []string{"cri-monitor", resumeArg + string(appendNumber(nil, uint64(state)))}
	e := errno(syscall.Exec(path, argv, syscall.Environ()))
	setCloexec(keep, unix.FD_CLOEXEC)
	closeFd(state)
	return e
}

func setCloexec(fds []int, flag int) {
	for _, fd := range fds {
		if fd >= 0 {
			_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFD, flag)
		}
	}
}

// saver writes numbers of descriptors, and remembers them.
type saver struct {
	wire.Buf
	fds []int
}

func (s *saver) fd(n int) {
	s.U32(uint32(int32(n)))
	s.fds = append(s.fds, n)
}

// save puts the state into bytes and names the descriptors that belong to it.
func (m *monitor) save() ([]byte, []int) {
	s := &saver{fds: []int{listenFd, exitsFd}}
	s.U32(stateVersion)
	if j := m.journal; j != nil {
		s.U32(1 + flagOf(j.recovered))
		s.fd(j.fd)
		s.fd(j.r)
		s.fd(j.w)
	} else {
		s.U32(0)
	}
	s.U32(uint32(len(m.byID)))
	for _, c := range m.byID {
		s.container(c)
	}
	return s.B, s.fds
}

func flagOf(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

func (s *saver) container(c *container) {
	s.Str(c.id)
	s.U32(c.flags)
	s.U32(uint32(c.pid))
	s.U64(c.start)
	for _, fd := range []int{c.pidfd, c.master, c.stdin} {
		s.fd(fd)
	}
	for _, l := range []*logFile{c.log, c.logNext} {
		if l != nil {
			s.fd(l.fd)
		} else {
			s.fd(-1)
		}
	}
	for _, st := range c.streams {
		if st == nil || st.pty {
			s.fd(-1)
			continue
		}
		s.fd(st.fd)
	}
	s.U32(uint32(len(c.attached)))
	for _, a := range c.attached {
		s.U64(a.number)
		s.fd(a.fd[0])
		s.fd(a.fd[1])
	}
	s.U32(flagOf(c.exited))
	s.U32(flagOf(c.orphanWatch != 0))
	c.exit.Put(&s.Buf)
	stats := wire.LogStats{}
	if l := c.m.ended[c.id]; l != nil {
		stats = *l
	}
	stats.Put(&s.Buf)
	s.U32(flagOf(c.launch != nil))
	if l := c.launch; l != nil {
		s.fd(l.status)
		s.fd(l.pty)
		s.U32(flagOf(l.ready))
		s.U32(flagOf(l.failed))
		s.U32(l.rec.Step)
		s.U32(l.rec.Value)
	}
}

// resumed tells whether this process continues another's work.
func resumed() (fd int, ok bool) {
	arg := argument()
	if len(arg) <= len(resumeArg) || arg[:len(resumeArg)] != resumeArg {
		return 0, false
	}
	for _, c := range arg[len(resumeArg):] {
		fd = fd*10 + int(c-'0')
	}
	return fd, true
}

// argument is the first of the command line; package os would be a third of this
// program.
func argument() string {
	fd, err := unix.Open("/proc/self/cmdline", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer closeFd(fd)
	var b [256]byte
	n, _ := read(fd, b[:])
	var words [2]string
	at := 0
	for i := 0; i < n && at < 2; i++ {
		if b[i] == 0 {
			at++
			continue
		}
		words[at] += string(b[i])
	}
	return words[1]
}

type loader struct{ wire.Reader }

func (l *loader) fd() int {
	fd := int(int32(l.U32()))
	setCloexec([]int{fd}, unix.FD_CLOEXEC)
	return fd
}

// resume takes over from the program that was executed before this one.
func (m *monitor) resume(fd int) unix.Errno {
	defer closeFd(fd)
	b, e := readAll(fd)
	if e != 0 {
		return e
	}
	l := &loader{wire.Reader{B: b}}
	if l.U32() != stateVersion {
		return unix.EPROTO
	}
	if has := l.U32(); has != 0 {
		j, e := mapJournal(l.fd(), l.fd(), l.fd())
		if e != 0 {
			return e
		}
		j.recovered = has == 2
		m.journal = j
	}
	for n := l.U32(); n > 0 && !l.Bad; n-- {
		if e := m.loadContainer(l); e != 0 {
			return e
		}
	}
	if l.Bad {
		return unix.EINVAL
	}
	return 0
}

func (m *monitor) loadContainer(l *loader) unix.Errno {
	c := m.newContainer(l.Str(), l.U32())
	c.pid, c.start = int(l.U32()), l.U64()
	c.pidfd, c.master, c.stdin = l.fd(), l.fd(), l.fd()
	c.log, c.logNext = newLog(l.fd()), newLog(l.fd())
	outputs := [2]int{l.fd(), l.fd()}
	for n := l.U32(); n > 0 && !l.Bad; n-- {
		c.attached = append(c.attached, attached{number: l.U64(), fd: [2]int{l.fd(), l.fd()}})
	}
	exited, orphan := l.U32() == 1, l.U32() == 1
	c.exit.Get(&l.Reader)
	var stats wire.LogStats
	if stats.Get(&l.Reader); stats != (wire.LogStats{}) {
		m.ended[c.id] = &stats
	}
	m.byID[c.id] = c
	if l.U32() == 1 {
		c.launch = &launch{c: c, status: l.fd(), pty: l.fd()}
		c.launch.ready, c.launch.failed = l.U32() == 1, l.U32() == 1
		c.launch.rec.Step, c.launch.rec.Value = l.U32(), l.U32()
	}
	if l.Bad {
		return unix.EINVAL
	}
	return c.reactivate(outputs, exited, orphan)
}

// reactivate puts a loaded container back into the loop.
func (c *container) reactivate(outputs [2]int, exited, orphan bool) unix.Errno {
	if exited {
		c.exited = true
		if c.flags&wire.FlagEphemeral != 0 { // of a monitor that kept them until it was told to forget
			c.free()
		}
		return 0
	}
	if c.launch != nil {
		if e := c.launch.listen(); e != 0 {
			return e
		}
	}
	for i, fd := range outputs {
		if e := c.addStream(i, fd, false, true); e != 0 {
			return e
		}
	}
	if c.launch == nil {
		if e := c.addStream(0, c.master, true, true); e != 0 {
			return e
		}
	}
	if orphan {
		return c.watchOrphan()
	}
	c.m.byPID[c.pid] = c
	return 0
}

func readAll(fd int) ([]byte, unix.Errno) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, errno(err)
	}
	b := make([]byte, st.Size)
	for at := 0; at < len(b); {
		n, err := unix.Pread(fd, b[at:], int64(at))
		if err != nil {
			return nil, errno(err)
		}
		if n == 0 {
			return nil, unix.EINVAL
		}
		at += n
	}
	return b, 0
}
