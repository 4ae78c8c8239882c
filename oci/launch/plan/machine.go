package plan

import (
	"syscall"
	"unsafe"

	"github.com/cri-runtime/cri-runtime/internal/linux/clone"
)

// Numbers that package syscall lacks; from 424 on they are the same everywhere.
const (
	sysOpenTree     = 428
	sysMoveMount    = 429
	sysCloseRange   = 436
	sysOpenat2      = 437
	sysMountSetattr = 442
)

// machine is all memory that a child uses beside its stacks and the plan. It is made before
// the clone, outside of the heap; addresses in it are numbers.
type machine struct {
	ins, count, data, size uintptr
	inputs                 uintptr // with the status pipe
	status                 uintptr // descriptor of the status pipe
	stack, stack2          uintptr // where the stages' stacks begin, at their upper ends
	at                     uintptr // index of the running instruction
	args                   [6]uintptr
	ignored                uint64 // signals that are to be defaulted
	pidfd                  int32  // of the first stage, for the caller
	pid                    int32  // of the second stage

	how  [3]uint64 // struct open_how
	stat [256]byte // struct statx or statfs
	caps [24]byte
	act  [32]byte // struct sigaction of zeros: the default
	ca   clone.Args
	msg  [7]uint64 // struct msghdr
	iov  [2]uint64
	cmsg [3]uint64
	rec  [8]byte
	word [8]byte // the first stage's last

	slots [MaxSlots]uint64
	path  [pathMax + 1]byte
	path2 [pathMax + 1]byte
}

const pathMax = 4096

// All functions below run in the child: nosplit, because the stack must not grow,
// and norace, because the detector's own memory is in an unknown state.

//go:norace
//go:nosplit
//go:nocheckptr
func load64(a uintptr) uint64 { return *(*uint64)(*(*unsafe.Pointer)(unsafe.Pointer(&a))) }

//go:norace
//go:nosplit
//go:nocheckptr
func store64(a uintptr, v uint64) { *(*uint64)(*(*unsafe.Pointer)(unsafe.Pointer(&a))) = v }

//go:norace
//go:nosplit
//go:nocheckptr
func store32(a uintptr, v uint32) { *(*uint32)(*(*unsafe.Pointer)(unsafe.Pointer(&a))) = v }

//go:norace
//go:nosplit
//go:nocheckptr
func load8(a uintptr) byte { return *(*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&a))) }

// firstStage is what a clone begins with.
//
//go:norace
//go:nosplit
func firstStage(m unsafe.Pointer, _ syscall.Errno) { (*machine)(m).run(0) }

// secondStage is what the clone begins with that the plan makes. Nothing is done before its
// pid was reported.
//
//go:norace
//go:nosplit
func secondStage(p unsafe.Pointer, e syscall.Errno) {
	m := (*machine)(p)
	if e != 0 {
		m.fail(e)
	}
	m.report(StepClone, uint32(m.pid))
	m.run(m.at + 1)
}

// leave is the end of the first stage. Its end must not be seen before the word about the
// second one, which may not have come to run yet.
//
//go:norace
//go:nosplit
func leave(p unsafe.Pointer, _ syscall.Errno) {
	m := (*machine)(p)
	a := uintptr(unsafe.Pointer(&m.word))
	store32(a, StepClone)
	store32(a+4, uint32(m.pid))
	_, _, _ = syscall.RawSyscall(syscall.SYS_WRITE, m.status, a, RecordSize)
	for {
		_, _, _ = syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
	}
}

// run carries out the plan from an instruction on and does not return.
//
//go:norace
//go:nosplit
func (m *machine) run(from uintptr) {
	for m.at = from; m.at < m.count; m.at++ {
		in := m.ins + m.at*insSize
		w := load64(in)
		for k := range uintptr(6) {
			v := uintptr(load64(in + 8 + 8*k))
			if w>>(16+k)&1 != 0 {
				v += m.data
			} else if w>>(24+k)&1 != 0 {
				v = uintptr(m.slots[v&(MaxSlots-1)])
			}
			m.args[k] = v
		}
		var r uintptr
		var e syscall.Errno
		if op := Op(w); op < FirstComposite {
			r, _, e = syscall.RawSyscall6(uintptr(op), m.args[0], m.args[1], m.args[2], m.args[3], m.args[4], m.args[5])
		} else {
			r, e = m.composite(op)
		}
		if e != 0 {
			if w>>48&flagAny == 0 && !tolerated(load64(in+56), e) {
				m.fail(e)
			}
			r = -uintptr(e)
		}
		if out := w >> 32 & 0xffff; out != 0 {
			m.slots[(out-1)&(MaxSlots-1)] = uint64(r)
		}
	}
	m.fail(syscall.ENOEXEC)
}

//go:norace
//go:nosplit
func tolerated(list uint64, e syscall.Errno) bool {
	for ; list != 0; list >>= 16 {
		if syscall.Errno(list&0xffff) == e {
			return true
		}
	}
	return false
}

// fail reports the failed instruction and ends the process, with the code that a
// shell gives for a program that is not there or cannot be run.
//
//go:norace
//go:nosplit
func (m *machine) fail(e syscall.Errno) {
	code := uintptr(126)
	if e == syscall.ENOENT {
		code = 127
	}
	m.report(uint32(m.at), uint32(e))
	for {
		_, _, _ = syscall.RawSyscall(syscall.SYS_EXIT_GROUP, code, 0, 0)
	}
}

//go:norace
//go:nosplit
func (m *machine) report(step, value uint32) {
	a := uintptr(unsafe.Pointer(&m.rec))
	store32(a, step)
	store32(a+4, value)
	_, _, _ = syscall.RawSyscall(syscall.SYS_WRITE, m.status, a, RecordSize)
}

//go:norace
//go:nosplit
func (m *machine) composite(op Op) (uintptr, syscall.Errno) { //nolint:cyclop // one case per composite
	switch op {
	case Prelude:
		return 0, m.prelude()
	case Wait:
		return 0, m.wait()
	case Clone:
		m.clone()
	case Poke:
		if m.args[2] == 4 {
			store32(m.args[0], uint32(m.args[1]))
		} else {
			store64(m.args[0], uint64(m.args[1]))
		}
	case SendFD:
		return 0, m.sendFD()
	case MkPath:
		return m.mkPath()
	case Mask:
		return 0, m.mask()
	case ReadOnly:
		return 0, m.readOnly()
	case CheckFD:
		return 0, m.checkFD()
	case CheckCwd:
		return 0, m.checkCwd()
	case CheckRoot:
		return 0, m.checkRoot()
	case ChownPipe:
		return 0, m.chownPipe()
	case CapSet:
		return 0, m.capSet()
	case DropBounding:
		return 0, m.dropBounding()
	case Skip:
		if (m.args[0] == m.args[1]) != (m.args[3] != 0) {
			m.at += m.args[2]
		}
	case Ready:
		m.report(StepReady, 0)
	case Exec:
		return 0, m.exec()
	default:
		return 0, syscall.ENOSYS
	}
	return 0, 0
}

// prelude cuts the child off from what the monitor holds, before anything that
// container root may already watch is joined.
//
//go:norace
//go:nosplit
func (m *machine) prelude() syscall.Errno {
	if _, _, e := syscall.RawSyscall6(syscall.SYS_PRCTL, syscall.PR_SET_DUMPABLE, 0, 0, 0, 0, 0); e != 0 {
		return e
	}
	act := uintptr(unsafe.Pointer(&m.act))
	for sig := uintptr(1); m.ignored != 0; sig++ {
		if m.ignored&1 != 0 {
			_, _, _ = syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, sig, act, 0, 8, 0, 0)
		}
		m.ignored >>= 1
	}
	if _, _, e := syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, 2, act, 0, 8, 0, 0); e != 0 {
		return e
	}
	base := uintptr(3)
	for i := uintptr(0); i < m.inputs; i++ {
		if fd := uintptr(m.slots[i]); fd >= base {
			base = fd + 1
		}
	}
	for i := uintptr(0); i < m.inputs; i++ {
		if _, _, e := syscall.RawSyscall(syscall.SYS_DUP3, uintptr(m.slots[i]), base+i, syscall.O_CLOEXEC); e != 0 {
			return e
		}
		m.slots[i] = uint64(base + i)
	}
	m.status = base + m.inputs - 1
	if _, _, e := syscall.RawSyscall(sysCloseRange, 0, base-1, 0); e != 0 {
		return e
	}
	_, _, e := syscall.RawSyscall(sysCloseRange, base+m.inputs, 1<<32-1, 0)
	return e
}

//go:norace
//go:nosplit
func (m *machine) wait() syscall.Errno {
	for {
		n, _, e := syscall.RawSyscall(syscall.SYS_READ, m.args[0], uintptr(unsafe.Pointer(&m.rec)), 1)
		switch {
		case e == syscall.EINTR:
		case e != 0:
			return e
		case n == 0:
			return syscall.EPIPE
		default:
			return 0
		}
	}
}

// clone makes the second stage and ends this process. One that joined a pid namespace is
// not in it itself, only its children are; CLONE_PARENT keeps the monitor the parent. The
// two share this process's memory and descriptors, which saves copying them: the kernel
// stores the pid before the other begins, and this one touches nothing else any more.
//
//go:norace
//go:nosplit
func (m *machine) clone() {
	m.ca.Flags = uint64(m.args[0]) | syscall.CLONE_PARENT | syscall.CLONE_PARENT_SETTID | syscall.CLONE_VM | syscall.CLONE_FILES
	m.ca.ParentTID = uint64(uintptr(unsafe.Pointer(&m.pid)))
	m.ca.PIDFD, m.ca.ExitSignal, m.ca.Cgroup = 0, 0, 0
	clone.AndEnd(&m.ca, m.stack2, clone.Address(secondStage), clone.Address(leave), unsafe.Pointer(m))
}

// exec tries candidates as the shell does: a directory of PATH without the program
// is passed over, one that forbids it is remembered.
//
//go:norace
//go:nosplit
func (m *machine) exec() syscall.Errno {
	last := syscall.ENOENT
	for i := uintptr(0); i < m.args[1]; i++ {
		path := uintptr(load64(m.args[0] + 8*i))
		_, _, e := syscall.RawSyscall(syscall.SYS_EXECVE, path, m.args[2], m.args[3])
		switch e {
		case syscall.ENOENT, syscall.ENOTDIR:
		case syscall.EACCES:
			last = e
		default:
			return e
		}
	}
	return last
}
