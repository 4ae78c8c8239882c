package podinit

import "encoding/binary"

// The program, in C:
//
//	prctl(PR_SET_DUMPABLE, 0);
//	rt_sigprocmask(SIG_BLOCK, all, 0, 8);
//	for (;;) {
//		rt_sigtimedwait({SIGCHLD}, 0, 0, 8);
//		while (wait4(-1, 0, WNOHANG, 0) > 0);
//	}

// signalSets are the two sets that the code refers to.
var signalSets = []byte{
	0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, // all
	0, 0, 1, 0, 0, 0, 0, 0, // SIGCHLD, number 17
}

func amd64Code() []byte {
	return append([]byte{
		0xB8, 157, 0, 0, 0, //            0        mov  eax, prctl
		0xBF, 4, 0, 0, 0, //              5        mov  edi, PR_SET_DUMPABLE
		0x31, 0xF6, //                    10       xor  esi, esi
		0x0F, 0x05, //                    12       syscall
		0xB8, 14, 0, 0, 0, //             14       mov  eax, rt_sigprocmask
		0x31, 0xFF, //                    19       xor  edi, edi (SIG_BLOCK)
		0x48, 0x8D, 0x35, 67, 0, 0, 0, // 21       lea  rsi, [all]
		0x31, 0xD2, //                    28       xor  edx, edx
		0x41, 0xBA, 8, 0, 0, 0, //        30       mov  r10d, 8
		0x0F, 0x05, //                    36       syscall
		0xB8, 0x80, 0, 0, 0, //           38 wait: mov  eax, rt_sigtimedwait
		0x48, 0x8D, 0x3D, 53, 0, 0, 0, // 43       lea  rdi, [child]
		0x31, 0xF6, //                    50       xor  esi, esi
		0x31, 0xD2, //                    52       xor  edx, edx (no time limit)
		0x41, 0xBA, 8, 0, 0, 0, //        54       mov  r10d, 8
		0x0F, 0x05, //                    60       syscall
		0xB8, 61, 0, 0, 0, //             62 reap: mov  eax, wait4
		0x83, 0xCF, 0xFF, //              67       or   edi, -1
		0x31, 0xF6, //                    70       xor  esi, esi
		0xBA, 1, 0, 0, 0, //              72       mov  edx, WNOHANG
		0x45, 0x31, 0xD2, //              77       xor  r10d, r10d
		0x0F, 0x05, //                    80       syscall
		0x85, 0xC0, //                    82       test eax, eax
		0x7F, 0xE8, //                    84       jg   reap
		0xEB, 0xCE, //                    86       jmp  wait
		0x66, 0x90, 0x66, 0x90, 0x66, 0x90, 0x90, // 88 padding
	}, signalSets...) // 95
}

// arm64Code puts the instruction words together; registers are named by number.
func arm64Code() []byte {
	const (
		svc    = 0xD4000001
		sets   = 26 * 4 // where the code ends
		waitAt = 10
		reapAt = 16
	)
	mov := func(r, v uint32) uint32 { return 0xD2800000 | v<<5 | r }
	adr := func(index, r, to uint32) uint32 {
		off := to - index*4
		return 0x10000000 | off&3<<29 | off>>2<<5 | r
	}
	words := []uint32{
		mov(0, 4), mov(1, 0), mov(8, 167), svc, // 0: prctl
		mov(0, 0), adr(5, 1, sets), mov(2, 0), mov(3, 8), mov(8, 135), svc, // 4: rt_sigprocmask
		adr(10, 0, sets+8), mov(1, 0), mov(2, 0), mov(3, 8), mov(8, 137), svc, // 10: rt_sigtimedwait
		0x92800000, mov(1, 0), mov(2, 1), mov(3, 0), mov(8, 260), svc, // 16: wait4(-1)
		0xF100001F, // 22: cmp x0, 0
		0x5400000C | uint32(0x7ffff&(reapAt-23))<<5, // 23: b.gt reap
		0x14000000 | uint32(0x3ffffff&(waitAt-24)),  // 24: b wait
		0xD503201F, // 25: nop, for the alignment of the sets
	}
	var b []byte
	for _, w := range words {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return append(b, signalSets...)
}
