package plan

import (
	"syscall"
	"unsafe"
)

// These stop signals, and with them preemption, around the clone, and make any
// growth of the stack a crash instead of a deadlock. os/exec uses the same.

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()

// cloneArgs is struct clone_args of clone3, all 88 bytes of Linux 5.7.
type cloneArgs struct {
	flags, pidfd, childTid, parentTid, exitSignal, stack, stackSize, tls, setTid, setTidSize, cgroup uint64
}

const (
	sizeofCloneArgs = 88
	clonePidfd      = 0x1000
	cloneParent     = 0x8000
	cloneClearSig   = 0x100000000 // CLONE_CLEAR_SIGHAND, Linux 5.5
	cloneIntoCgroup = 0x200000000 // Linux 5.7
)

// Child is what Start leaves with its caller.
type Child struct {
	// PID is the child as the caller sees it.
	PID int
	// PIDFD refers to the child; close-on-exec.
	PIDFD int
	// Status is the read end of the status pipe; close-on-exec, blocking. Its
	// records are 8 bytes: see Decode. End of file after Ready is a successful
	// exec; before it, the child died.
	Status int
}

// Start clones a child that runs the plan. The descriptors are the plan's inputs
// in order; the caller keeps its own. The child is the caller's, with SIGCHLD.
// One Loaded may be started by one caller at a time.
func (l *Loaded) Start(fds []int32) (Child, syscall.Errno) {
	if len(fds) != l.Inputs {
		return Child{}, syscall.EINVAL
	}
	var pipe [2]int
	if err := syscall.Pipe2(pipe[:], syscall.O_CLOEXEC); err != nil {
		return Child{}, errno(err)
	}
	m := l.m
	for i, fd := range fds {
		m.slots[i] = uint64(fd)
	}
	m.slots[len(fds)] = uint64(pipe[1])
	m.status = uintptr(pipe[1])
	var pidfd int32
	ca := cloneArgs{
		flags: l.CloneFlags | clonePidfd | cloneClearSig, exitSignal: uint64(syscall.SIGCHLD),
		pidfd: uint64(uintptr(unsafe.Pointer(&pidfd))),
	}
	if l.CgroupInput >= 0 {
		ca.flags |= cloneIntoCgroup
		ca.cgroup = uint64(fds[l.CgroupInput])
	}
	pid, e := fork(m, &ca)
	_ = syscall.Close(pipe[1])
	if e != 0 {
		_ = syscall.Close(pipe[0])
		return Child{}, e
	}
	return Child{PID: int(pid), PIDFD: int(pidfd), Status: pipe[0]}, 0
}

// fork returns in the caller only; the child runs the plan.
//
//go:norace
//go:nosplit
func fork(m *machine, ca *cloneArgs) (uintptr, syscall.Errno) {
	beforeFork()
	pid, _, e := syscall.RawSyscall(sysClone3, uintptr(unsafe.Pointer(ca)), sizeofCloneArgs, 0)
	if e != 0 || pid != 0 {
		afterFork()
		return pid, e
	}
	afterForkInChild()
	m.run()
	return 0, 0
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
