// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"testing"
	"unsafe"
)

// TestAhead: the lines that a worker asks for are those that the next turn reads.
func TestAhead(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		f, q := b.front(), b.queue()
		ring := address(f.back)
		for n := range 300 { // around the ring
			lines := q.ahead.at
			next := lines[len(lines)-2]
			if want := ring + 64 + uintptr(n%256)*12; next != want || lines[len(lines)-3] != ring {
				t.Fatalf("after %d packets: ring %#x, next request %#x; want %#x, %#x", n, lines[len(lines)-3], next, ring, want)
			}
			f.put(packet{frame: udp(100, uint16(n))})
			f.push()
			b.settle()
			f.answers()
		}
		if got, want := q.ahead.at[4], uintptr(unsafe.Pointer(&q.journal.page.w[jTx])); got != want {
			t.Errorf("record of the journal %#x, want %#x", got, want)
		}
		if n := testing.AllocsPerRun(10, func() { q.fetchSelf(); q.fetchAhead() }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}
