package main

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const programSeals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// runSealed goes on in a copy of this program that nobody can change. The first
// instructions of every container run in a child of ours, and an image may name
// /proc/self/exe as its program: it would then hold a handle of the file, and write to
// it once nobody executes it (CVE-2019-5736). It returns when this is the copy.
func runSealed() unix.Errno {
	name := [16]byte{}
	copy(name[:], "cri-monitor")
	// An exec by descriptor names the process after the number.
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0)
	self, err := unix.Open("/proc/self/exe", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return errno(err)
	}
	defer closeFd(self)
	if seals, err := unix.FcntlInt(uintptr(self), unix.F_GET_SEALS, 0); err == nil && seals&programSeals == programSeals {
		return 0
	}
	program, e := sealedCopy(self)
	if e != 0 {
		return e
	}
	looseTimers()
	argv := []string{"cri-monitor"}
	if arg := argument(); arg != "" {
		argv = append(argv, arg)
	}
	if _, ok := resumed(); !ok {
		// Whatever the daemon was started with, a terminal's pipe for one, would be held
		// as long as we live.
		_ = unix.CloseRange(exitsFd+1, 1<<31, unix.CLOSE_RANGE_CLOEXEC)
	}
	return errno(syscall.Exec("/proc/self/fd/"+string(appendNumber(nil, uint64(program))), argv, syscall.Environ()))
}

// timerSlack is added to the timers of the Go runtime's own thread (sysmon), which otherwise
// wakes up each 20 microseconds while anything goes on, to see whether a goroutine waits for a
// processor: more work than the monitor's own, and there is one goroutine.
const timerSlack = 50e6

// looseTimers makes the timers of the program that is executed next inexact, and of all its
// threads; tightTimers gives the main thread, and so the containers, its own slack back.
func looseTimers() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, slack()+timerSlack, 0, 0, 0) }

func tightTimers() {
	if s := slack(); s > timerSlack {
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, s-timerSlack, 0, 0, 0)
	}
}

func slack() uintptr {
	s, _, e := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_GET_TIMERSLACK, 0, 0)
	if e != 0 {
		return 50_000 // the kernel's default
	}
	return s
}

// sealedCopy puts the program into a memfd. The descriptor is for reading only: what is
// open for writing cannot be executed.
func sealedCopy(from int) (int, unix.Errno) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("cri-monitor", flags|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3
		fd, err = unix.MemfdCreate("cri-monitor", flags)
	}
	if err != nil {
		return -1, errno(err)
	}
	defer closeFd(fd)
	for {
		n, err := unix.Sendfile(fd, from, nil, 1<<24)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return -1, errno(err)
		}
		if n == 0 {
			break
		}
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, programSeals); err != nil {
		return -1, errno(err)
	}
	again, err := unix.Open("/proc/self/fd/"+string(appendNumber(nil, uint64(fd))), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	return again, errno(err)
}
