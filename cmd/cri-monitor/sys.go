package main

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// errno takes the number out of an error of package unix, which has no other kind.
func errno(err error) unix.Errno {
	if err == nil {
		return 0
	}
	if e, ok := err.(unix.Errno); ok { //nolint:errorlint // package unix returns bare numbers
		return e
	}
	return unix.EIO
}

func read(fd int, b []byte) (int, unix.Errno) {
	n, err := unix.Read(fd, b)
	return n, errno(err)
}

// splice moves what is there, without waiting.
func splice(from, to, most int) (int, unix.Errno) {
	for {
		n, err := unix.Splice(from, nil, to, nil, most, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if err != unix.EINTR {
			return int(n), errno(err)
		}
	}
}

// pending is how many bytes a pipe holds.
func pending(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return 0
	}
	return n
}

func closeFd(fds ...int) {
	for _, fd := range fds {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// logFile is an open log. Nobody but this process writes to it.
type logFile struct {
	fd       int
	dev, ino uint64
}

func newLog(fd int) *logFile {
	if fd < 0 {
		return nil
	}
	l := &logFile{fd: fd}
	_, l.dev, l.ino = l.stat()
	return l
}

func (l *logFile) stat() (size int64, dev, ino uint64) {
	var st unix.Stat_t
	if unix.Fstat(l.fd, &st) != nil {
		return 0, 0, 0
	}
	return st.Size, st.Dev, st.Ino
}

// done is how much of out a write that began at the given size has written.
func (l *logFile) done(out []byte, size int64) int {
	now, _, _ := l.stat()
	return int(min(max(now-size, 0), int64(len(out))))
}

// append writes out from done on and returns how much of it is there in the end.
// size is the log's without it. An entry is there as a whole or not at all: a reader
// must not find half a line that never goes on.
func (l *logFile) append(out []byte, done int, size int64) int {
	for done < len(out) {
		n, err := unix.Write(l.fd, out[done:])
		if n > 0 {
			done += n
			continue
		}
		if err == unix.EINTR {
			continue
		}
		break
	}
	if done == len(out) {
		return done
	}
	whole := done
	for whole > 0 && out[whole-1] != '\n' {
		whole--
	}
	if whole < done && unix.Ftruncate(l.fd, size+int64(whole)) != nil {
		return done
	}
	return whole
}

// startTime reads field 22 of /proc/PID/stat: with the pid it names a process.
func startTime(pid int) uint64 {
	b := append(appendNumber([]byte("/proc/"), uint64(pid)), "/stat"...)
	fd, err := unix.Open(string(b), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer closeFd(fd)
	var buf [512]byte
	n, e := read(fd, buf[:])
	if e != 0 {
		return 0
	}
	s := buf[:n]
	at := len(s) - 1
	for at >= 0 && s[at] != ')' { // the name may contain any character
		at--
	}
	field, v := 1, uint64(0)
	for _, c := range s[at+1:] {
		switch {
		case c == ' ':
			field++
		case field == 21 && c >= '0' && c <= '9':
			v = v*10 + uint64(c-'0')
		}
	}
	return v
}

func bootTime() int64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return ts.Nano()
}

// pidfdInfo is struct pidfd_info in its first published size.
type pidfdInfo struct {
	mask, cgroup uint64
	ids          [11]uint32
	exit         int32
}

const (
	pidfdGetInfo  = 0xC040FF0B
	pidfdInfoExit = 1 << 3
)

// exitInfo asks for a stranger's wait status; reaped tells whether it is there,
// known whether this kernel (6.15) gives it at all.
func exitInfo(pidfd int) (status uint32, reaped, known bool) {
	in := pidfdInfo{mask: pidfdInfoExit}
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), pidfdGetInfo, uintptr(unsafe.Pointer(&in)))
	switch e { //nolint:exhaustive // errnos
	case 0:
		// A kernel without exit status clears the bit, as one does whose process
		// was not reaped. The difference: kernels from 6.15 on know the flag.
		return uint32(in.exit), in.mask&pidfdInfoExit != 0, true
	case unix.ESRCH: // reaped, and the kernel remembers nothing
		return 0, true, false
	}
	return 0, false, false
}
