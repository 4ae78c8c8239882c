package plan

import (
	"syscall"
	"unsafe"
)

const (
	oPath            = 0x200000
	resolveNoMagic   = 0x02
	resolveNoLinks   = 0x04
	resolveInRoot    = 0x10
	atEmptyPath      = 0x1000
	atRecursive      = 0x8000
	openTreeClone    = 1
	moveFromEmpty    = 0x04
	moveToEmpty      = 0x40
	procMagic        = 0x9fa0
	statxTypeMode    = 0x3
	offStatxMode     = 28
	offStatxRdev     = 128
	offStatxMntID    = 144
	statxMntID       = 0x1000
	capVersion3      = 0x20080522
	lastOldCap       = 40 // CAP_CHECKPOINT_RESTORE: all kernels that we run on know it
	budget           = 64 // retries of a path that changes or holds dangling links
	eMediumType      = syscall.EMEDIUMTYPE
	directory, fifo  = syscall.S_IFDIR, syscall.S_IFIFO
	charDev, socket  = syscall.S_IFCHR, syscall.S_IFSOCK
	fileType         = syscall.S_IFMT
	flagsPathCloexec = oPath | syscall.O_CLOEXEC
)

// open resolves a path as a process whose root is root would, but follows no magic
// link, and gives an O_PATH descriptor.
//
//go:norace
//go:nosplit
func (m *machine) open(root, path, resolve uintptr) (uintptr, syscall.Errno) {
	m.how[0], m.how[1], m.how[2] = flagsPathCloexec, 0, uint64(resolve)
	for i := 0; ; i++ {
		fd, _, e := syscall.RawSyscall6(sysOpenat2, root, path, uintptr(unsafe.Pointer(&m.how)), 24, 0, 0)
		// EAGAIN: something was renamed meanwhile and .. could not be trusted.
		if e != syscall.EAGAIN || i == budget {
			return fd, e
		}
	}
}

//go:norace
//go:nosplit
func closeFD(fd uintptr) { _, _, _ = syscall.RawSyscall(syscall.SYS_CLOSE, fd, 0, 0) }

// mode is the file type of a descriptor; the rest is in m.stat.
//
//go:norace
//go:nosplit
func (m *machine) mode(fd uintptr) (uint32, syscall.Errno) {
	st := uintptr(unsafe.Pointer(&m.stat))
	_, _, e := syscall.RawSyscall6(sysStatx, fd, m.empty(), atEmptyPath, statxTypeMode, st, 0)
	return (uint32(load8(st+offStatxMode)) | uint32(load8(st+offStatxMode+1))<<8) & fileType, e
}

// empty is the address of an empty string: the data's last byte.
//
//go:norace
//go:nosplit
func (m *machine) empty() uintptr { return m.data + m.size - 1 }

//go:norace
//go:nosplit
func (m *machine) fsMagic(fd uintptr) (uint64, syscall.Errno) {
	st := uintptr(unsafe.Pointer(&m.stat))
	_, _, e := syscall.RawSyscall(syscall.SYS_FSTATFS, fd, st, 0)
	return load64(st), e
}

// mkPath makes missing parts one by one: each parent is resolved inside the root,
// and what is made in it follows no link. A dangling link is expanded and the walk
// begins again, since /var/run -> /run without /run is common in small images.
//
//go:norace
//go:nosplit
func (m *machine) mkPath() (uintptr, syscall.Errno) {
	n, e := m.copyPath(m.args[1])
	if e != 0 {
		return 0, e
	}
	if m.args[2]&MkLike != 0 {
		t, e := m.mode(m.args[4])
		if e != 0 {
			return 0, e
		}
		if t != directory {
			m.args[2] |= MkFile
		}
	}
	resolve := uintptr(resolveInRoot | resolveNoMagic)
	if m.args[2]&MkNoLinks != 0 {
		resolve |= resolveNoLinks
	}
	buf := uintptr(unsafe.Pointer(&m.path))
	for range budget {
		fd, e := m.open(m.args[0], buf, resolve)
		if e == 0 {
			return fd, m.checkMade(fd)
		}
		if e != syscall.ENOENT {
			return 0, e
		}
		if n, e = m.makeParts(n, resolve); e != 0 {
			return 0, e
		}
	}
	return 0, syscall.ELOOP
}

// checkMade closes fd if it is not of the kind asked for.
//
//go:norace
//go:nosplit
func (m *machine) checkMade(fd uintptr) syscall.Errno {
	t, e := m.mode(fd)
	if e == 0 && m.args[2]&MkFile == 0 && t != directory {
		e = syscall.ENOTDIR
	}
	if e == 0 && m.args[2]&MkFile != 0 && t == directory {
		e = syscall.EISDIR
	}
	if e == 0 && m.args[2]&MkNoProc != 0 {
		magic, err := m.fsMagic(fd)
		if e = err; e == 0 && magic == procMagic {
			e = syscall.EPERM
		}
	}
	if e != 0 {
		closeFD(fd)
	}
	return e
}

// copyPath copies a string into m.path and gives its length.
//
//go:norace
//go:nosplit
func (m *machine) copyPath(from uintptr) (int, syscall.Errno) {
	for n := 0; n < pathMax; n++ {
		c := load8(from + uintptr(n))
		m.path[n] = c
		if c == 0 {
			for n > 1 && m.path[n-1] == '/' {
				n--
				m.path[n] = 0
			}
			return n, 0
		}
	}
	return 0, syscall.ENAMETOOLONG
}

// makeParts makes what is missing of m.path, n long, until all is there or a link
// had to be expanded. It gives the path's new length.
//
//go:norace
//go:nosplit
func (m *machine) makeParts(n int, resolve uintptr) (int, syscall.Errno) {
	buf := uintptr(unsafe.Pointer(&m.path))
	for end := 0; end < n; {
		start := end
		for start < n && m.path[start] == '/' {
			start++
		}
		for end = start; end < n && m.path[end] != '/'; {
			end++
		}
		saved := m.path[end]
		m.path[end] = 0
		fd, e := m.open(m.args[0], buf, resolve)
		m.path[end] = saved
		if e == 0 {
			closeFD(fd)
			continue
		}
		if e != syscall.ENOENT {
			return n, e
		}
		if e = m.makePart(start, end, n, resolve); e == syscall.EEXIST {
			if resolve&resolveNoLinks != 0 {
				return n, syscall.ELOOP
			}
			return m.expand(start, end, n)
		}
		if e != 0 {
			return n, e
		}
	}
	return n, 0
}

// makePart makes the component of m.path from start to end. With EEXIST m.path2
// holds what the link there points to, NUL-terminated.
//
//go:norace
//go:nosplit
func (m *machine) makePart(start, end, n int, resolve uintptr) syscall.Errno {
	buf := uintptr(unsafe.Pointer(&m.path))
	saved := m.path[start]
	m.path[start] = 0
	at := buf
	if start == 0 {
		m.path2[0], m.path2[1] = '.', 0
		at = uintptr(unsafe.Pointer(&m.path2))
	}
	parent, e := m.open(m.args[0], at, resolve)
	m.path[start] = saved
	if e != 0 {
		return e
	}
	saved = m.path[end]
	m.path[end] = 0
	name := buf + uintptr(start)
	if end == n && m.args[2]&MkFile != 0 {
		const how = syscall.O_CREAT | syscall.O_EXCL | syscall.O_NOFOLLOW | syscall.O_WRONLY | syscall.O_CLOEXEC
		var fd uintptr
		fd, _, e = syscall.RawSyscall6(syscall.SYS_OPENAT, parent, name, how, m.args[3], 0, 0)
		if e == 0 {
			closeFD(fd)
		}
	} else {
		_, _, e = syscall.RawSyscall(syscall.SYS_MKDIRAT, parent, name, 0o755)
	}
	if e == syscall.EEXIST {
		at = uintptr(unsafe.Pointer(&m.path2))
		got, _, err := syscall.RawSyscall6(syscall.SYS_READLINKAT, parent, name, at, pathMax, 0, 0)
		if err != 0 {
			got = 0 // no link: it appeared just now, and is found by the next walk
		}
		m.path2[got] = 0
	}
	m.path[end] = saved
	closeFD(parent)
	return e
}

// expand puts the link target in m.path2 in place of the component from start to
// end of m.path; an absolute one also in place of all before it.
//
//go:norace
//go:nosplit
func (m *machine) expand(start, end, n int) (int, syscall.Errno) {
	if m.path2[0] == 0 {
		return n, 0
	}
	k := 0
	for m.path2[k] != 0 {
		k++
	}
	if m.path2[0] == '/' {
		start = 0
	}
	size := start + k + n - end
	if size >= pathMax {
		return n, syscall.ENAMETOOLONG
	}
	// The rest moves first, from the side that keeps overlapping parts whole.
	if to := start + k; to > end {
		for i := n - end; i >= 0; i-- {
			m.path[to+i] = m.path[end+i]
		}
	} else {
		for i := 0; i <= n-end; i++ {
			m.path[to+i] = m.path[end+i]
		}
	}
	for i := 0; i < k; i++ {
		m.path[start+i] = m.path2[i]
	}
	return size, 0
}

// cover moves the mount of tree onto target and closes both.
//
//go:norace
//go:nosplit
func (m *machine) cover(tree, target uintptr) syscall.Errno {
	e := m.empty()
	_, _, err := syscall.RawSyscall6(sysMoveMount, tree, e, target, e, moveFromEmpty|moveToEmpty, 0)
	closeFD(tree)
	closeFD(target)
	return err
}

//go:norace
//go:nosplit
func (m *machine) mask() syscall.Errno {
	target, e := m.open(m.args[0], m.args[1], resolveInRoot|resolveNoMagic)
	if e == syscall.ENOENT || e == syscall.ENOTDIR {
		return 0
	}
	if e != 0 {
		return e
	}
	t, e := m.mode(target)
	src := m.args[3]
	if t == directory {
		src = m.args[2]
	}
	var tree uintptr
	if e == 0 {
		tree, _, e = syscall.RawSyscall(sysOpenTree, src, m.empty(), openTreeClone|atEmptyPath|syscall.O_CLOEXEC)
	}
	if e != 0 {
		closeFD(target)
		return e
	}
	return m.cover(tree, target)
}

//go:norace
//go:nosplit
func (m *machine) readOnly() syscall.Errno {
	target, e := m.open(m.args[0], m.args[1], resolveInRoot|resolveNoMagic)
	if e == syscall.ENOENT || e == syscall.ENOTDIR {
		return 0
	}
	if e != 0 {
		return e
	}
	const how = openTreeClone | atEmptyPath | atRecursive | syscall.O_CLOEXEC
	tree, _, e := syscall.RawSyscall(sysOpenTree, target, m.empty(), how)
	if e == 0 {
		_, _, e = syscall.RawSyscall6(sysMountSetattr, tree, m.empty(), atEmptyPath|atRecursive, m.args[2], 32, 0)
		if e != 0 {
			closeFD(tree)
		}
	}
	if e != 0 {
		closeFD(target)
		return e
	}
	return m.cover(tree, target)
}

//go:norace
//go:nosplit
func (m *machine) checkFD() syscall.Errno {
	if m.args[1] == CheckFS {
		magic, e := m.fsMagic(m.args[0])
		if e == 0 && magic != uint64(m.args[2]) {
			e = eMediumType
		}
		return e
	}
	t, e := m.mode(m.args[0])
	if e != 0 {
		return e
	}
	rdev := load64(uintptr(unsafe.Pointer(&m.stat)) + offStatxRdev)
	same := rdev == uint64(m.args[2])|uint64(m.args[3])<<32
	switch m.args[1] {
	case CheckCharDev:
		same = same && t == charDev
	case CheckBlockDev:
		same = same && t == syscall.S_IFBLK
	case CheckFIFO:
		same = t == fifo
	default:
		same = false
	}
	if !same {
		return syscall.ENODEV
	}
	return 0
}

// checkCwd: the kernel puts "(unreachable)" before a working directory that cannot
// be reached from the root, as one on a leaked descriptor of the host is.
//
//go:norace
//go:nosplit
func (m *machine) checkCwd() syscall.Errno {
	_, _, e := syscall.RawSyscall(syscall.SYS_GETCWD, uintptr(unsafe.Pointer(&m.path)), pathMax, 0)
	if e == 0 && m.path[0] != '/' {
		e = syscall.EXDEV
	}
	return e
}

// checkRoot proves that the old root is gone: /.. leads to the topmost of what is
// mounted on the root, and thereby out of it, if anything was left there.
//
//go:norace
//go:nosplit
func (m *machine) checkRoot() syscall.Errno {
	st := uintptr(unsafe.Pointer(&m.stat))
	if _, _, e := syscall.RawSyscall6(sysStatx, m.args[0], m.empty(), atEmptyPath, statxMntID, st, 0); e != 0 {
		return e
	}
	id := load64(st + offStatxMntID)
	m.path[0], m.path[1], m.path[2], m.path[3] = '/', '.', '.', 0
	at := uintptr(unsafe.Pointer(&m.path))
	if _, _, e := syscall.RawSyscall6(sysStatx, m.args[0], at, 0, statxMntID, st, 0); e != 0 {
		return e
	}
	if load64(st+offStatxMntID) != id {
		return syscall.EXDEV
	}
	return 0
}

//go:norace
//go:nosplit
func (m *machine) chownPipe() syscall.Errno {
	t, e := m.mode(m.args[0])
	if e != 0 || t != fifo && t != socket {
		return e
	}
	_, _, e = syscall.RawSyscall(syscall.SYS_FCHOWN, m.args[0], m.args[1], m.args[2])
	return e
}

// capSet leaves out what the process lacks: a node may be a machine that was denied
// a capability, and a privileged container there gets all there are.
//
//go:norace
//go:nosplit
func (m *machine) capSet() syscall.Errno {
	head := uintptr(unsafe.Pointer(&m.rec))
	d := uintptr(unsafe.Pointer(&m.caps))
	store32(head, capVersion3)
	store32(head+4, 0)
	if _, _, e := syscall.RawSyscall(syscall.SYS_CAPGET, head, d, 0); e != 0 {
		return e
	}
	have := load64(d) >> 32
	have |= load64(d+16) << 32
	perm := uint64(m.args[1]) & have
	eff, inh := uint64(m.args[0])&perm, uint64(m.args[2])&have
	store32(d, uint32(eff))
	store32(d+4, uint32(perm))
	store32(d+8, uint32(inh))
	store32(d+12, uint32(eff>>32))
	store32(d+16, uint32(perm>>32))
	store32(d+20, uint32(inh>>32))
	_, _, e := syscall.RawSyscall(syscall.SYS_CAPSET, head, d, 0)
	return e
}

// dropBounding ends at the first number that the kernel does not know.
//
//go:norace
//go:nosplit
func (m *machine) dropBounding() syscall.Errno {
	for i := range uintptr(64) {
		if m.args[0]>>i&1 != 0 {
			continue
		}
		_, _, e := syscall.RawSyscall6(syscall.SYS_PRCTL, syscall.PR_CAPBSET_DROP, i, 0, 0, 0, 0)
		if e == syscall.EINVAL && i > lastOldCap {
			return 0
		}
		if e != 0 {
			return e
		}
	}
	return 0
}

// sendFD sends a descriptor with one byte, since an empty message carries none.
//
//go:norace
//go:nosplit
func (m *machine) sendFD() syscall.Errno {
	const cmsgLen = 20 // a header of 16 bytes and one descriptor
	m.iov[0], m.iov[1] = uint64(uintptr(unsafe.Pointer(&m.rec))), 1
	m.cmsg[0] = cmsgLen
	m.cmsg[1] = syscall.SOL_SOCKET | syscall.SCM_RIGHTS<<32
	m.cmsg[2] = uint64(uint32(m.args[1]))
	m.msg[2], m.msg[3] = uint64(uintptr(unsafe.Pointer(&m.iov))), 1
	m.msg[4], m.msg[5] = uint64(uintptr(unsafe.Pointer(&m.cmsg))), 24
	for {
		_, _, e := syscall.RawSyscall(syscall.SYS_SENDMSG, m.args[0], uintptr(unsafe.Pointer(&m.msg)), syscall.MSG_NOSIGNAL)
		if e != syscall.EINTR {
			return e
		}
	}
}
