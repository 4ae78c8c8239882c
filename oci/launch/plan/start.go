package plan

import (
	"sync"
	"syscall"
	"unsafe"
)

// These stop signals, and with them preemption, around the clone, and make any
// growth of the stack a crash instead of a deadlock. os/exec uses the same.

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

// clone makes a child that calls entry on a stack of its own. It returns in the caller only.
//
//go:noescape
func clone(args *cloneArgs, stack, entry uintptr, m *machine) (pid uintptr, e syscall.Errno)

// cloneAndEnd makes a child that calls entry on a stack of its own, and calls leave in the
// caller, or entry with an errno if there is no child. It does not return.
//
//go:noescape
func cloneAndEnd(args *cloneArgs, stack, entry, leave uintptr, m *machine)

// cloneArgs is struct clone_args of clone3, all 88 bytes of Linux 5.7.
type cloneArgs struct {
	flags, pidfd, childTid, parentTid, exitSignal, stack, stackSize, tls, setTid, setTidSize, cgroup uint64
}

const (
	cloneVM         = 0x100
	cloneFiles      = 0x400
	clonePidfd      = 0x1000
	cloneParent     = 0x8000
	cloneParentTid  = 0x100000
	cloneClearSig   = 0x100000000 // CLONE_CLEAR_SIGHAND, Linux 5.5
	cloneIntoCgroup = 0x200000000 // Linux 5.7
)

// Child is what Start leaves with its caller.
type Child struct {
	// PID is the child as the caller sees it.
	PID int
	// PIDFD refers to the child; close-on-exec.
	PIDFD int
	// Status is the read end of the status pipe; close-on-exec, not blocking. Its
	// records are 8 bytes: see Decode. End of file after Ready is a successful
	// exec; before it, the child died.
	Status int
}

// ignored is a mask of the signals that this process ignores, which the clone leaves
// ignored. Nobody changes that later: the Go runtime ignores what it was started with.
var ignored = sync.OnceValue(func() (mask uint64) {
	var act [4]uint64 // struct sigaction
	for sig := uintptr(1); sig <= 64; sig++ {
		_, _, e := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&act)), 8, 0, 0)
		if e == 0 && act[0] == 1 { // SIG_IGN
			mask |= 1 << (sig - 1)
		}
	}
	return mask
})

// Start clones a child that runs the plan. The descriptors are the plan's inputs
// in order; the caller keeps its own. The child is the caller's, with SIGCHLD.
// A Loaded is started once; it may be unmapped right after.
func (l *Loaded) Start(fds []int32) (Child, syscall.Errno) {
	if len(fds) != l.Inputs || l.m == nil {
		return Child{}, syscall.EINVAL
	}
	var pipe [2]int
	if err := syscall.Pipe2(pipe[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		return Child{}, errno(err)
	}
	m := l.m
	for i, fd := range fds {
		m.slots[i] = uint64(fd)
	}
	m.slots[len(fds)] = uint64(pipe[1])
	m.status = uintptr(pipe[1])
	m.ignored = ignored()
	// The pidfd is stored in our memory, of which the child has its copy already.
	m.ca = cloneArgs{
		flags: l.CloneFlags | clonePidfd | cloneClearSig, exitSignal: uint64(syscall.SIGCHLD),
		pidfd: uint64(uintptr(unsafe.Pointer(&m.pidfd))),
	}
	if l.CgroupInput >= 0 {
		m.ca.flags |= cloneIntoCgroup
		m.ca.cgroup = uint64(fds[l.CgroupInput])
	}
	pid, e := fork(m)
	_ = syscall.Close(pipe[1])
	if e != 0 {
		_ = syscall.Close(pipe[0])
		return Child{}, e
	}
	return Child{PID: int(pid), PIDFD: int(m.pidfd), Status: pipe[0]}, 0
}

// fork returns in the caller only; the child runs the plan.
//
//go:norace
//go:nosplit
func fork(m *machine) (uintptr, syscall.Errno) {
	beforeFork()
	pid, e := clone(&m.ca, m.stack, address(firstStage), m)
	afterFork()
	return pid, e
}

// address is where the code of a function without free variables begins.
//
//go:norace
//go:nosplit
//go:nocheckptr
func address(f func(*machine, syscall.Errno)) uintptr {
	return **(**uintptr)(unsafe.Pointer(&f))
}

// RecordSize is the size of a status record.
const RecordSize = 8

// Record is what a child says about itself.
type Record struct {
	Step uint32 // index of the failed instruction, StepClone or StepReady
	// Value is the errno of the failed instruction or the second stage's pid.
	Value uint32
}

// Decode reads one record.
func Decode(b []byte) Record { return Record{get32(b), get32(b[4:])} }

// Failed says whether the record ends the launch.
func (r Record) Failed() bool { return r.Step != StepClone && r.Step != StepReady }
