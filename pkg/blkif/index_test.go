// SPDX-License-Identifier: Apache-2.0

package blkif

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// near draws indices where things go wrong: around 0, around half and around
// the wrap, and anywhere.
func near() *rapid.Generator[Index] {
	return rapid.Custom(func(t *rapid.T) Index {
		base := rapid.SampledFrom([]uint32{0, 1 << 31, math.MaxUint32, rapid.Uint32().Draw(t, "base")}).Draw(t, "around")
		return Index(base + uint32(rapid.Int32Range(-600, 600).Draw(t, "off")))
	})
}

// TestCrossedIsMembership compares the one subtraction of ring.h with what it
// means: event is one of old+1 ... now.
func TestCrossedIsMembership(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		old := near().Draw(t, "old")
		pushed := rapid.Uint32Range(0, 512).Draw(t, "pushed")
		event := old.Add(uint32(rapid.Int32Range(-600, 600).Draw(t, "event")))
		want := false
		for k := uint32(1); k <= pushed; k++ {
			want = want || old.Add(k) == event
		}
		if got := crossed(event, old, old.Add(pushed)); got != want {
			t.Fatalf("crossed(event %d, old %d, now %d) = %v, want %v", event, old, old.Add(pushed), got, want)
		}
	})
}

// TestSlotsGoOnAcrossTheWrap: a ring's size divides 2^32, so index 0 follows index 2^32-1
// in the ring too.
func TestSlotsGoOnAcrossTheWrap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		i, n := near().Draw(t, "i"), rapid.Uint32().Draw(t, "n")
		if got := i.Add(n).Sub(i); got != n {
			t.Fatalf("(%d + %d) - %d = %d", i, n, i, got)
		}
		for order := range MaxOrder + 1 {
			size := Index(RingSize(order))
			if got, want := i.Add(1)%size, (i%size+1)%size; got != want {
				t.Fatalf("slot after %d of %d is %d, want %d", i, size, got, want)
			}
		}
	})
}
