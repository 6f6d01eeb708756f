// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/pkg/netif"
)

// TestRate makes a guest send as much as it may over one and over two queues, and
// measures the rate.
func TestRate(t *testing.T) {
	tests := []struct {
		name     string
		bytes    uint64
		interval time.Duration
		payload  int
	}{
		{"100 Mb/s in steps of 50 ms, as xl writes it", 625000, 50 * time.Millisecond, 1400},
		{"10 MB/s at once, large packets", 10_000_000, time.Second, 60000},
		{"100 MB/s, small packets", 100_000, time.Millisecond, 30},
		{"1 Mb/s", 6250, 50 * time.Millisecond, 1400},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inModes(t, allModes[:1], func(t *testing.T, m mode) {
				for _, queues := range []int{1, 2} {
					cfg := full
					cfg.Limiter = new(Limiter)
					cfg.Limiter.Set(tt.bytes, tt.interval)
					b := newBed(t, m, setup{cfg: cfg, queues: queues})
					start := b.now
					frame := udp(tt.payload, 1)
					fill := func() {
						for _, f := range b.fronts {
							f.answers()
							for f.tx.Free() >= 17 {
								f.put(packet{frame: frame})
							}
							f.push()
						}
					}
					sent := func() (n uint64) {
						for i := range queues {
							n += b.conn.Stats(i).Load(TxBytes)
						}
						return n
					}
					var first [2]uint64 // bytes of the burst, which are not shared evenly
					over := time.Second
					if tt.bytes == 100_000 {
						over = 50 * time.Millisecond
					}
					for b.now.Before(start.Add(over)) {
						// Until the queues take no more.
						for before := ^uint64(0); sent() != before; {
							before = sent()
							fill()
							b.settle()
						}
						b.host.drain()
						if b.now.Equal(start) {
							for i := range queues {
								first[i] = b.conn.Stats(i).Load(TxBytes)
							}
						}
						b.pass(time.Millisecond)
					}
					// The bucket is full to begin with.
					rate := float64(tt.bytes) / tt.interval.Seconds() * over.Seconds()
					want := rate + math.Max(float64(tt.bytes), minBurst)
					got := float64(sent())
					if math.Abs(got-want) > 0.02*rate+float64(len(frame)) {
						t.Errorf("%d queues: %.0f bytes in %v, want %.0f", queues, got, over, want)
					}
					for i := range queues {
						if n := b.conn.Stats(i).Load(RateWaits); n == 0 {
							t.Errorf("%d queues: queue %d never waited", queues, i)
						}
						share := float64(b.conn.Stats(i).Load(TxBytes)-first[i]) / rate
						if queues == 2 && math.Abs(share-0.5) > 0.05 {
							t.Errorf("queue %d got %.2f of the rate", i, share)
						}
					}
					b.disconnect()
				}
			})
		})
	}
}

// TestRateDoesNotTouchTheOtherWay: packets to the guest pass while packets from it wait
// for credit, and these are sent without an event when there is credit.
func TestRateDoesNotTouchTheOtherWay(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		cfg := full
		cfg.Limiter = new(Limiter)
		cfg.Limiter.Set(1000, time.Second)
		b := newBed(t, m, setup{cfg: cfg})
		f := b.front()
		f.post(256)
		b.settle()
		var want []answer
		for range 3 {
			want = append(want, f.put(packet{frame: udp(60000, 1)})...)
		}
		f.push()
		b.settle()
		if diff := cmp.Diff(want[:2*15], f.answers()); diff != "" {
			t.Errorf("answers at first (-want +got):\n%s", diff)
		}
		if !b.conn.queues[0].rate.until.After(b.now) {
			t.Fatal("the queue does not wait")
		}
		b.host.sendPlain(udp(10, 1), udp(10, 2))
		b.settle()
		if n := len(f.received()); n != 2 {
			t.Errorf("%d packets delivered meanwhile, want 2", n)
		}
		rounds := b.settle()
		if rounds != 0 {
			t.Errorf("%d rounds without work", rounds)
		}
		// 120084 bytes of a burst of 131072 are gone; the next packet needs
		// 60042, so 49 s and a bit have to pass.
		b.pass(49 * time.Second)
		if got := f.answers(); got != nil {
			t.Errorf("too early: %v", got)
		}
		b.pass(time.Second)
		if diff := cmp.Diff(want[2*15:], f.answers()); diff != "" {
			t.Errorf("answers at last (-want +got):\n%s", diff)
		}
		if got := b.stat(RateWaits); got != 1 {
			t.Errorf("waited %d times, want 1", got)
		}
	})
}

// TestRateIsCharged: each packet is charged once, with its whole size. Packets without
// data are not charged.
func TestRateIsCharged(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		cfg := full
		cfg.Limiter = new(Limiter)
		cfg.Limiter.Set(minBurst, time.Hour)
		b := newBed(t, m, setup{cfg: cfg})
		f := b.front()
		left := func() int { return int(cfg.Limiter.tokens) }
		f.put(packet{frame: udp(958, 1), slots: parts(1000, 5), extras: []netif.ExtraInfo{netif.NewHash(netif.HashInfo{})}})
		f.push()
		b.settle()
		if want := minBurst - 1000; left() != want {
			t.Errorf("%d left after one packet, want %d", left(), want)
		}
		f.mcast(true, mac(1))
		f.push()
		b.settle()
		if want := minBurst - 1000; left() != want {
			t.Errorf("%d left after a multicast request, want %d", left(), want)
		}
		// A breach has no size.
		f.put(packet{frame: udp(958, 1)})
		f.ring(f.requests(packet{frame: udp(958, 1)}), 1000, netif.TxExtraInfo)
		f.push()
		b.settle()
		if want := minBurst - 2000; left() != want {
			t.Errorf("%d left after a breach, want %d", left(), want)
		}
	})
}

// TestALimitThatChanges counts from when it was changed.
func TestALimitThatChanges(t *testing.T) {
	now := time.Unix(1e9, 0)
	var l Limiter
	var s share
	take := func(what string, want uint32, got uint32) {
		t.Helper()
		if n := l.take(now, &s, want); n != got {
			t.Errorf("%s: took %d, want %d", what, n, got)
		}
	}
	take("no limit", 1000, unlimited)
	l.Set(1000, 0)
	take("a limit that makes no sense", 1000, unlimited)
	l.Set(200_000, time.Second)
	take("full", 1<<20, 200_000)
	take("empty", 1<<20, 0)
	if got, want := l.settle(now, &s, 0, 100_000), time.Second/2; got < want || got > want+time.Microsecond {
		t.Errorf("wait %v, want %v", got, want)
	}
	now = now.Add(-time.Second)
	take("a clock that went back", 1<<20, 0)
	l.Set(0, time.Second)
	take("limit taken away", 1000, unlimited)
	if got := l.settle(now, &s, 0, 1000); got != 0 {
		t.Errorf("wait %v after the limit was taken away", got)
	}
	l.settle(now, &s, 100, 0)
	l.Set(10, time.Second)
	take("the least burst", 1<<20, minBurst)
	l.settle(now, &s, minBurst+5, 0)
	take("too much given back", 1<<20, minBurst)

	var none *Limiter
	none.release(&s)
	if got := none.take(now, &s, 5); got != unlimited || none.settle(now, &s, 5, 0) != 0 {
		t.Errorf("took %d from no limiter", got)
	}
}

// TestTheBucketNeverLeaks: for any sequence of draws by several queues, the queues never
// use more than burst and rate allow, a wait is never too short, and all bytes that come
// in can be used.
func TestTheBucketNeverLeaks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Uint64Range(1000, 1e9).Draw(t, "rate")
		var l Limiter
		l.Set(rate, time.Second)
		now := time.Unix(1e9, 0)
		start := now
		used := 0.0
		burst := math.Max(float64(rate), minBurst)
		shares := make([]share, rapid.IntRange(1, 4).Draw(t, "queues"))
		until := make([]time.Time, len(shares))
		next := make([]uint32, len(shares))
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			i := rapid.IntRange(0, len(shares)-1).Draw(t, "queue")
			s := &shares[i]
			if d := until[i].Sub(now); d > 0 {
				now = now.Add(d)
			}
			now = now.Add(time.Duration(rapid.IntRange(0, int(time.Millisecond)).Draw(t, "pass")))
			got := l.take(now, s, creditStep)
			if len(shares) == 1 && got < next[i] {
				t.Fatalf("after its wait the queue has %d, want %d", got, next[i])
			}
			use := uint32(float64(got) * rapid.Float64Range(0, 1).Draw(t, "used"))
			next[i] = 0
			if left := got - use; left < netif.MaxTxSize && rapid.Bool().Draw(t, "another") {
				next[i] = left + uint32(rapid.IntRange(1, int(netif.MaxTxSize-left)).Draw(t, "next"))
			}
			until[i] = now.Add(l.settle(now, s, int64(got-use), next[i]))
			used += float64(use)
			if limit := burst + now.Sub(start).Seconds()*float64(rate); used > limit+float64(len(shares)) {
				t.Fatalf("used %.0f, limit %.0f", used, limit)
			}
			if (next[i] != 0) != s.waiting {
				t.Fatalf("waiting %v for %d", s.waiting, next[i])
			}
		}
		for i := range shares {
			l.release(&shares[i])
		}
		if len(l.waiting) != 0 {
			t.Fatalf("%d still wait", len(l.waiting))
		}
		var s share
		l.take(now, &s, 1<<31)
		now = now.Add(time.Second)
		want := math.Min(float64(rate), 1<<31)
		if got := float64(l.take(now, &s, 1<<31)); math.Abs(got-want) > 2 {
			t.Fatalf("%f gained in a second, want %f", got, want)
		}
	})
}

// TestARateThatIsRaised: a queue does not wait the time that the old limit required.
func TestARateThatIsRaised(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		cfg := full
		cfg.Limiter = new(Limiter)
		cfg.Limiter.Set(1, time.Hour)
		b := newBed(t, m, setup{cfg: cfg})
		f := b.front()
		for range 3 {
			f.put(packet{frame: udp(60000, 1)})
		}
		f.push()
		b.settle()
		if got := b.stat(TxPackets); got != 2 {
			t.Fatalf("%d packets of the burst, want 2", got)
		}
		cfg.Limiter.Set(0, 0)
		b.pass(maxRateWait)
		if got := b.stat(TxPackets); got != 3 {
			t.Errorf("%d packets, want 3", got)
		}
	})
}

// TestCreditIsOfTheVifNotOfTheConnection: a guest cannot evade its rate by reconnecting.
// The bytes that its queues have used stay used, and unused bytes do not count twice.
func TestCreditIsOfTheVifNotOfTheConnection(t *testing.T) {
	var l Limiter
	l.Set(minBurst, time.Second)
	now := time.Now()
	for range 3 { // connections, of two queues each
		var a, b share
		got := l.take(now, &a, 1<<30) + l.take(now, &b, 1<<30)
		l.settle(now, &a, 0, netif.MaxTxSize) // they wait
		l.settle(now, &b, 0, netif.MaxTxSize)
		l.release(&a)
		l.release(&b)
		if limit := uint32(minBurst); got > limit {
			t.Errorf("%d bytes at once, the limit is %d", got, limit)
		}
		var next share
		if more := l.take(now, &next, 1<<30); more != 0 {
			t.Errorf("the next connection has %d bytes more", more)
		}
		l.release(&next)
		now = now.Add(time.Second) // worth one burst
	}
}
