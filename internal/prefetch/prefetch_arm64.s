// SPDX-License-Identifier: Apache-2.0

#include "textflag.h"

// func Lines(addrs []uintptr)
TEXT ·Lines(SB), NOSPLIT, $0-24
	MOVD addrs_base+0(FP), R0
	MOVD addrs_len+8(FP), R1
	CBZ  R1, end

next:
	MOVD.P 8(R0), R2
	PRFM   (R2), PLDL1KEEP
	SUB    $1, R1
	CBNZ   R1, next

end:
	RET

// func Span(addr uintptr, lines int)
TEXT ·Span(SB), NOSPLIT, $0-16
	MOVD addr+0(FP), R0
	MOVD lines+8(FP), R1
	CBZ  R1, over

line:
	PRFM (R0), PLDL1KEEP
	ADD  $64, R0
	SUB  $1, R1
	CBNZ R1, line

over:
	RET
