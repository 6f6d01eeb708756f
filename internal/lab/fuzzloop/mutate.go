// SPDX-License-Identifier: Apache-2.0

package fuzzloop

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"reflect"
)

// longest is the greatest length in bytes to which mutations make an input grow.
const longest = 4096

// kept bounds the inputs of which pieces are spliced into others.
const kept = 64

// edges are numbers at which code tends to be wrong. Narrower types take their low bits.
var edges = []uint64{
	0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 63, 64, 127, 128, 255, 256, 257, 511, 512,
	4095, 4096, 4097, 32767, 32768, 65535, 65536, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32,
	1<<63 - 1, 1 << 63, 1<<64 - 1, 1<<64 - 2,
}

// mutator changes values.
type mutator struct {
	rng    *rand.Rand
	others [][]byte
}

// learn keeps the bytes of an input, for splices.
func (m *mutator) learn(input []reflect.Value) {
	for _, v := range input {
		if b := bytesOf(v); len(b) > 0 && len(m.others) < kept {
			m.others = append(m.others, b)
		}
	}
}

// bytesOf returns the bytes of a string or of a slice of bytes, otherwise nil.
func bytesOf(v reflect.Value) []byte {
	switch v.Kind() {
	case reflect.Slice:
		return v.Bytes()
	case reflect.String:
		return []byte(v.String())
	}
	return nil
}

// mutate returns a changed value, which is often the same if it is a number.
func (m *mutator) mutate(v reflect.Value) reflect.Value {
	out := reflect.New(v.Type()).Elem()
	switch v.Kind() {
	case reflect.Slice:
		out.SetBytes(m.bytes(v.Bytes()))
	case reflect.String:
		out.SetString(string(m.bytes([]byte(v.String()))))
	case reflect.Bool:
		out.SetBool(v.Bool() != (m.rng.IntN(4) == 0))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		out.SetUint(m.number(v.Uint(), v.Type().Bits()))
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		shift := 64 - v.Type().Bits()
		out.SetInt(int64(m.number(uint64(v.Int()), v.Type().Bits())<<shift) >> shift)
	default:
		panic(fmt.Sprintf("fuzzloop: arguments of type %v are not supported", v.Type()))
	}
	return out
}

// number changes a number of so many bits, or leaves it.
func (m *mutator) number(n uint64, bits int) uint64 {
	switch m.rng.IntN(8) {
	case 0:
		n = m.rng.Uint64()
	case 1:
		n = edges[m.rng.IntN(len(edges))]
	case 2:
		n += m.rng.Uint64N(17) - 8
	case 3:
		n ^= 1 << m.rng.IntN(bits)
	}
	return n & (1<<bits - 1)
}

// bytes returns a copy of b with one to eight changes.
func (m *mutator) bytes(b []byte) []byte {
	out := append(make([]byte, 0, len(b)+64), b...)
	for range 1 + m.rng.IntN(8) {
		out = m.change(out)
	}
	return out
}

// change makes one change.
func (m *mutator) change(b []byte) []byte {
	if len(b) == 0 {
		return m.insert(b, m.piece())
	}
	at := m.rng.IntN(len(b))
	switch m.rng.IntN(10) {
	case 0:
		b[at] ^= 1 << m.rng.IntN(8)
	case 1:
		b[at] = byte(m.rng.Uint32())
	case 2:
		b[at] += byte(m.rng.IntN(17) - 8)
	case 3, 4:
		m.word(b[at:])
	case 5:
		return append(b[:at], b[min(len(b), at+1+m.rng.IntN(16)):]...)
	case 6:
		return m.insert(b, m.piece())
	case 7:
		copy(b[at:], m.piece())
	case 8:
		copy(b[at:], b[m.rng.IntN(len(b)):])
	case 9:
		if m.rng.IntN(4) == 0 {
			return b[:at]
		}
		b[at] = b[m.rng.IntN(len(b))]
	}
	return b
}

// word writes an edge of 2, 4 or 8 bytes, in either order of bytes.
func (m *mutator) word(b []byte) {
	var w [8]byte
	n := 2 << m.rng.IntN(3)
	v := m.number(edges[m.rng.IntN(len(edges))], 64)
	if m.rng.IntN(2) == 0 {
		binary.LittleEndian.PutUint64(w[:], v)
		copy(b, w[:n])
		return
	}
	binary.BigEndian.PutUint64(w[:], v)
	copy(b, w[8-n:])
}

// piece returns a part of a seed, or some random bytes.
func (m *mutator) piece() []byte {
	if len(m.others) > 0 && m.rng.IntN(2) == 0 {
		o := m.others[m.rng.IntN(len(m.others))]
		at := m.rng.IntN(len(o))
		return o[at:min(len(o), at+1+m.rng.IntN(32))]
	}
	var w [16]byte
	binary.LittleEndian.PutUint64(w[:], m.rng.Uint64())
	binary.LittleEndian.PutUint64(w[8:], m.rng.Uint64())
	return w[:1+m.rng.IntN(16)]
}

// insert inserts a piece at a random place.
func (m *mutator) insert(b, piece []byte) []byte {
	if len(b)+len(piece) > longest {
		return b
	}
	at := m.rng.IntN(len(b) + 1)
	b = append(b, piece...)
	copy(b[at+len(piece):], b[at:len(b)-len(piece)])
	copy(b[at:], piece)
	return b
}
