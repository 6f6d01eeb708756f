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
	ran     time.Duration
	queued  time.Duration
	changes []level
}

func newUrgencyBed() *urgencyBed {
	b := &urgencyBed{now: time.Unix(1000, 0)}
	b.set = func(l level) { b.changes = append(b.changes, l) }
	b.times = func() (ran, waited time.Duration) { return b.ran, b.queued }
	return b
}

func (b *urgencyBed) clock() time.Time {
	b.reads++
	return b.now
}

// run makes n wake-ups, each after the time apart and with as many slots from and to the
// guest.
func (b *urgencyBed) run(n int, apart time.Duration, tx, rx uint32) {
	for range n {
		b.now = b.now.Add(apart)
		b.ran += apart / 4
		b.woke(true, -1, b.clock)
		b.tx += tx
		b.rx += rx
	}
}

// late does the same with wake-ups that wait for a processor.
func (b *urgencyBed) late(n int, apart, wait time.Duration, tx, rx uint32) {
	for range n {
		b.queued += wait
		b.run(1, apart, tx, rx)
	}
}

// endless makes turns for the time d, without a pause.
func (b *urgencyBed) endless(d time.Duration) {
	for end := b.now.Add(d); b.now.Before(end); {
		b.now = b.now.Add(100 * time.Microsecond)
		b.ran += 100 * time.Microsecond
		b.tx += 64
		b.woke(false, 0, b.clock)
	}
}

// idle waits until nothing has happened for idleWait.
func (b *urgencyBed) idle() {
	b.now = b.now.Add(idleWait)
	b.woke(false, b.patience(-1), b.clock)
}

func TestUrgency(t *testing.T) {
	const us, ms = time.Microsecond, time.Millisecond
	const normal, eager, batch = levelNormal, levelEager, levelBatch
	for _, tt := range []struct {
		name string
		do   func(b *urgencyBed)
		want []level // the changes
	}{
		{"few slots", func(b *urgencyBed) { b.run(1000, ms, 4, 2) }, nil},
		{"many slots from the guest", func(b *urgencyBed) { b.run(1000, 200*us, 20, 2) }, []level{eager}},
		{"many slots to the guest", func(b *urgencyBed) { b.run(1000, 200*us, 2, 20) }, []level{batch}},
		{"both", func(b *urgencyBed) { b.run(1000, 200*us, 15, 5) }, []level{batch}},
		{"the direction changes", func(b *urgencyBed) {
			b.run(100, 200*us, 20, 1)
			b.run(100, 200*us, 1, 20)
			b.run(100, 200*us, 20, 1)
		}, []level{eager, batch, eager}},
		{"many slots without a pause", func(b *urgencyBed) { b.endless(100 * ms) }, []level{eager}},
		{"for too long", func(b *urgencyBed) {
			b.endless(1800 * ms) // for 0.1 s each, after 0.1, 0.2, 0.4 s
		}, []level{eager, normal, eager, normal, eager, normal, eager, normal}},
		{"a moment's pause each 50 ms", func(b *urgencyBed) {
			for range 36 {
				b.endless(50 * ms)
				b.run(1, 100*us, 64, 0)
			}
		}, []level{eager, normal, eager, normal, eager, normal, eager, normal}},
		{"busy for 60 of each 100 ms", func(b *urgencyBed) {
			for range 40 {
				b.endless(60 * ms)
				b.now = b.now.Add(40 * ms)
				b.woke(true, -1, b.clock)
			}
		}, []level{eager}},
		{"busy for 80 of each 100 ms", func(b *urgencyBed) {
			for range 4 {
				b.endless(80 * ms)
				b.now = b.now.Add(20 * ms)
				b.woke(true, -1, b.clock)
			}
		}, []level{eager, normal, eager, normal}},
		{"others take half of the processor, and it never sleeps", func(b *urgencyBed) {
			for range 4 {
				b.endless(50 * ms)
				b.now = b.now.Add(50 * ms)
				b.queued += 50 * ms
				b.woke(true, -1, b.clock)
			}
		}, []level{eager, normal, eager, normal}},
		{"the rate between the bounds changes nothing", func(b *urgencyBed) {
			b.run(100, ms, 7, 0)      // 7,000
			b.run(100, 500*us, 10, 0) // 20,000
			b.run(100, ms, 5, 0)      // 5,000
		}, []level{eager}},
		{"the rate falls", func(b *urgencyBed) {
			b.run(100, 200*us, 20, 0)
			b.run(100, 5*ms, 10, 0)
		}, []level{eager, normal}},
		{"idle", func(b *urgencyBed) {
			b.run(100, 200*us, 20, 0)
			b.idle()
		}, []level{eager, normal}},
		{"a deadline without events is no idleness", func(b *urgencyBed) {
			b.run(100, 200*us, 20, 0)
			b.woke(false, b.patience(3), b.clock)
		}, []level{eager}},
		{"a burst after a pause", func(b *urgencyBed) {
			b.run(100, 200*us, 20, 0)
			b.idle()
			b.now = b.now.Add(time.Second)
			b.run(100, 200*us, 20, 0)
		}, []level{eager, normal, eager}},
		{"wake-ups with a slot each are not worth it", func(b *urgencyBed) {
			b.run(1000, 50*us, 1, 0) // 50 ms
		}, []level{eager, normal}},
		{"attempts become rare", func(b *urgencyBed) {
			b.run(40_000, 50*us, 0, 1) // 2 s: after 0.1, 0.3, 0.7, 1.5 s
		}, []level{batch, normal, batch, normal, batch, normal, batch, normal, batch, normal}},
		{"worth it at last", func(b *urgencyBed) {
			b.run(1000, 50*us, 0, 1)
			b.run(1000, 200*us, 0, 20)
			b.idle()
			b.run(1000, 50*us, 0, 1)
		}, []level{batch, normal, batch, normal, batch, normal}},
		{"a program computes", func(b *urgencyBed) {
			b.late(1000, 4*ms, 2*ms, 0, 90) // 4 s: after 0.1, 0.3, 0.7, 1.5, 3.1 s
		}, []level{batch, normal, batch, normal, batch, normal, batch, normal, batch, normal, batch, normal}},
		{"a sender sends bursts", func(b *urgencyBed) {
			b.late(1000, 2*ms, ms, 0, 40)
		}, []level{batch}},
		{"a sender sends long bursts", func(b *urgencyBed) {
			b.late(1000, 4*ms, 2*ms, 0, 128)
		}, []level{batch}},
		{"waits without wake-ups do not count", func(b *urgencyBed) {
			b.run(100, 200*us, 0, 20)
			for i := range 100 {
				b.now = b.now.Add(20 * ms)
				b.wakes, b.rx = uint32(i%2*8), raisedSlots
				if b.wakes == 0 {
					b.queued += 17 * ms
				}
				b.look(b.now)
			}
		}, []level{batch}},
		{"an eager worker may wait", func(b *urgencyBed) {
			b.late(1000, 4*ms, 2*ms, 200, 0)
		}, []level{eager}},
		{"waits before do not count", func(b *urgencyBed) {
			b.late(1000, 4*ms, 2*ms, 200, 0)
			b.late(1000, 4*ms, 100*us, 0, 200)
		}, []level{eager, batch}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newUrgencyBed()
			tt.do(b)
			if diff := cmp.Diff(tt.want, b.changes); diff != "" {
				t.Errorf("changes (-want +got):\n%s", diff)
			}
			want := levelNormal
			if n := len(b.changes); n > 0 {
				want = b.changes[n-1]
			}
			if got := b.urgency.now(); got != want {
				t.Errorf("level %d, want %d", got, want)
			}
		})
	}
}

// TestUrgencyBar: no attempt is later than lastBar after the one before.
func TestUrgencyBar(t *testing.T) {
	b := newUrgencyBed()
	for range 12 {
		b.run(100, 50*time.Microsecond, 0, 1)
		b.now = b.now.Add(lastBar)
	}
	if want := 24; len(b.changes) != want || b.bar != lastBar {
		t.Errorf("%d changes, barred for %v; want %d, %v", len(b.changes), b.bar, want, lastBar)
	}
}

// TestUrgencyLeavesOthersTheirShare: whatever pattern a guest chooses, a thread that is raised
// uses three quarters of a processor at most, over a second, apart from the time in which that is
// found out.
func TestUrgencyLeavesOthersTheirShare(t *testing.T) {
	const ms = time.Millisecond
	for _, busy := range []time.Duration{20 * ms, 50 * ms, 70 * ms, 76 * ms, 90 * ms, 99 * ms} {
		for _, cycle := range []time.Duration{100 * ms, 130 * ms} {
			b := newUrgencyBed()
			var raised, used time.Duration
			note := func(before, ran time.Duration, l level) {
				if l != levelNormal {
					raised += before
					used += ran
				}
			}
			for end := b.now.Add(20 * time.Second); b.now.Before(end); {
				for range busy / (100 * time.Microsecond) {
					l := b.urgency.now()
					b.endless(100 * time.Microsecond)
					note(100*time.Microsecond, 100*time.Microsecond, l)
				}
				l := b.urgency.now()
				b.now = b.now.Add(cycle - busy)
				b.woke(true, -1, b.clock)
				note(cycle-busy, 0, l)
			}
			if hogs := 4*used > 3*raised; hogs && raised > 2*time.Second {
				t.Errorf("busy for %v in %v: raised for %v, in which it used %v", busy, cycle, raised, used)
			}
		}
	}
}

// TestUrgencyClock: the clock is read once for many wake-ups and slots.
func TestUrgencyClock(t *testing.T) {
	b := newUrgencyBed()
	b.run(10*normalWakes, time.Millisecond, 1, 0)
	if b.reads != 10 {
		t.Errorf("normal: %d reads of the clock", b.reads)
	}
	b.run(10*raisedWakes, 100*time.Microsecond, 0, 20)
	b.reads = 0
	b.run(10*raisedWakes, 100*time.Microsecond, 0, 20)
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
		u.level.Store(uint32(levelEager))
		if raised := u.patience(tt.timeout); normal != tt.normal || raised != tt.raised {
			t.Errorf("%d: %d, raised %d; want %d, %d", tt.timeout, normal, raised, tt.normal, tt.raised)
		}
	}
}

// TestUrgencyOff: without rights nothing is counted, and no wait is cut short.
func TestUrgencyOff(t *testing.T) {
	b := newUrgencyBed()
	b.set = nil
	b.run(10_000, 100*time.Microsecond, 100, 100)
	if len(b.changes) != 0 || b.reads != 0 || b.patience(-1) != -1 {
		t.Errorf("%d changes, %d reads of the clock, waits for %d", len(b.changes), b.reads, b.patience(-1))
	}
}
