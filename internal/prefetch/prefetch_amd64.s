// SPDX-License-Identifier: Apache-2.0

#include "textflag.h"

// func Lines(addrs []uintptr)
TEXT ·Lines(SB), NOSPLIT, $0-24
	MOVQ addrs_base+0(FP), AX
	MOVQ addrs_len+8(FP), CX
	TESTQ CX, CX
	JZ end

next:
	MOVQ (AX), DX
	PREFETCHT0 (DX)
	ADDQ $8, AX
	DECQ CX
	JNZ next

end:
	RET

// func Span(addr uintptr, lines int)
TEXT ·Span(SB), NOSPLIT, $0-16
	MOVQ addr+0(FP), AX
	MOVQ lines+8(FP), CX
	TESTQ CX, CX
	JZ over

line:
	PREFETCHT0 (AX)
	ADDQ $64, AX
	DECQ CX
	JNZ line

over:
	RET
