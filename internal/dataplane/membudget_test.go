// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// vifsOf returns n vifs of 8 queues each, which share a new budget.
func vifsOf(n int) (shared *atomic.Int64, vifs []*vifMemory) {
	shared = new(atomic.Int64)
	shared.Store(DefaultShared)
	for range n {
		vifs = append(vifs, &vifMemory{shared: shared, half: DefaultShared / 2, own: 8 * waitBytes})
	}
	return shared, vifs
}

// all takes as much memory as the budget allows.
func (m *vifMemory) all() int64 {
	for m.take(memStep) {
	}
	return m.used.Load()
}

// TestMemoryBesideGreedyVifs: beside any number of vifs that take all they can, one more
// vif gets its guaranteed part and half of the remaining shared part.
func TestMemoryBesideGreedyVifs(t *testing.T) {
	for _, n := range []int{1, 10, 100, 1000} {
		shared, vifs := vifsOf(n + 1)
		honest := vifs[n]
		sum := int64(0)
		for range 3 { // no vif gains by a further attempt
			sum = 0
			for _, v := range vifs[:n] {
				sum += v.all()
				if beyond := v.used.Load() - v.own; beyond > vifBytes {
					t.Fatalf("%d vifs: one has %d bytes beyond its own, at most %d are allowed", n, beyond, vifBytes)
				}
			}
		}
		if limit := int64(n)*8*waitBytes + DefaultShared; sum > limit {
			t.Errorf("%d vifs have %d bytes, at most %d are allowed", n, sum, limit)
		}
		if n == 1 && sum != 8*waitBytes+vifBytes {
			t.Errorf("one vif has %d bytes, want %d", sum, 8*waitBytes+vifBytes)
		}
		left := shared.Load()
		if got, want := honest.all(), honest.own+max(0, min(left/2, vifBytes)-memStep); got < want {
			t.Errorf("beside %d vifs another has %d bytes, want %d", n, got, want)
		}
		for _, v := range vifs {
			v.give(int(v.used.Load()))
		}
		if got := shared.Load(); got != DefaultShared {
			t.Errorf("%d bytes are back, want %d", got, DefaultShared)
		}
	}
}

// TestMemoryAddsUp takes and gives back at random and checks the sum.
func TestMemoryAddsUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		shared, vifs := vifsOf(3)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			v := vifs[rapid.IntRange(0, 2).Draw(t, "vif")]
			n := memStep * rapid.IntRange(1, 100).Draw(t, "steps of memory")
			before := v.used.Load()
			if rapid.Bool().Draw(t, "take") {
				if took := v.take(n); !took && v.used.Load() != before {
					t.Fatal("refused and taken")
				}
			} else {
				v.give(min(n, int(before)))
			}
			sum := int64(0)
			for _, v := range vifs {
				sum += max(0, v.used.Load()-v.own)
			}
			if got := shared.Load() + sum; got != DefaultShared {
				t.Fatalf("%d bytes in all, want %d", got, DefaultShared)
			}
		}
	})
}

// TestMemoryOfPacketsThatWait: a vif whose guest posts no slots stays within its budget,
// packets beyond it are dropped and counted, and all memory is given back when the packets
// have waited for too long.
func TestMemoryOfPacketsThatWait(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		shared := new(atomic.Int64) // others have taken all of it
		b.conn.waiting.shared = shared
		b.settle()
		q := b.queue()
		large := tcp(4, 60000).Bytes()
		for range 16 {
			b.host.sendPlain(large)
		}
		b.settle()
		if got := b.conn.waiting.used.Load(); got == 0 || got > waitBytes {
			t.Errorf("%d bytes are taken, want up to %d", got, waitBytes)
		}
		held := q.waiting()
		if dropped := b.stat(DropRxMemory); held == 0 || dropped > 16-uint64(held) {
			t.Errorf("%d packets wait, %d were dropped", held, dropped)
		}
		b.pass(DefaultDrain + time.Second)
		if q.waiting() != 0 {
			t.Errorf("%d packets still wait", q.waiting())
		}
		b.disconnect()
		if used, left := b.conn.waiting.used.Load(), shared.Load(); used != 0 || left != 0 {
			t.Errorf("%d bytes are still taken, %d are left of nothing", used, left)
		}
	})
}

// TestNoMemoryForAPacketThatWaits: it is dropped with the right reason.
func TestNoMemoryForAPacketThatWaits(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		b.conn.waiting.shared, b.conn.waiting.own = new(atomic.Int64), 0
		b.settle()
		b.host.sendPlain(udp(100, 1))
		b.settle()
		if n := b.stat(DropRxMemory); n != 1 {
			t.Errorf("%d packets dropped for want of memory, want 1", n)
		}
		b.front().post(10)
		b.settle()
		b.host.sendPlain(udp(100, 1))
		b.settle()
		if n := len(b.front().received()); n != 1 {
			t.Errorf("%d packets with slots at hand, want 1", n)
		}
	})
}
