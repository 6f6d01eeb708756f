// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// urgencyBed drives an urgency with a clock of its own.
type urgencyBed struct {
	urgency
	now     time.Time
	reads   int // of the clock
	changes []bool
}

func newUrgencyBed() *urgencyBed {
	b := &urgencyBed{now: time.Unix(1000, 0)}
	b.set = func(raised bool) { b.changes = append(b.changes, raised) }
	return b
}

func (b *urgencyBed) clock() time.Time {
	b.reads++
	return b.now
}

// run makes n wake-ups, each after the time apart and with slots slots.
func (b *urgencyBed) run(n int, apart time.Duration, slots uint32) {
	for range n {
		b.now = b.now.Add(apart)
		b.woke(true, -1, b.clock)
		b.slots += slots
	}
}

// idle waits until nothing has happened for idleWait.
func (b *urgencyBed) idle() {
	b.now = b.now.Add(idleWait)
	b.woke(false, b.patience(-1), b.clock)
}

func TestUrgency(t *testing.T) {
	const us = time.Microsecond
	for _, tt := range []struct {
		name string
		do   func(b *urgencyBed)
		want []bool // the changes
	}{
		{"few slots", func(b *urgencyBed) { b.run(1000, time.Millisecond, 4) }, nil},
		{"many slots", func(b *urgencyBed) { b.run(1000, 200*us, 20) }, []bool{true}},
		{"many slots within endless turns", func(b *urgencyBed) {
			for range 100 {
				b.now = b.now.Add(100 * us)
				b.slots += 64
				b.woke(false, 0, b.clock)
			}
		}, []bool{true}},
		{"the rate between the bounds changes nothing", func(b *urgencyBed) {
			b.run(100, time.Millisecond, 7) // 7,000
			b.run(100, 500*us, 10)          // 20,000
			b.run(100, time.Millisecond, 5) // 5,000
		}, []bool{true}},
		{"the rate falls", func(b *urgencyBed) {
			b.run(100, 200*us, 20)
			b.run(100, 5*time.Millisecond, 10)
		}, []bool{true, false}},
		{"idle", func(b *urgencyBed) {
			b.run(100, 200*us, 20)
			b.idle()
		}, []bool{true, false}},
		{"a deadline without events is no idleness", func(b *urgencyBed) {
			b.run(100, 200*us, 20)
			b.woke(false, b.patience(3), b.clock)
		}, []bool{true}},
		{"a burst after a pause", func(b *urgencyBed) {
			b.run(100, 200*us, 20)
			b.idle()
			b.now = b.now.Add(time.Second)
			b.run(100, 200*us, 20)
		}, []bool{true, false, true}},
		{"wake-ups with a slot each are not worth it", func(b *urgencyBed) {
			b.run(1000, 50*us, 1) // 50 ms
		}, []bool{true, false}},
		{"attempts become rare", func(b *urgencyBed) {
			b.run(40_000, 50*us, 1) // 2 s: after 0.1, 0.3, 0.7, 1.5 s
		}, []bool{true, false, true, false, true, false, true, false, true, false}},
		{"worth it at last", func(b *urgencyBed) {
			b.run(1000, 50*us, 1)
			b.run(1000, 200*us, 20)
			b.idle()
			b.run(1000, 50*us, 1)
		}, []bool{true, false, true, false, true, false}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newUrgencyBed()
			tt.do(b)
			if diff := cmp.Diff(tt.want, b.changes); diff != "" {
				t.Errorf("changes (-want +got):\n%s", diff)
			}
			if want := len(b.changes)%2 == 1; b.raised.Load() != want {
				t.Errorf("raised %t", !want)
			}
		})
	}
}

// TestUrgencyBar: no attempt is later than lastBar after the one before.
func TestUrgencyBar(t *testing.T) {
	b := newUrgencyBed()
	for range 12 {
		b.run(100, 50*time.Microsecond, 1)
		b.now = b.now.Add(lastBar)
	}
	if want := 24; len(b.changes) != want || b.bar != lastBar {
		t.Errorf("%d changes, barred for %v; want %d, %v", len(b.changes), b.bar, want, lastBar)
	}
}

// TestUrgencyClock: the clock is read once for many wake-ups and slots.
func TestUrgencyClock(t *testing.T) {
	b := newUrgencyBed()
	b.run(10*normalWakes, time.Millisecond, 1)
	if b.reads != 10 {
		t.Errorf("normal: %d reads of the clock", b.reads)
	}
	b.run(10*raisedWakes, 100*time.Microsecond, 20)
	b.reads = 0
	b.run(10*raisedWakes, 100*time.Microsecond, 20)
	if b.reads != 10 {
		t.Errorf("raised: %d reads of the clock", b.reads)
	}
}

func TestUrgencyPatience(t *testing.T) {
	for _, tt := range []struct {
		timeout, normal, raised int
	}{
		{-1, -1, mostWait},
		{0, 0, 0},
		{3, 3, 3},
		{mostWait, mostWait, mostWait},
		{1000, 1000, mostWait},
	} {
		var u urgency
		normal := u.patience(tt.timeout)
		u.raised.Store(true)
		if raised := u.patience(tt.timeout); normal != tt.normal || raised != tt.raised {
			t.Errorf("%d: %d, raised %d; want %d, %d", tt.timeout, normal, raised, tt.normal, tt.raised)
		}
	}
}

// TestUrgencyOff: without rights nothing is counted, and no wait is cut short.
func TestUrgencyOff(t *testing.T) {
	b := newUrgencyBed()
	b.set = nil
	b.run(10_000, 100*time.Microsecond, 100)
	if len(b.changes) != 0 || b.reads != 0 || b.patience(-1) != -1 {
		t.Errorf("%d changes, %d reads of the clock, waits for %d", len(b.changes), b.reads, b.patience(-1))
	}
}
