package plan

import (
	"sync"
	"syscall"
	"unsafe"

	"github.com/cri-runtime/cri-runtime/internal/linux/clone"
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
	m.ca = clone.Args{
		Flags: l.CloneFlags | clone.PIDFD | clone.ClearSighand, ExitSignal: uint64(syscall.SIGCHLD),
		PIDFD: uint64(uintptr(unsafe.Pointer(&m.pidfd))),
	}
	if l.CgroupInput >= 0 {
		m.ca.Flags |= clone.IntoCgroup
		m.ca.Cgroup = uint64(fds[l.CgroupInput])
	}
	pid, e := clone.Process(&m.ca, m.stack, clone.Address(firstStage), unsafe.Pointer(m))
	_ = syscall.Close(pipe[1])
	if e != 0 {
		_ = syscall.Close(pipe[0])
		return Child{}, e
	}
	return Child{PID: int(pid), PIDFD: int(m.pidfd), Status: pipe[0]}, 0
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
