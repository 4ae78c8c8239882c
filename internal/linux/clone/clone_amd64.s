#include "textflag.h"

// A child gets a stack of its own, and nothing of its caller's frames, nor thread-local
// memory, need be mapped there. Hence entry is called directly, its arguments in registers
// as in all Go code (ABIInternal): a wrapper would load the goroutine from thread-local memory.

// func Onto(args *Args, stack, entry uintptr, arg unsafe.Pointer) (pid uintptr, e syscall.Errno)
TEXT ·Onto(SB), NOSPLIT, $0-48
	MOVQ args+0(FP), DI
	MOVQ $88, SI // the size of Args
	MOVQ stack+8(FP), R12
	MOVQ entry+16(FP), R13
	MOVQ arg+24(FP), R15
	MOVL $435, AX // clone3
	SYSCALL
	TESTQ AX, AX
	JEQ   child
	CMPQ  AX, $0xfffffffffffff001
	JCC   failed
	MOVQ  AX, pid+32(FP)
	MOVQ  $0, e+40(FP)
	RET

failed:
	NEGQ AX
	MOVQ $0, pid+32(FP)
	MOVQ AX, e+40(FP)
	RET

child:
	MOVQ  R12, SP
	XORL  BP, BP
	XORL  R14, R14
	XORPS X15, X15
	MOVQ  R15, AX
	XORL  BX, BX
	CALL  R13
	INT   $3

// func AndEnd(args *Args, stack, entry, leave uintptr, arg unsafe.Pointer)
TEXT ·AndEnd(SB), NOSPLIT, $0-40
	MOVQ args+0(FP), DI
	MOVQ $88, SI // the size of Args
	MOVQ stack+8(FP), R12
	MOVQ entry+16(FP), R13
	MOVQ arg+32(FP), R15
	MOVL $435, AX // clone3
	SYSCALL
	MOVQ  AX, BX
	NEGQ  BX
	TESTQ AX, AX
	JEQ   child
	CMPQ  AX, $0xfffffffffffff001
	JCC   enter
	XORL  BX, BX
	MOVQ  leave+24(FP), R13
	JMP   enter

child:
	MOVQ R12, SP

enter:
	XORL  BP, BP
	XORL  R14, R14
	XORPS X15, X15
	MOVQ  R15, AX
	CALL  R13
	INT   $3
