// Package podinit is the program that is pid 1 of a pod whose containers share a
// pid namespace: it reaps orphans and does nothing else.
//
// It is a few dozen machine instructions in a static executable that is made here
// and handed over as a sealed memfd that can be executed but not read. Container
// root sees it as pid 1, so it has no descriptors, no files, no rights and cannot
// be dumped. It ends with SIGKILL from outside only. It starts no goroutine and
// leaves nothing on disk.
package podinit

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// target is what differs between processors.
type target struct {
	machine  elf.Machine
	align    uint64 // the largest page size
	audit    uint32 // AUDIT_ARCH of seccomp
	code     func() []byte
	syscalls []uint32
}

var targets = map[string]target{
	"amd64": {elf.EM_X86_64, 1 << 12, unix.AUDIT_ARCH_X86_64, amd64Code,
		// write, rt_sigprocmask, wait4, rt_sigtimedwait, prctl, restart_syscall, exit_group, execveat
		[]uint32{1, 14, 61, 128, 157, 219, 231, 322}},
	"arm64": {elf.EM_AARCH64, 1 << 16, unix.AUDIT_ARCH_AARCH64, arm64Code,
		[]uint32{64, 135, 260, 137, 167, 128, 94, 281}},
}

// image wraps the code in a static executable with one segment and a stack that
// cannot be executed.
func (t target) image() []byte {
	const base, headers = 0x400000, 64 + 2*56
	code := t.code()
	size := uint64(headers + len(code))
	head := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(t.machine), Version: 1,
		Entry: base + headers, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 2, Shentsize: 64,
	}
	copy(head.Ident[:], []byte{0x7F, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1})
	text := elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X),
		Vaddr: base, Paddr: base, Filesz: size, Memsz: size, Align: t.align,
	}
	stack := elf.Prog64{Type: uint32(elf.PT_GNU_STACK), Flags: uint32(elf.PF_R | elf.PF_W), Align: 16}
	var b bytes.Buffer
	for _, part := range []any{head, text, stack, code} {
		// A bytes.Buffer takes everything, and all parts have a fixed size.
		_ = binary.Write(&b, binary.LittleEndian, part)
	}
	return b.Bytes()
}

// Program gives the program as a descriptor that may be executed but not read.
func Program() (*os.File, error) {
	t, ok := targets[runtime.GOARCH]
	if !ok {
		return nil, fmt.Errorf("make pod init: processor %s: %w", runtime.GOARCH, errdef.ErrUnimplemented)
	}
	f, err := seal(t.image())
	if err != nil {
		return nil, fmt.Errorf("make pod init: %w", err)
	}
	return f, nil
}

func seal(image []byte) (*os.File, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("pod-init", flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("pod-init", flags)
	}
	if err != nil {
		return nil, fmt.Errorf("create memfd: %w", err)
	}
	w := os.NewFile(uintptr(fd), "pod-init")
	defer func() { _ = w.Close() }()
	if _, err := w.Write(image); err != nil {
		return nil, err
	}
	// Who may not read a program may not dump its process: the kernel sees to it
	// at exec, by which time the rights to override the mode are gone.
	if err := w.Chmod(0o111); err != nil {
		return nil, err
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(w.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, fmt.Errorf("seal memfd: %w", err)
	}
	// A file that is open for writing cannot be executed, so another handle of it
	// is given away.
	fd, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", w.Fd()), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open memfd again: %w", err)
	}
	return os.NewFile(uintptr(fd), "pod-init"), nil
}

// Filter is the seccomp program, an array of struct sock_filter, that allows what
// the program and its exec do, and kills for anything else.
func Filter() []byte {
	t := targets[runtime.GOARCH]
	const (
		load, jumpIfEqual, ret = 0x20, 0x15, 0x06
		kill, allow            = 0x80000000, 0x7fff0000
		offsetNr, offsetArch   = 0, 4
	)
	var b []byte
	ins := func(code uint16, jt, jf byte, k uint32) {
		b = binary.NativeEndian.AppendUint16(b, code)
		b = append(b, jt, jf)
		b = binary.NativeEndian.AppendUint32(b, k)
	}
	n := len(t.syscalls)
	ins(load, 0, 0, offsetArch)
	ins(jumpIfEqual, 0, byte(n+1), t.audit)
	ins(load, 0, 0, offsetNr)
	for i, nr := range t.syscalls {
		ins(jumpIfEqual, byte(n-i), 0, nr)
	}
	ins(ret, 0, 0, kill)
	ins(ret, 0, 0, allow)
	return b
}
