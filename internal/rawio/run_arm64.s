// SPDX-License-Identifier: Apache-2.0

#include "textflag.h"

// func run(trap, fd uintptr, calls []Call, least, most int) (done int)
//
// The kernel preserves all registers but R0.
TEXT ·run(SB), NOSPLIT, $0-64
	MOVD trap+0(FP), R8
	MOVD fd+8(FP), R9
	MOVD calls_base+16(FP), R10
	MOVD calls_len+24(FP), R11
	MOVD least+40(FP), R12
	MOVD most+48(FP), R14
	MOVD $0, R13

next:
	MOVD  R9, R0
	MOVD  0(R10), R1
	MOVWU 8(R10), R2
	SVC
	MOVW  R0, 12(R10)
	CBZ   R12, made
	CMP   R12, R0
	BLT   end
	CMP   R14, R0
	BGT   last

made:
	ADD $16, R10
	ADD $1, R13
	CMP R11, R13
	BLT next

end:
	MOVD R13, done+56(FP)
	RET

last:
	ADD $1, R13
	B   end
