// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"encoding/binary"
	"math/bits"
)

// A one's complement sum does not depend on the order, width or byte order of its
// words, as long as carries are added back at the low end (RFC 1071). So it is
// computed over little-endian 64-bit words with one add-with-carry each, and swapped
// to network order once at the end.

// checksum returns the Internet checksum's sum over b: folded to 16 bits, in host order,
// not complemented. An odd last byte counts as the high half of a word.
func checksum(b []byte) uint16 {
	return foldNet(sum64(b, 0))
}

// sum accumulates slices of any length.
type sum struct {
	acc uint64
	odd bool // an odd number of bytes so far
}

func (s *sum) add(b []byte) {
	if !s.odd {
		s.acc = sum64(b, s.acc)
	} else {
		// Every byte of b is in the other half of its word.
		s.acc = add64(s.acc, uint64(foldNet(sum64(b, 0))))
	}
	s.odd = s.odd != (len(b)&1 == 1)
}

func (s *sum) value() uint16 { return foldNet(s.acc) }

// sum64 adds b to acc, in one's complement.
func sum64(b []byte, acc uint64) uint64 {
	var c uint64
	for len(b) >= 128 {
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[0:8]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[8:16]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[16:24]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[24:32]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[32:40]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[40:48]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[48:56]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[56:64]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[64:72]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[72:80]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[80:88]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[88:96]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[96:104]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[104:112]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[112:120]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[120:128]), c)
		b = b[128:]
	}
	for len(b) >= 16 {
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[0:8]), c)
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[8:16]), c)
		b = b[16:]
	}
	if len(b) >= 8 {
		acc, c = bits.Add64(acc, binary.LittleEndian.Uint64(b[0:8]), c)
		b = b[8:]
	}
	// Fewer than 8 bytes are left: combine them into one word, zero-padded.
	var last uint64
	shift := 0
	if len(b) >= 4 {
		last = uint64(binary.LittleEndian.Uint32(b[0:4]))
		shift = 32
		b = b[4:]
	}
	if len(b) >= 2 {
		last |= uint64(binary.LittleEndian.Uint16(b[0:2])) << shift
		shift += 16
		b = b[2:]
	}
	if len(b) > 0 {
		last |= uint64(b[0]) << shift
	}
	acc, c = bits.Add64(acc, last, c)
	return add64(acc, c)
}

// add64 returns the one's complement sum of two words.
func add64(a, b uint64) uint64 {
	s, c := bits.Add64(a, b, 0)
	return s + c // cannot carry: s is at most 2^64-2 if c is 1
}

// fold reduces a sum to 16 bits. Only the sum 0 folds to 0.
func fold(v uint64) uint16 {
	v = v>>32 + v&0xffffffff
	v = v>>16 + v&0xffff // at most 2^33, so the high part is at most 17 bits
	v = v>>16 + v&0xffff
	v = v>>16 + v&0xffff
	return uint16(v)
}

// foldNet folds a sum over little-endian words of data in network order.
func foldNet(v uint64) uint16 { return bits.ReverseBytes16(fold(v)) }

// add16 returns the one's complement sum of two folded sums.
func add16(a, b uint16) uint16 {
	s := uint32(a) + uint32(b)
	return uint16(s + s>>16)
}
