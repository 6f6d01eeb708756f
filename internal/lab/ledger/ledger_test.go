// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestRead: a reader finds what a source made, and each damaged byte is noticed.
func TestRead(t *testing.T) {
	for _, k := range []Kind{Small, Full, Large} {
		for _, partial := range []bool{false, true} {
			f := Flow{Run: 7, Vif: 3, Number: 5, ToGuest: partial}
			s := NewSource(f, k, partial)
			for i := range uint64(40) {
				b := s.Next()
				got, err := Read(nil, b, s.Partial)
				if err != nil {
					t.Fatalf("kind %d, packet %d: %v", k, i, err)
				}
				if diff := cmp.Diff([]Packet{{f, i}}, got); diff != "" {
					t.Fatalf("kind %d (-want +got):\n%s", k, diff)
				}
				for at := 0; at < len(b); at += 1 + len(b)/97 {
					b[at] ^= 0x10
					if got, err := Read(nil, b, s.Partial); err == nil {
						t.Fatalf("kind %d, packet %d: byte %d was changed, and the reader found %+v", k, i, at, got)
					}
					b[at] ^= 0x10
				}
			}
		}
	}
}

// TestMerged: packets of a flow that became one frame are found, and must follow each other.
func TestMerged(t *testing.T) {
	s := NewSource(Flow{Run: 1, Vif: 1}, Full, true)
	merge := func(payloads ...[]byte) []byte {
		b := append([]byte(nil), s.head...)
		for _, p := range payloads {
			b = append(b, p...)
		}
		ip := b[ethLen:]
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		binary.BigEndian.PutUint16(ip[10:], ^fold(sum(ip[:ipLen])))
		binary.BigEndian.PutUint32(ip[ipLen+4:], binary.BigEndian.Uint32(payloads[0][16:]))
		binary.BigEndian.PutUint16(ip[ipLen+16:], fold(pseudo(ip, len(ip)-ipLen)))
		return b
	}
	var payloads [][]byte
	for range 4 {
		payloads = append(payloads, append([]byte(nil), s.Next()[len(s.head):]...))
	}
	got, err := Read(nil, merge(payloads...), true)
	if err != nil || len(got) != 4 || got[3].Seq != 3 {
		t.Errorf("found %+v, %v", got, err)
	}
	if _, err := Read(nil, merge(payloads[0], payloads[2]), true); err == nil {
		t.Error("a gap in the stream was not noticed")
	}
}

// TestForeign: frames of others are told from damaged ones.
func TestForeign(t *testing.T) {
	for _, b := range [][]byte{nil, make([]byte, 60), append([]byte{1, 0, 0x5e}, make([]byte, 60)...)} {
		if _, err := Read(nil, b, false); !errors.Is(err, ErrForeign) {
			t.Errorf("% x: %v", b, err)
		}
	}
}

// TestOrdered: packets may be repeated after a death only, and there may never be a gap.
func TestOrdered(t *testing.T) {
	const death = -1
	for _, tt := range []struct {
		name     string
		arrive   []int
		repeated uint64
		bad      int
	}{
		{"in order", []int{0, 1, 2, 3}, 0, 0},
		{"a gap", []int{0, 2, 3}, 0, 1},
		{"twice without a death", []int{0, 1, 1, 2}, 1, 1},
		{"twice after a death", []int{0, 1, 2, death, 1, 2, 3}, 2, 0},
		{"a death that repeats nothing", []int{0, 1, death, 2, 3}, 0, 0},
		{"twice after one death", []int{0, 1, 2, death, 1, 2, 1, 2, 3}, 4, 1},
		{"after two deaths", []int{0, 1, 2, death, 1, death, 1, 2, 3}, 3, 0},
		{"a gap in what is repeated", []int{0, 1, 2, 3, death, 1, 3, 4}, 2, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var o Ordered
			bad := 0
			for _, n := range tt.arrive {
				if n == death {
					o.Died()
				} else if o.Arrived(uint64(n)) != nil {
					bad++
				}
			}
			if got := o.Rest(); got != tt.repeated || bad != tt.bad {
				t.Errorf("%d repeated, %d bad; want %d, %d", got, bad, tt.repeated, tt.bad)
			}
		})
	}
}

// TestLoose: losses, repetitions and late packets are told apart.
func TestLoose(t *testing.T) {
	for _, tt := range []struct {
		name   string
		arrive []uint64
		want   Tally
	}{
		{"in order", []uint64{0, 1, 2}, Tally{}},
		{"a loss", []uint64{0, 3, 4}, Tally{Lost: 2}},
		{"late", []uint64{0, 2, 1, 3}, Tally{Late: 1}},
		{"repeated", []uint64{0, 1, 0, 1, 2}, Tally{Repeated: 2}},
		{"the first one is lost", []uint64{1, 2}, Tally{Lost: 1}},
		{"far behind", []uint64{0, window - 1, window}, Tally{Lost: window - 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var l Loose
			for _, n := range tt.arrive {
				if err := l.Arrived(n); err != nil {
					t.Error(err)
				}
			}
			if diff := cmp.Diff(tt.want, l.Rest()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	var l Loose
	if l.Arrived(1<<40) == nil {
		t.Error("a number that no sender reached is accepted")
	}
}
