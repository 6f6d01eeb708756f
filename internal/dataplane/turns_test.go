// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// cutTo puts a TCP packet over IPv4 of total bytes into the tx ring, to be cut into
// segments of mss bytes.
func (f *front) cutTo(mss, total int) []answer {
	frame := partial(tcp(4, total-len(tcp(4, 0).Bytes()))).Bytes()
	return f.put(packet{frame: frame, flags: netif.TxCsumBlank, extras: []netif.ExtraInfo{gso(4, mss)}})
}

// TestSegmentsAreBounded: a packet cannot make the host work for long, neither with a tiny
// MSS nor with many segments.
func TestSegmentsAreBounded(t *testing.T) {
	inModes(t, allModes, func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		f := b.front()
		most := 54 + 8*maxSegments
		for _, tt := range []struct {
			name       string
			mss, total int
			drops      map[string]uint64 // nil: it is sent
		}{
			{"less than a stack sends, in one segment", 7, 70, map[string]uint64{"tx_gso_too_small": 1}},
			{"less than a stack sends", 7, 1000, map[string]uint64{"tx_gso_too_small": 1}},
			{"one byte", 1, 60000, map[string]uint64{"tx_gso_too_small": 1}},
			{"the least that a stack sends", 8, 1000, nil},
			{"the most segments", 8, most, nil},
			{"a segment more", 8, most + 1, map[string]uint64{"tx_too_many_segments": 1}},
			{"what Linux makes of an MSS of 48", 36, 65535, nil},
		} {
			t.Run(tt.name, func(t *testing.T) {
				for i := range NumCounters {
					b.queue().stats.n[i].Store(0)
				}
				want := f.cutTo(tt.mss, tt.total)
				if tt.drops != nil {
					want = errored(want)
				}
				f.push()
				b.settle()
				if diff := cmp.Diff(want, f.answers()); diff != "" {
					t.Errorf("answers (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(tt.drops, b.stats(Drop)); diff != "" && len(tt.drops)+len(b.stats(Drop)) > 0 {
					t.Errorf("drops (-want +got):\n%s", diff)
				}
				b.host.drain()
			})
		}
	})
}

// TestATurnIsBoundedBySegments, not by packets alone.
func TestATurnIsBoundedBySegments(t *testing.T) {
	inModes(t, allModes, func(t *testing.T, m mode) {
		for _, tt := range []struct {
			name       string
			mss, total int
			want       uint64 // packets of a turn
		}{
			{"a thousand segments each", 8, 8054, 2},
			{"as many as can be", 8, 54 + 8*maxSegments, 1},
			{"an MSS of 536", 536, 53654, 11},
			{"an Ethernet's", 1448, 14480 + 54, 0}, // all there are
		} {
			t.Run(tt.name, func(t *testing.T) {
				b := newBed(t, m, setup{cfg: full})
				f := b.front()
				b.settle()
				before := b.stat(TxPackets)
				put := uint64(0)
				for ; f.tx.Free() > 18; put++ {
					f.cutTo(tt.mss, tt.total)
				}
				f.push()
				must(t, b.w.poll(0))
				b.w.round()
				if tt.want == 0 {
					tt.want = put
				}
				if got := b.stat(TxPackets) - before; got != tt.want {
					t.Errorf("%d packets in a turn, want %d", got, tt.want)
				}
				b.settle()
				f.answers()
				b.host.drain()
			})
		}
	})
}

// TestRateIsForTheWire: headers count as often as they are sent.
func TestRateIsForTheWire(t *testing.T) {
	inModes(t, allModes, func(t *testing.T, m mode) {
		cfg := full
		cfg.Limiter = new(Limiter)
		b := newBed(t, m, setup{cfg: cfg})
		f := b.front()
		const rate, seconds = 1_000_000, 4
		cfg.Limiter.Set(rate/20, time.Second/20)
		const headers, segments = 66, 500
		for end := b.now.Add(seconds * time.Second); b.now.Before(end); b.pass(10 * time.Millisecond) {
			f.answers()
			for f.tx.Free() > 4 {
				f.cutTo(8, headers+8*segments)
			}
			f.push()
			b.settle()
			b.host.drain()
		}
		wire := b.stat(TxPackets) * segments * (headers + 8)
		// The bucket, and a batch, come on top.
		if limit := uint64(rate*seconds + 2*minBurst + 2*turnSegments*(headers+8)); wire > limit || wire < rate*seconds/2 {
			t.Errorf("%d bytes on the wire in %d s with a rate of %d/s", wire, seconds, rate)
		}
		if got, want := b.stat(HostSegments), b.stat(TxPackets)*segments; got != want {
			t.Errorf("%d segments counted, want %d", got, want)
		}
	})
}

// neighbours are vifs of two guests on one worker, with a queue each.
func neighbours(t *testing.T, m mode) (b *bed, conns [2]*Conn) {
	t.Helper()
	b, list := guestsOn(t, m, testDomid, testDomid+1)
	return b, [2]*Conn(list)
}

// guestsOn makes vifs on one worker, with a queue each, of the given domains.
func guestsOn(t *testing.T, m mode, domids ...xen.Domid) (b *bed, conns []*Conn) {
	t.Helper()
	b = newBed(t, m, setup{cfg: full, queues: len(domids)})
	b.settle()
	b.disconnect()
	conns = make([]*Conn, len(domids))
	for i := range domids {
		f := newFront(t, domids[i])
		f.grants.worker = func() *worker { return b.w }
		b.fronts[i] = f
		cfg := full
		cfg.Domid, cfg.VnetHdr = domids[i], m.vnet
		q := f.config()
		q.Tap = b.tap.Queue(i)
		c, err := newConn(cfg, []QueueConfig{q})
		must(t, err)
		c.queues[0].worker.Store(b.w)
		must(t, b.w.attach(c.queues[0]))
		t.Cleanup(func() { b.w.detach(c.queues[0]) })
		conns[i] = c
	}
	b.conn = conns[0]
	return b, conns
}

// TestACostlyVifRests: a vif whose packets take long gets an eighth of the time beside a
// vif whose packets do not, and all of the time if no other vif has work.
func TestACostlyVifRests(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		b, conns := neighbours(t, m)
		const costly, cheap = 5 * time.Millisecond, 50 * time.Microsecond
		var used [2]time.Duration
		for i, cost := range []time.Duration{costly, cheap} {
			b.fronts[i].grants.during = func() {
				b.now = b.now.Add(cost)
				used[i] += cost
			}
		}
		b.w.sched.cpu = func() time.Duration { return used[0] + used[1] }
		busy := func(fronts ...*front) {
			used = [2]time.Duration{}
			for end := b.now.Add(time.Second); b.now.Before(end); {
				for _, f := range fronts {
					f.answers()
					if f.tx.Free() > 0 {
						f.put(packet{frame: udp(18, 1)})
						f.push()
					}
				}
				must(t, b.w.poll(0))
				b.w.expire()
				if !b.w.sched.waits() {
					b.now = b.now.Add(cheap) // sleeps
				}
				b.w.round()
			}
		}
		busy(b.fronts...)
		if share := used[0].Seconds(); share < 0.1 || share > 0.14 {
			t.Errorf("the costly vif used %.2f of the time", share)
		}
		if n := conns[0].Stats(0).Load(Rests); n == 0 {
			t.Error("no rest was counted")
		}
		if n := conns[1].Stats(0).Load(Rests); n != 0 {
			t.Errorf("the other one rested %d times", n)
		}
		b.settle()
		b.now = b.now.Add(restFor)
		busy(b.fronts[0])
		if share := used[0].Seconds(); share < 0.9 {
			t.Errorf("alone, the costly vif used %.2f of the time", share)
		}
		if got := conns[0].Stats(0).Load(WorkerNS); got < uint64(time.Second) {
			t.Errorf("%d ns of the worker's time counted", got)
		}
	})
}

// cost makes each turn of vif i that has packets from the guest take d, and adds it to used.
func (b *bed) cost(i int, d time.Duration, used *time.Duration) {
	b.fronts[i].grants.during = func() {
		b.now = b.now.Add(d)
		*used += d
	}
}

// one makes vif i send a packet.
func (b *bed) one(i int) {
	f := b.fronts[i]
	f.answers()
	f.put(packet{frame: udp(18, 1)})
	f.push()
}

// endless makes vif i send another packet during each turn, so that it always has work.
func (b *bed) endless(i int) {
	during := b.fronts[i].grants.during
	b.fronts[i].grants.during = func() {
		during()
		b.one(i)
	}
	b.one(i)
}

// rounds runs the worker for d of its clock. before is called before each round.
func (b *bed) rounds(d time.Duration, before func()) {
	b.tb.Helper()
	for end := b.now.Add(d); b.now.Before(end); {
		before()
		must(b.tb, b.w.poll(0))
		b.w.expire()
		if !b.w.sched.waits() {
			b.now = b.now.Add(10 * time.Microsecond) // sleeps
		}
		b.w.round()
	}
}

// TestGuestsShareByCost: guests that are always busy get parts of the time by their weights,
// whatever their turns cost and over whatever number of vifs they come.
func TestGuestsShareByCost(t *testing.T) {
	const us = time.Microsecond
	type guest struct {
		vifs, weight int
		turn         time.Duration
		share        float64
	}
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		for _, tt := range []struct {
			name   string
			guests []guest
		}{
			{"alike", []guest{{1, 1, 50 * us, 0.5}, {1, 1, 50 * us, 0.5}}},
			{"one's turns are long", []guest{{1, 1, 450 * us, 0.5}, {1, 1, 20 * us, 0.5}}},
			{"one has several vifs", []guest{{3, 0, 40 * us, 0.5}, {1, 0, 40 * us, 0.5}}},
			{"weights", []guest{{1, 3, 90 * us, 0.75}, {1, 1, 200 * us, 0.25}}},
			{"the weight of several vifs is the largest", []guest{{3, 4, 100 * us, 0.8}, {1, 1, 70 * us, 0.2}}},
			{"a weight beyond the limit", []guest{{1, 1000, 90 * us, 16.0 / 17}, {1, 1, 90 * us, 1.0 / 17}}},
			{"three", []guest{{1, 1, 300 * us, 0.25}, {2, 2, 20 * us, 0.5}, {1, 0, 90 * us, 0.25}}},
		} {
			t.Run(tt.name, func(t *testing.T) {
				var domids []xen.Domid
				for g := range tt.guests {
					for range tt.guests[g].vifs {
						domids = append(domids, xen.Domid(testDomid+g))
					}
				}
				b, conns := guestsOn(t, m, domids...)
				used := make([]time.Duration, len(tt.guests))
				for i := range conns {
					g := int(domids[i] - testDomid)
					b.cost(i, tt.guests[g].turn, &used[g])
					if i == 0 || domids[i] != domids[i-1] {
						conns[i].weight.Store(int32(tt.guests[g].weight))
						conns[i].queues[0].weigh()
					}
				}
				b.settle()
				for i := range conns {
					b.endless(i)
				}
				const all = 400 * time.Millisecond
				b.rounds(all, func() {})
				for g, want := range tt.guests {
					if share := used[g].Seconds() / all.Seconds(); share < want.share-0.03 || share > want.share+0.03 {
						t.Errorf("guest %d: %.3f of the time, want %.3f", g, share, want.share)
					}
				}
			})
		}
	})
}

// TestAQuietGuestIsFirst: a guest that sends a packet now and then waits for a turn of another
// guest, not for a round of them.
func TestAQuietGuestIsFirst(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		const turn = 240 * time.Microsecond
		b, conns := guestsOn(t, m, 10, 11, 12, 13, 14, 15, 16)
		var used [7]time.Duration
		for i := range conns {
			b.cost(i, turn, &used[i])
		}
		quiet, sent := b.fronts[0], time.Time{}
		var longest time.Duration
		packets := 0
		quiet.grants.during = func() {
			longest = max(longest, b.now.Sub(sent))
			packets++
			b.now = b.now.Add(10 * time.Microsecond)
		}
		b.settle()
		// The quiet guest sends in the first turn of another one that is later than due.
		due := b.now.Add(10 * time.Millisecond) // when the others have used their first parts
		for i := 1; i < len(conns); i++ {
			during := b.fronts[i].grants.during
			b.fronts[i].grants.during = func() {
				if quiet.answers(); !b.now.Before(due) && quiet.tx.Free() == netif.TxRingSize {
					sent, due = b.now, b.now.Add(5*time.Millisecond)
					quiet.put(packet{frame: udp(18, 1)})
					quiet.push()
				}
				during()
			}
		}
		for i := 1; i < len(conns); i++ {
			b.endless(i)
		}
		b.rounds(400*time.Millisecond, func() {})
		if packets < 50 || longest > 2*turn {
			t.Errorf("%d packets waited for up to %v beside turns of %v", packets, longest, turn)
		}
	})
}

// TestSleepersGetNoMore: a guest that sleeps and comes back, whenever that brings it turns
// before others, gets no more than its part.
func TestSleepersGetNoMore(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		for _, tt := range []struct {
			name   string
			turn   time.Duration // of the sleeper
			burst  int           // packets, one turn each
			pause  int           // turns of the other guest between two bursts
			atMost float64
		}{
			{"short turns, short pauses", 20 * time.Microsecond, 5, 1, 0.52},
			{"a part, short pauses", 245 * time.Microsecond, 1, 1, 0.52},
			{"many parts", 245 * time.Microsecond, 10, 1, 0.52},
			{"long turns", 490 * time.Microsecond, 1, 1, 0.52},
			{"long pauses", 245 * time.Microsecond, 10, 20, 0.52},
		} {
			t.Run(tt.name, func(t *testing.T) {
				b, _ := neighbours(t, m)
				var used [2]time.Duration
				b.cost(0, tt.turn, &used[0])
				b.cost(1, 100*time.Microsecond, &used[1])
				b.settle()
				const all = 400 * time.Millisecond
				turns, packets, due := 0, 0, 0
				busy := b.fronts[1].grants.during
				b.fronts[1].grants.during = func() { busy(); turns++ }
				sleeper := b.fronts[0].grants.during
				b.fronts[0].grants.during = func() {
					sleeper()
					if packets++; packets%tt.burst != 0 {
						b.one(0)
					} else {
						due = turns + tt.pause
					}
				}
				b.endless(1)
				b.rounds(all, func() {
					if b.fronts[0].answers(); b.fronts[0].tx.Free() == netif.TxRingSize && turns >= due {
						b.one(0)
					}
				})
				if share := used[0].Seconds() / all.Seconds(); share > tt.atMost {
					t.Errorf("%.3f of the time", share)
				} else {
					t.Logf("%.3f of the time", share)
				}
			})
		}
	})
}

// TestATurnThatOnlySeemsLong: a vif does not rest after a turn in which the thread waited
// for a processor.
func TestATurnThatOnlySeemsLong(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		b, conns := neighbours(t, m)
		b.w.sched.cpu = func() time.Duration { return 0 }
		for range 20 {
			for _, f := range b.fronts {
				f.answers()
				f.put(packet{frame: udp(18, 1)})
				f.push()
				f.grants.during = func() { b.now = b.now.Add(5 * time.Millisecond) }
			}
			b.settle()
		}
		for i, c := range conns {
			if got := c.Stats(0).Load(TxPackets); got != 20 {
				t.Errorf("vif %d: %d packets sent, want 20", i, got)
			}
			if n := c.Stats(0).Load(Rests); n != 0 {
				t.Errorf("vif %d rested %d times", i, n)
			}
		}
	})
}

// TestSlowTurnsTakeLess: a queue whose turns take long takes fewer packets per turn, down
// to one, and more again after short turns.
func TestSlowTurnsTakeLess(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		b, conns := neighbours(t, m)
		f, q := b.fronts[0], conns[0].queues[0]
		b.settle()
		b.now = b.now.Add(time.Second) // no other vif was served lately: it does not rest
		turn := func() (packets uint64) {
			before := q.stats.Load(TxPackets)
			f.answers()
			f.fill()
			f.push()
			must(t, b.w.poll(0))
			b.w.sched.schedule(q)
			for q.stats.Load(TxPackets) == before {
				b.w.round()
			}
			return q.stats.Load(TxPackets) - before
		}
		f.grants.during = func() { b.now = b.now.Add(4 * time.Millisecond) }
		for _, want := range []uint64{128, 16, 2, 1, 1} {
			if got := turn(); got != want {
				t.Errorf("a turn of %d packets, want %d", got, want)
			}
		}
		f.grants.during = nil
		for range 12 {
			turn()
		}
		if q.mostSegs != turnSegments {
			t.Errorf("%d segments a turn after short ones, want %d", q.mostSegs, turnSegments)
		}
	})
}

// TestMailWithinARound: a function posted during the turn of one vif runs before the turn
// of the next.
func TestMailWithinARound(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		b, _ := neighbours(t, m)
		b.settle()
		var order []string
		for i, f := range b.fronts {
			f.grants.during = func() {
				if i == 0 {
					b.w.post(nil, func(*worker) { order = append(order, "mail") })
				}
				order = append(order, "turn")
			}
			f.put(packet{frame: udp(18, 1)})
			f.push()
		}
		must(t, b.w.poll(0))
		b.w.round()
		if diff := cmp.Diff([]string{"turn", "mail", "turn"}, order); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
	})
}

// TestDetachWithinARound: a vif that is detached between two turns of a round has no
// further turn, and the others have theirs.
func TestDetachWithinARound(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		for first := range 2 {
			b, conns := neighbours(t, m)
			b.settle()
			gone := b.fronts[1-first]
			b.fronts[first].grants.during = func() {
				b.w.post(nil, func(*worker) { b.w.detachAll(conns[1-first]) })
			}
			gone.grants.during = func() { t.Error("a turn of a vif that is gone") }
			for _, i := range []int{first, 1 - first} {
				b.fronts[i].put(packet{frame: udp(18, 1)})
				b.fronts[i].push()
				b.w.sched.schedule(conns[i].queues[0])
			}
			b.w.round()
			b.settle()
			if n := conns[first].Stats(0).Load(TxPackets); n != 1 {
				t.Errorf("%d packets of the vif that stays, want 1", n)
			}
			if len(b.w.sched.accounts) != 1 {
				t.Errorf("%d accounts, want 1", len(b.w.sched.accounts))
			}
		}
	})
}

// TestCloseIsOneCall for all queues that are on the same worker.
func TestCloseIsOneCall(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		l := newLive(t, m, 1, 4, full)
		w := l.pool.workers[0]
		held, goOn := make(chan struct{}), make(chan struct{})
		w.post(nil, func(*worker) { close(held); <-goOn })
		<-held
		closed := make(chan struct{})
		go func() { l.conn.Close(); close(closed) }()
		deadline := time.Now().Add(patience)
		letters := 0
		for letters == 0 && time.Now().Before(deadline) {
			w.mail.mu.Lock()
			letters = len(w.mail.mail)
			w.mail.mu.Unlock()
			runtime.Gosched()
		}
		if letters != 1 {
			t.Errorf("%d letters for a close, want 1", letters)
		}
		close(goOn)
		<-closed
		if len(w.sched.accounts) != 0 {
			t.Errorf("%d accounts are left", len(w.sched.accounts))
		}
	})
}
