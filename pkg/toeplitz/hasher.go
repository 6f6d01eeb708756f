// SPDX-License-Identifier: Apache-2.0

package toeplitz

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// MaxKey is the longest key in bytes: 36 bytes of the longest input, and the
// window of 4 bytes that starts at each of its bits.
const MaxKey = 40

// ErrKeySize is returned for a key longer than MaxKey.
var ErrKeySize = errors.New("hash key is longer than 40 bytes")

// Hasher hashes with one key. It does not change and may be shared.
type Hasher struct {
	key      [MaxKey]byte
	matrices [MaxKey]uint64
	table    *table // nil where there is assembly for matrices
}

// New prepares a key. Missing bytes are zero, so that with an empty key every hash
// is 0.
func New(key []byte) (*Hasher, error) { return newHasher(key, haveAssembly) }

func newHasher(key []byte, assembly bool) (*Hasher, error) {
	if len(key) > MaxKey {
		return nil, fmt.Errorf("%w: %d", ErrKeySize, len(key))
	}
	h := new(Hasher)
	copy(h.key[:], key)
	if assembly {
		h.setMatrices()
	} else {
		h.table = newTable(&h.key)
	}
	return h, nil
}

// Portable returns a Hasher of the same key that uses no assembly, as on machines
// without it.
func (h *Hasher) Portable() *Hasher { return &Hasher{key: h.key, table: newTable(&h.key)} }

// Key returns the key, extended to its full length with zeros.
func (h *Hasher) Key() [MaxKey]byte { return h.key }

// Hash returns the XOR, over all set bits of input, first bit first, of the 32 bits of
// the key that start at that bit. The key goes on with zeros, so that input beyond
// its length adds nothing.
func (h *Hasher) Hash(input []byte) uint32 {
	if len(input) > MaxKey {
		input = input[:MaxKey]
	}
	if h.table != nil {
		return h.table.hash(input)
	}
	if len(input) == 0 {
		return 0
	}
	return hashMatrices(&h.matrices, &input[0], len(input))
}

// ByteTable returns the hash of every value of every single byte of an input. The hash
// of an input is the XOR of the hashes of its bytes. It is for code that cannot call
// this package, such as the kernel.
func (h *Hasher) ByteTable() *[MaxInput][256]uint32 {
	t := h.table
	if t == nil {
		t = newTable(&h.key)
	}
	var out [MaxInput][256]uint32
	copy(out[:], t[:])
	return &out
}

// setMatrices prepares the hash for hardware that multiplies vectors of 8 bits by
// 8x8 matrices of bits (GFNI). Byte i of the input changes byte k of the hash as
// one such matrix, made of key bits 8(i+k) to 8(i+k)+14: row t, for the hash's bit
// t, is the 8 bits of key from 8(i+k)+t on. So there is one matrix for each i+k.
func (h *Hasher) setMatrices() {
	for m := range h.matrices {
		pair := uint16(h.key[m]) << 8
		if m+1 < MaxKey {
			pair |= uint16(h.key[m+1])
		}
		var rows [8]byte
		for t := range rows {
			rows[t] = byte(pair >> (8 - t))
		}
		h.matrices[m] = binary.LittleEndian.Uint64(rows[:])
	}
}
