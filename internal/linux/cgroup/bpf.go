package cgroup

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// insn is the kernel's struct bpf_insn.
type insn struct {
	code uint8
	regs uint8 // dst in the low half, src in the high one
	off  int16
	imm  int32
}

// The few instructions that a device program needs.
const (
	opLoad32 = 0x61 // dst = *(u32 *)(src + off)
	opMov    = 0xbf // dst = src
	opMovImm = 0xb7 // dst = imm
	opAnd    = 0x54 // (u32) dst &= imm
	opShr    = 0x74 // (u32) dst >>= imm
	opJneImm = 0x56 // (u32) if dst != imm goto +off
	opJeqImm = 0x16 // (u32) if dst == imm goto +off
	opJne    = 0x5e // (u32) if dst != src goto +off
	opExit   = 0x95
)

// The access bits of struct bpf_cgroup_dev_ctx.
const (
	accMknod = 1 << iota
	accRead
	accWrite
)

func (d DeviceRule) mask() (m int32) {
	for _, c := range d.Access {
		switch c {
		case 'r':
			m |= accRead
		case 'w':
			m |= accWrite
		case 'm':
			m |= accMknod
		}
	}
	return m
}

// deviceProgram compiles rules to a BPF program of type cgroup_device. The last
// rule that matches decides, so they are tried backwards; without a match access is
// denied. An allow rule matches if it covers all that is asked for, a deny rule if
// it covers any of it.
func deviceProgram(rules []DeviceRule) []insn {
	// r2 type, r3 access, r4 major, r5 minor; the context is in r1.
	prog := []insn{
		{opLoad32, 2 | 1<<4, 0, 0}, {opAnd, 2, 0, 0xffff},
		{opLoad32, 3 | 1<<4, 0, 0}, {opShr, 3, 0, 16},
		{opLoad32, 4 | 1<<4, 4, 0},
		{opLoad32, 5 | 1<<4, 8, 0},
	}
	merged := mergeAllowed(rules)
	for _, rule := range slices.Backward(merged) {
		prog = append(prog, ruleProgram(rule)...)
		if rule.everything() {
			return prog // the verifier refuses what can never be reached
		}
	}
	return append(prog, insn{opMovImm, 0, 0, 0}, insn{opExit, 0, 0, 0})
}

// mergeAllowed makes one rule of neighbours that differ in access only, so that
// "r" and "w" apart allow "rw".
func mergeAllowed(rules []DeviceRule) (out []DeviceRule) {
	for _, r := range rules {
		if n := len(out); n > 0 {
			last := &out[n-1]
			if last.Allow == r.Allow && last.Type == r.Type && last.Major == r.Major && last.Minor == r.Minor {
				last.Access += r.Access
				continue
			}
		}
		out = append(out, r)
	}
	return out
}

func ruleProgram(r DeviceRule) []insn {
	var out []insn
	var jumps []int // to the end of this rule
	jump := func(i insn) {
		jumps = append(jumps, len(out))
		out = append(out, i)
	}
	switch r.Type {
	case 'b':
		jump(insn{opJneImm, 2, 0, unix.BPF_DEVCG_DEV_BLOCK})
	case 'c':
		jump(insn{opJneImm, 2, 0, unix.BPF_DEVCG_DEV_CHAR})
	}
	if mask := r.mask(); mask != accRead|accWrite|accMknod {
		out = append(out, insn{opMov, 1 | 3<<4, 0, 0}, insn{opAnd, 1, 0, mask})
		if r.Allow {
			jump(insn{opJne, 1 | 3<<4, 0, 0})
		} else {
			jump(insn{opJeqImm, 1, 0, 0})
		}
	}
	if r.Major >= 0 {
		jump(insn{opJneImm, 4, 0, int32(uint32(r.Major))})
	}
	if r.Minor >= 0 {
		jump(insn{opJneImm, 5, 0, int32(uint32(r.Minor))})
	}
	verdict := int32(0)
	if r.Allow {
		verdict = 1
	}
	out = append(out, insn{opMovImm, 0, 0, verdict}, insn{opExit, 0, 0, 0})
	for _, i := range jumps {
		out[i].off = int16(len(out) - i - 1)
	}
	return out
}

// The attributes of bpf(2), one struct per command; the kernel takes any prefix.
type (
	bpfLoad struct {
		progType, count uint32
		insns, license  uint64
		_               [104]byte
	}
	bpfAttach struct {
		target, prog, attachType, flags, replace uint32
	}
	bpfQuery struct {
		target, attachType, flags, attachFlags uint32
		ids                                    uint64
		count                                  uint32
		_                                      [36]byte
	}
	bpfByID struct {
		id, next, flags uint32
	}
)

func bpf(cmd uintptr, attr unsafe.Pointer, size uintptr) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, cmd, uintptr(attr), size)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

func loadProgram(prog []insn) (*os.File, error) {
	license := []byte("Apache\x00")
	attr := bpfLoad{
		progType: unix.BPF_PROG_TYPE_CGROUP_DEVICE, count: uint32(len(prog)),
		insns: uint64(uintptr(unsafe.Pointer(&prog[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0]))),
	}
	var fd int
	var err error
	for range 5 { // EAGAIN: the verifier was interrupted by a signal
		fd, err = bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
		if !errors.Is(err, unix.EAGAIN) {
			break
		}
	}
	runtime.KeepAlive(prog)
	runtime.KeepAlive(license)
	if err != nil {
		return nil, fmt.Errorf("load device program: %w", err)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "device program"), nil
}

func attachProgram(dir, prog int) error {
	attr := bpfAttach{target: uint32(dir), prog: uint32(prog),
		attachType: unix.BPF_CGROUP_DEVICE, flags: unix.BPF_F_ALLOW_MULTI}
	if _, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return fmt.Errorf("attach device program: %w", err)
	}
	return nil
}

func attachedPrograms(dir int) ([]uint32, error) {
	ids := make([]uint32, 64) // the kernel's maximum
	attr := bpfQuery{target: uint32(dir), attachType: unix.BPF_CGROUP_DEVICE,
		ids: uint64(uintptr(unsafe.Pointer(&ids[0]))), count: uint32(len(ids))}
	_, err := bpf(unix.BPF_PROG_QUERY, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	runtime.KeepAlive(ids)
	if err != nil {
		return nil, fmt.Errorf("list device programs: %w", err)
	}
	return ids[:attr.count], nil
}

func detachProgram(dir int, id uint32) error {
	byID := bpfByID{id: id}
	fd, err := bpf(unix.BPF_PROG_GET_FD_BY_ID, unsafe.Pointer(&byID), unsafe.Sizeof(byID))
	if err != nil {
		return fmt.Errorf("open device program %d: %w", id, err)
	}
	defer func() { _ = unix.Close(fd) }()
	attr := bpfAttach{target: uint32(dir), prog: uint32(fd), attachType: unix.BPF_CGROUP_DEVICE}
	if _, err := bpf(unix.BPF_PROG_DETACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return fmt.Errorf("detach device program %d: %w", id, err)
	}
	return nil
}
