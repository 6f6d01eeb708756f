// SPDX-License-Identifier: Apache-2.0

package toeplitz

import "encoding/binary"

// table holds the hash of every value of every byte of the input, for processors
// without the instructions. The hash of an input is the XOR of these.
type table [MaxKey][256]uint32

func newTable(key *[MaxKey]byte) *table {
	var padded [MaxKey + 8]byte
	copy(padded[:], key[:])
	t := new(table)
	for i := range t {
		from := binary.BigEndian.Uint64(padded[i:])
		of := &t[i]
		for bit := range 8 {
			of[0x80>>bit] = uint32(from << bit >> 32) // the top bit of a byte comes first
		}
		for v := 3; v < 256; v++ {
			of[v] = of[v&(v-1)] ^ of[v&-v]
		}
	}
	return t
}

func (t *table) hash(input []byte) (sum uint32) {
	if len(input) > MaxKey {
		input = input[:MaxKey]
	}
	for i, b := range input {
		sum ^= t[i][b]
	}
	return sum
}
