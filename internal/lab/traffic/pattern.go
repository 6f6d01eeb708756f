// SPDX-License-Identifier: Apache-2.0

package traffic

import "encoding/binary"

// The pattern of a stream is a sequence of 64-bit words, each a hash of the
// stream's seed and of its position. The receiver detects duplicate, missing and moved
// bytes.

// word implements SplitMix64.
func word(seed, i uint64) uint64 {
	z := seed + (i+1)*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// Fill writes the bytes of the stream from off on to b.
func Fill(b []byte, seed, off uint64) {
	var w [8]byte
	if k := int(off % 8); k > 0 && len(b) > 0 {
		binary.LittleEndian.PutUint64(w[:], word(seed, off/8))
		n := copy(b, w[k:])
		b, off = b[n:], off+uint64(n)
	}
	i := off / 8
	for ; len(b) >= 8; i++ {
		binary.LittleEndian.PutUint64(b, word(seed, i))
		b = b[8:]
	}
	binary.LittleEndian.PutUint64(w[:], word(seed, i))
	copy(b, w[:])
}

// Check compares b with the bytes of the stream from off on. It returns how many
// differ and the index of the first one, -1 if none does.
func Check(b []byte, seed, off uint64) (wrong, first int) {
	first = -1
	at := 0
	check := func(want byte) {
		if b[at] != want {
			if wrong++; first < 0 {
				first = at
			}
		}
		at++
	}
	var w [8]byte
	for at < len(b) && off%8 != 0 {
		binary.LittleEndian.PutUint64(w[:], word(seed, off/8))
		check(w[off%8])
		off++
	}
	i := off / 8
	for ; len(b)-at >= 8; i++ {
		want := word(seed, i)
		if binary.LittleEndian.Uint64(b[at:]) == want {
			at += 8
			continue
		}
		binary.LittleEndian.PutUint64(w[:], want)
		for _, o := range w {
			check(o)
		}
	}
	binary.LittleEndian.PutUint64(w[:], word(seed, i))
	for k := 0; at < len(b); k++ {
		check(w[k])
	}
	return wrong, first
}
