package plan

import "syscall"

// Isolate keeps the memory that this process has now from being copied for the children that
// Start makes, but for its code and constants. A Go process has some thirty mappings, spread
// so that each needs page tables of its own, and a clone with all of them costs as much again
// as the rest of it. What is mapped later is copied, until Isolate is called again; no plan
// may be loaded meanwhile. It is for processes that are otherwise cloned only by os/exec's
// means, which share all memory.
func Isolate() {
	fd, err := syscall.Open("/proc/self/maps", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer func() { _ = syscall.Close(fd) }()
	var line [128]byte // a name may be cut off
	used := 0
	var b [4096]byte
	for {
		n, err := syscall.Read(fd, b[:])
		if err == syscall.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		for _, c := range b[:n] {
			switch {
			case c == '\n':
				isolate(line[:used])
				used = 0
			case used < len(line):
				line[used] = c
				used++
			}
		}
	}
}

// isolate reads one line of the map: "c000000000-c000400000 rw-p ...".
func isolate(line []byte) {
	start, rest := hexNumber(line)
	if len(rest) == 0 || rest[0] != '-' {
		return
	}
	end, rest := hexNumber(rest[1:])
	if len(rest) < 5 || rest[0] != ' ' {
		return
	}
	// Code, constants and what the kernel maps can be read and not written.
	if rest[1] == 'r' && rest[2] != 'w' || rest[4] != 'p' {
		return
	}
	_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, start, end-start, syscall.MADV_DONTFORK)
}

func hexNumber(b []byte) (v uintptr, rest []byte) {
	for i, c := range b {
		switch {
		case c >= '0' && c <= '9':
			v = v<<4 | uintptr(c-'0')
		case c >= 'a' && c <= 'f':
			v = v<<4 | uintptr(c-'a'+10)
		default:
			return v, b[i:]
		}
	}
	return v, nil
}
