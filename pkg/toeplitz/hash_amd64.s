// SPDX-License-Identifier: Apache-2.0

#include "textflag.h"

// Each 64-bit lane m has one matrix, that of i+k = m, and the bytes of the input
// that it acts on: byte k of the lane is input byte m-k, for the hash's bytes k = 0
// to 3. Indices are modulo 64, so that those before the input name bytes behind
// it, which are zero. The upper half of each lane goes to waste.
#define LANE(m) \
	DATA lanes<>+(8*(m)+0)(SB)/1, $(((m)-0)&63) \
	DATA lanes<>+(8*(m)+1)(SB)/1, $(((m)-1)&63) \
	DATA lanes<>+(8*(m)+2)(SB)/1, $(((m)-2)&63) \
	DATA lanes<>+(8*(m)+3)(SB)/1, $(((m)-3)&63) \
	DATA lanes<>+(8*(m)+4)(SB)/4, $0

LANE(0)
LANE(1)
LANE(2)
LANE(3)
LANE(4)
LANE(5)
LANE(6)
LANE(7)
LANE(8)
LANE(9)
LANE(10)
LANE(11)
LANE(12)
LANE(13)
LANE(14)
LANE(15)
LANE(16)
LANE(17)
LANE(18)
LANE(19)
LANE(20)
LANE(21)
LANE(22)
LANE(23)
LANE(24)
LANE(25)
LANE(26)
LANE(27)
LANE(28)
LANE(29)
LANE(30)
LANE(31)
LANE(32)
LANE(33)
LANE(34)
LANE(35)
LANE(36)
LANE(37)
LANE(38)
LANE(39)
GLOBL lanes<>(SB), RODATA|NOPTR, $320

// func hashMatrices(matrices *[40]uint64, input *byte, n int) uint32
TEXT ·hashMatrices(SB), NOSPLIT, $0-28
	MOVQ matrices+0(FP), DI
	MOVQ input+8(FP), SI
	MOVQ n+16(FP), CX

	// Load n bytes and zeros; bytes that are masked out are not touched.
	MOVQ       $1, AX
	SHLQ       CX, AX
	DECQ       AX
	KMOVQ      AX, K1
	VMOVDQU8.Z (SI), K1, Z0

	VMOVDQU64       lanes<>+0(SB), Z1
	VMOVDQU64       lanes<>+64(SB), Z2
	VPERMB          Z0, Z1, Z1
	VPERMB          Z0, Z2, Z2
	VGF2P8AFFINEQB  $0, (DI), Z1, Z1
	VGF2P8AFFINEQB  $0, 64(DI), Z2, Z2
	VPXORQ          Z1, Z2, Z1
	CMPQ            CX, $13            // reaches lane 15 at most
	JLE             fold

	VMOVDQU64       lanes<>+128(SB), Z3
	VMOVDQU64       lanes<>+192(SB), Z4
	VMOVDQU64       lanes<>+256(SB), Z5
	VPERMB          Z0, Z3, Z3
	VPERMB          Z0, Z4, Z4
	VPERMB          Z0, Z5, Z5
	VGF2P8AFFINEQB  $0, 128(DI), Z3, Z3
	VGF2P8AFFINEQB  $0, 192(DI), Z4, Z4
	VGF2P8AFFINEQB  $0, 256(DI), Z5, Z5
	VPXORQ          Z3, Z1, Z1
	VPTERNLOGQ      $0x96, Z4, Z5, Z1  // XOR of all three

fold:
	VEXTRACTI64X4 $1, Z1, Y2
	VPXOR         Y2, Y1, Y1
	VEXTRACTI128  $1, Y1, X2
	VPXOR         X2, X1, X1
	VPSRLDQ       $8, X1, X2
	VPXOR         X2, X1, X1
	VMOVD         X1, AX
	VZEROUPPER
	BSWAPL        AX                   // byte 0 of the hash is the most significant
	MOVL          AX, ret+24(FP)
	RET
