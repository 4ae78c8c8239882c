#include "textflag.h"

// See clone_amd64.s.

// func Onto(args *Args, stack, entry uintptr, arg unsafe.Pointer) (pid uintptr, e syscall.Errno)
TEXT ·Onto(SB), NOSPLIT, $0-48
	MOVD args+0(FP), R0
	MOVD $88, R1 // the size of Args
	MOVD stack+8(FP), R19
	MOVD entry+16(FP), R20
	MOVD arg+24(FP), R21
	MOVD $435, R8 // clone3
	SVC
	CBZ  R0, child
	CMN  $4095, R0
	BCS  failed
	MOVD R0, pid+32(FP)
	MOVD ZR, e+40(FP)
	RET

failed:
	NEG  R0, R0
	MOVD ZR, pid+32(FP)
	MOVD R0, e+40(FP)
	RET

child:
	MOVD R19, RSP
	MOVD ZR, R29
	MOVD ZR, g
	MOVD R21, R0
	MOVD ZR, R1
	CALL (R20)
	BRK

// func AndEnd(args *Args, stack, entry, leave uintptr, arg unsafe.Pointer)
TEXT ·AndEnd(SB), NOSPLIT, $0-40
	MOVD args+0(FP), R0
	MOVD $88, R1 // the size of Args
	MOVD stack+8(FP), R19
	MOVD entry+16(FP), R20
	MOVD leave+24(FP), R22
	MOVD arg+32(FP), R21
	MOVD $435, R8 // clone3
	SVC
	NEG  R0, R1
	CBZ  R0, child
	CMN  $4095, R0
	BCS  enter
	MOVD ZR, R1
	MOVD R22, R20
	B    enter

child:
	MOVD R19, RSP

enter:
	MOVD ZR, R29
	MOVD ZR, g
	MOVD R21, R0
	CALL (R20)
	BRK
