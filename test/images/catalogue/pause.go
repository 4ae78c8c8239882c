package catalogue

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
)

// pauseCode is the program of a sandbox container in amd64 machine code: it
// blocks SIGINT, SIGTERM and SIGCHLD and waits for them, reaps children on
// SIGCHLD and exits on the other two. It has no heap, stack use or threads, so
// the memory of an empty pod is that of the runtime and not of this process.
var pauseCode = []byte{
	0xB8, 14, 0, 0, 0, //             0        mov  eax, rt_sigprocmask
	0x31, 0xFF, //                    5        xor  edi, edi (SIG_BLOCK)
	0x48, 0x8D, 0x35, 78, 0, 0, 0, // 7        lea  rsi, [set]
	0x31, 0xD2, //                    14       xor  edx, edx
	0x41, 0xBA, 8, 0, 0, 0, //        16       mov  r10d, 8
	0x0F, 0x05, //                    22       syscall
	0xB8, 0x80, 0, 0, 0, //           24 wait: mov  eax, rt_sigtimedwait
	0x48, 0x8D, 0x3D, 56, 0, 0, 0, // 29       lea  rdi, [set]
	0x31, 0xF6, //                    36       xor  esi, esi
	0x31, 0xD2, //                    38       xor  edx, edx (no time limit)
	0x41, 0xBA, 8, 0, 0, 0, //        40       mov  r10d, 8
	0x0F, 0x05, //                    46       syscall
	0x83, 0xF8, 17, //                48       cmp  eax, SIGCHLD
	0x75, 26, //                      51       jne  other
	0xB8, 61, 0, 0, 0, //             53 reap: mov  eax, wait4
	0x83, 0xCF, 0xFF, //              58       or   edi, -1
	0x31, 0xF6, //                    61       xor  esi, esi
	0xBA, 1, 0, 0, 0, //              63       mov  edx, WNOHANG
	0x45, 0x31, 0xD2, //              68       xor  r10d, r10d
	0x0F, 0x05, //                    71       syscall
	0x85, 0xC0, //                    73       test eax, eax
	0x7F, 0xE8, //                    75       jg   reap
	0xEB, 0xC9, //                    77       jmp  wait
	0x85, 0xC0, //                    79 other: test eax, eax
	0x78, 0xC5, //                    81       js   wait (interrupted)
	0xB8, 60, 0, 0, 0, //             83       mov  eax, exit
	0x31, 0xFF, //                    88       xor  edi, edi
	0x0F, 0x05, //                    90       syscall
	0x02, 0x40, 0x01, 0, 0, 0, 0, 0, // 92 set: SIGINT | SIGTERM | SIGCHLD
}

// pauseELF wraps pauseCode in a static executable with one segment.
func pauseELF() []byte {
	const base, headers = 0x400000, 64 + 56
	size := uint64(headers + len(pauseCode))
	head := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1,
		Entry: base + headers, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1, Shentsize: 64,
	}
	copy(head.Ident[:], []byte{0x7F, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1})
	segment := elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X),
		Vaddr: base, Paddr: base, Filesz: size, Memsz: size, Align: 0x1000,
	}
	var b bytes.Buffer
	for _, part := range []any{head, segment, pauseCode} {
		_ = binary.Write(&b, binary.LittleEndian, part)
	}
	return b.Bytes()
}
