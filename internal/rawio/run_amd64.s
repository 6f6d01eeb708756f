// SPDX-License-Identifier: Apache-2.0

#include "textflag.h"

// func run(trap, fd uintptr, calls []Call, least, most int) (done int)
//
// The kernel preserves all registers but AX, CX and R11.
TEXT ·run(SB), NOSPLIT, $0-64
	MOVQ trap+0(FP), R8
	MOVQ fd+8(FP), R9
	MOVQ calls_base+16(FP), R10
	MOVQ calls_len+24(FP), R12
	MOVQ least+40(FP), R13
	XORL BX, BX

next:
	MOVQ    R8, AX
	MOVQ    R9, DI
	MOVQ    0(R10), SI
	MOVL    8(R10), DX
	SYSCALL
	MOVL    AX, 12(R10)
	TESTQ   R13, R13
	JZ      made
	CMPQ    AX, R13
	JLT     end
	CMPQ    AX, most+48(FP)
	JGT     last

made:
	ADDQ $16, R10
	INCQ BX
	CMPQ BX, R12
	JLT  next

end:
	MOVQ BX, done+56(FP)
	RET

last:
	INCQ BX
	JMP  end
