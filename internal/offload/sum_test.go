// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/internal/lab/packettest"
)

// sumNaive computes the sum of RFC 1071 as the RFC defines it.
func sumNaive(b []byte) uint16 {
	var s uint32
	for i, x := range b {
		if i&1 == 0 {
			s += uint32(x) << 8
		} else {
			s += uint32(x)
		}
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

func TestSumOfEveryLengthAndAlignment(t *testing.T) {
	for _, fill := range [][]byte{packettest.Pattern(400), make([]byte, 400), ones(400)} {
		for start := range 17 {
			for n := range 380 {
				b := fill[start : start+n]
				if got, want := checksum(b), sumNaive(b); got != want {
					t.Fatalf("sum of %d bytes at %d is %#04x, want %#04x", n, start, got, want)
				}
			}
		}
	}
}

func ones(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = 0xff
	}
	return b
}

// TestSumOfLongestPacket: 64 KiB of ones cause the most carries that a packet can.
func TestSumOfLongestPacket(t *testing.T) {
	for _, b := range [][]byte{ones(65535), ones(65536), packettest.Pattern(65535)} {
		if got, want := checksum(b), sumNaive(b); got != want {
			t.Errorf("sum of %d bytes is %#04x, want %#04x", len(b), got, want)
		}
	}
}

func TestSumOfPiecesIsSumOfTheWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 0, 600).Draw(t, "data")
		if got, want := sumPieces(cut(t, b)...), sumNaive(b); got != want {
			t.Fatalf("got %#04x, want %#04x", got, want)
		}
	})
}

func sumPieces(pieces ...[]byte) uint16 {
	var s sum
	for _, p := range pieces {
		s.add(p)
	}
	return s.value()
}

// cut divides b into pieces, empty ones among them.
func cut(t *rapid.T, b []byte) [][]byte {
	var pieces [][]byte
	for len(b) > 0 {
		n := rapid.IntRange(0, len(b)).Draw(t, "piece")
		pieces = append(pieces, b[:n])
		b = b[n:]
		if len(pieces) == 20 {
			pieces = append(pieces, b)
			break
		}
	}
	return pieces
}

func FuzzChecksum(f *testing.F) {
	f.Add([]byte{}, uint(0))
	f.Add([]byte{1}, uint(0))
	f.Add([]byte{0xff, 0xff, 0xff}, uint(2))
	f.Add(ones(131), uint(129))
	f.Add(packettest.Pattern(257), uint(3))
	fuzzloop.Fuzz(f, func(t *testing.T, b []byte, at uint) {
		want := sumNaive(b)
		if got := checksum(b); got != want {
			t.Errorf("sum of %x is %#04x, want %#04x", b, got, want)
		}
		i := int(at % uint(len(b)+1))
		if got := sumPieces(b[:i], nil, b[i:]); got != want {
			t.Errorf("sum of %x and %x is %#04x, want %#04x", b[:i], b[i:], got, want)
		}
	})
}

func BenchmarkSum(b *testing.B) {
	for _, n := range []int{20, 64, 1460, 4096, 65160} {
		data := packettest.Pattern(n)
		for _, f := range []struct {
			name string
			sum  func([]byte) uint16
		}{{"words", checksum}, {"naive", sumNaive}} {
			b.Run(fmt.Sprintf("%s/%d", f.name, n), func(b *testing.B) {
				b.SetBytes(int64(n))
				for b.Loop() {
					f.sum(data)
				}
			})
		}
	}
}
