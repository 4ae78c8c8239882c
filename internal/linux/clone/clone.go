// Package clone makes processes and threads that begin in a function of ours, on a stack of
// their own, and never become part of the Go runtime.
//
// What such a function may do is little: it and all that it calls is nosplit, since its stack
// cannot grow; norace, since the detector's own memory is in an unknown state; it uses raw
// system calls and memory outside of the heap. There is no goroutine. The package is linked
// into cri-monitor and imports next to nothing. It keeps nothing and leaves nothing on disk.
package clone

import (
	"syscall"
	"unsafe"
)

// Args is struct clone_args of clone3, all 88 bytes of Linux 5.7.
type Args struct {
	Flags, PIDFD, ChildTID, ParentTID, ExitSignal, Stack, StackSize, TLS, SetTID, SetTIDSize, Cgroup uint64
}

// Flags that package syscall lacks.
const (
	ClearSighand = 0x100000000 // Linux 5.5
	IntoCgroup   = 0x200000000 // Linux 5.7
	PIDFD        = 0x1000
)

// Onto makes a child that calls entry with arg on the stack that ends below the address
// stack. It returns in the caller only; entry never does.
//
//go:noescape
func Onto(args *Args, stack, entry uintptr, arg unsafe.Pointer) (pid uintptr, e syscall.Errno)

// AndEnd makes a child as Onto does and calls leave in the caller, or entry with an errno if
// there is no child. It does not return; neither function does.
//
//go:noescape
func AndEnd(args *Args, stack, entry, leave uintptr, arg unsafe.Pointer)

// Entry is what a child begins with. The errno is 0 in it.
type Entry func(arg unsafe.Pointer, e syscall.Errno)

// Address is where the code of a function without free variables begins.
//
//go:norace
//go:nosplit
//go:nocheckptr
func Address(f Entry) uintptr { return **(**uintptr)(unsafe.Pointer(&f)) }

// These stop signals, and with them preemption, around a clone, and make any growth of the
// stack a crash instead of a deadlock. os/exec uses the same.

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

// Process is Onto with all signals blocked in the child.
//
//go:norace
//go:nosplit
func Process(args *Args, stack, entry uintptr, arg unsafe.Pointer) (uintptr, syscall.Errno) {
	beforeFork()
	pid, e := Onto(args, stack, entry, arg)
	afterFork()
	return pid, e
}

// stackSize is much more than the linker lets functions use that cannot grow their stack.
const stackSize = 16 << 10

// Top is where a stack begins that lies in b, at its upper end. A function may keep its
// arguments in its caller's frame, above that.
func Top(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) + uintptr(len(b)) - 64 }

// Thread makes a thread of this process that runs entry, with all signals blocked. Its stack
// and arg, which lies outside of the heap, are never released.
func Thread(entry Entry, arg unsafe.Pointer) syscall.Errno {
	stack, err := syscall.Mmap(-1, 0, stackSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANONYMOUS)
	if err != nil {
		return err.(syscall.Errno) //nolint:errorlint,forcetypeassert // package syscall returns bare numbers
	}
	args := &Args{Flags: syscall.CLONE_VM | syscall.CLONE_FS | syscall.CLONE_FILES | syscall.CLONE_SIGHAND | syscall.CLONE_THREAD | syscall.CLONE_SYSVSEM}
	_, e := Process(args, Top(stack), Address(entry), arg)
	return e
}
