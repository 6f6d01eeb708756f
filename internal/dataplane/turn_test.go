// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// fill puts as many small packets into the tx ring as fit.
func (f *front) fill() (want []answer) {
	frame := udp(18, 1)
	for f.tx.Free() > 0 {
		want = append(want, f.put(packet{frame: frame})...)
	}
	return want
}

// TestABatch: a full ring takes two turns, each with one copy and at most one event, and
// all responses are in order.
func TestABatch(t *testing.T) {
	inModes(t, allModes, func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		f := b.front()
		b.settle()
		for i := range NumCounters {
			b.queue().stats.n[i].Store(0)
		}
		want := f.fill()
		f.push()
		b.settle()
		if diff := cmp.Diff(want, f.answers()); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
		writes := map[bool]uint64{true: 2, false: 256}[m.uring]
		work := map[string]uint64{
			"wakes": 1, "grant_calls": 2, "grant_ops": 256, "notifies": 1, "tap_write_calls": writes,
			"event_calls": 2, "polls": 4,
			"syscalls": 1 + 2 + writes + 1 + 1, // wake, copies, writes, event, unmask
		}
		if m.ownPages() {
			work["grant_own_ops"] = 256
		}
		if diff := cmp.Diff(work, b.stats(Work)); diff != "" {
			t.Errorf("work (-want +got):\n%s", diff)
		}
	})
}

// TestOnePacket to a guest that is idle costs no more than it has to.
func TestOnePacket(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		f := b.front()
		f.post(100)
		b.settle()
		for i := range NumCounters {
			b.queue().stats.n[i].Store(0)
		}
		b.host.sendPlain(udp(1, 1))
		b.settle()
		if n := len(f.received()); n != 1 {
			t.Errorf("%d packets delivered", n)
		}
		work := map[string]uint64{"grant_calls": 1, "grant_ops": 1, "grant_own_ops": 1, "notifies": 1, "tap_read_calls": 1, "syscalls": 3, "polls": 2}
		if diff := cmp.Diff(work, b.stats(Work)); diff != "" {
			t.Errorf("work (-want +got):\n%s", diff)
		}
	})
}

// TestClockIsNotRead while packets pass and nothing waits.
func TestClockIsNotRead(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		cfg := full
		cfg.Limiter = new(Limiter)
		b := newBed(t, m, setup{cfg: cfg})
		f := b.front()
		f.post(100)
		b.settle()
		b.w.clock = func() time.Time { t.Error("the clock was read"); return b.now }
		f.fill()
		f.push()
		for i := range 10 {
			b.host.sendPlain(udp(i, 1))
		}
		b.settle()
		if n := len(f.received()); n != 10 {
			t.Errorf("%d packets delivered", n)
		}
	})
}

// TestNotify: the guest gets an event when it asked for one, once per batch.
func TestNotify(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		f := b.front()
		b.settle()
		f.events.notifies(txPort)
		count := func(what string, port evtchn.Port, want int) {
			t.Helper()
			b.settle()
			if n := f.events.notifies(port); n != want {
				t.Errorf("%s: %d events, want %d", what, n, want)
			}
		}
		send := func(n int) {
			for range n {
				f.put(packet{frame: udp(18, 1)})
			}
			f.push()
		}
		// Asked for at the first response: the ring's initial state.
		send(10)
		count("first batch", txPort, 1)
		send(10)
		count("not asked for", txPort, 0)
		f.answers()
		if more, _ := f.tx.ArmFor(30); more {
			t.Error("answers out of nowhere")
		}
		send(29)
		count("one short of what was asked for", txPort, 0)
		send(1)
		count("just what was asked for", txPort, 1)
		f.answers()
		_, _ = f.tx.Arm()
		send(200)
		count("two batches, asked for with the first", txPort, 1)
		f.answers()
		_, _ = f.tx.ArmFor(150)
		send(200)
		count("two batches, asked for with the second", txPort, 1)

		f.events.notifies(rxPort)
		f.post(200)
		b.host.sendPlain(udp(1, 1))
		count("first packet to the guest", rxPort, 1)
		b.host.sendPlain(udp(1, 1), udp(1, 1))
		count("packets to a guest that did not ask", rxPort, 0)
		f.received()
		_, _ = f.rx.Arm()
		b.host.sendPlain(udp(1, 1), udp(1, 1))
		count("packets to a guest that did", rxPort, 1)
	})
}

// TestOneChannel: with one event channel for both rings, the worker checks both after an
// event.
func TestOneChannel(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full, onePort: true})
		f := b.front()
		b.settle()
		b.host.sendPlain(udp(1, 1))
		b.settle()
		f.post(1)
		b.settle()
		if n := len(f.received()); n != 1 {
			t.Errorf("%d packets to the guest", n)
		}
		want := f.put(packet{frame: udp(1, 1)})
		f.push()
		b.settle()
		if diff := cmp.Diff(want, f.answers()); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
		if n := f.events.notifies(txPort); n != 2 {
			t.Errorf("%d events, want 2", n)
		}
	})
}

// TestEventStorm: the events of a guest that sends them without work are handled at most
// every 10 ms, and at once again after one with work.
func TestEventStorm(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		f := b.front()
		b.settle()
		before := b.stat(Wakes)
		for range 1000 { // a second
			for range 10 {
				f.events.send(txPort)
				f.events.send(rxPort)
				b.settle()
			}
			b.pass(time.Millisecond)
		}
		n := b.stat(Wakes) - before
		if n < 100 || n > 100+spuriousLimit+10 {
			t.Errorf("%d wakes in a second of a storm", n)
		}
		if s := b.stat(SpuriousWakes); s < n {
			t.Errorf("%d of %d wakes counted as spurious", s, n)
		}
		// A packet during the storm is late, but not lost.
		want := f.put(packet{frame: udp(1, 1)})
		f.push()
		f.events.send(txPort)
		b.settle()
		b.pass(maxUnmaskDelay)
		if diff := cmp.Diff(want, f.answers()); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
		want = f.put(packet{frame: udp(1, 1)})
		f.push()
		b.settle()
		if diff := cmp.Diff(want, f.answers()); diff != "" {
			t.Errorf("answers after the storm (-want +got):\n%s", diff)
		}
	})
}

// TestAnEventHandleThatOverflows loses no work.
func TestAnEventHandleThatOverflows(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		f := b.front()
		b.settle()
		f.events.Overflow()
		want := f.put(packet{frame: udp(1, 1)})
		f.push()
		b.settle()
		if diff := cmp.Diff(want, f.answers()); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
		want = f.put(packet{frame: udp(1, 1)})
		f.push()
		b.settle()
		if diff := cmp.Diff(want, f.answers()); diff != "" {
			t.Errorf("answers afterwards (-want +got):\n%s", diff)
		}
	})
}

// TestAnEventHandleThatFails costs its vif.
func TestAnEventHandleThatFails(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full, queues: 2})
		f := b.front()
		b.settle()
		f.guest.FailPort(xentest.OpPending, 0, unix.EIO)
		f.events.send(txPort)
		b.settle()
		if err := b.breach(); !errors.Is(err, unix.EIO) {
			t.Errorf("breach: %v", err)
		}
		b.works(t, 1)
	})
}

// works checks that a queue moves packets both ways.
func (b *bed) works(t *testing.T, queue int) {
	t.Helper()
	f := b.fronts[queue]
	b.host.drain()
	want := f.put(packet{frame: udp(33, 1)})
	f.push()
	b.settle()
	if diff := cmp.Diff(want, f.answers()); diff != "" {
		t.Errorf("answers of queue %d (-want +got):\n%s", queue, diff)
	}
	if diff := cmp.Diff([][]byte{udp(33, 1)}, b.host.frames(), asBytes); diff != "" {
		t.Errorf("frames of queue %d (-want +got):\n%s", queue, diff)
	}
}

// TestATAPThatIsDeleted is reported once and then not watched any more. The guest's
// packets are still answered. While packets wait for slots the TAP is not watched, so the
// report comes when they are gone.
func TestATAPThatIsDeleted(t *testing.T) {
	inModes(t, allModes, func(t *testing.T, m mode) {
		for _, held := range []bool{false, true} {
			b := newBed(t, m, setup{cfg: full, ownTAP: true})
			f := b.front()
			gone := []Notice{{Kind: TapGone}}
			if held {
				b.host.sendPlain(udp(1, 1))
				gone = nil
			}
			b.settle()
			must(t, netns.Delete(ownName))
			b.settle()
			if diff := cmp.Diff(gone, b.notices); diff != "" {
				t.Errorf("held %v: notices (-want +got):\n%s", held, diff)
			}
			f.post(10)
			var want []answer
			for range 8 {
				want = append(want, f.put(packet{frame: udp(1, 1)})...)
			}
			f.push()
			b.settle()
			if diff := cmp.Diff(want, f.answers()); diff != "" {
				t.Errorf("held %v: answers (-want +got):\n%s", held, diff)
			}
			if got := b.stats(Drop); !cmp.Equal(got, map[string]uint64{"tx_tap_refused": 8}) {
				t.Errorf("held %v: drops: %v", held, got)
			}
			if n := len(f.received()); n == 1 != held {
				t.Errorf("held %v: %d packets delivered", held, n)
			}
			if diff := cmp.Diff([]Notice{{Kind: TapGone}}, b.notices); diff != "" {
				t.Errorf("held %v: notices in the end (-want +got):\n%s", held, diff)
			}
			if n := b.settle(); n != 0 {
				t.Errorf("held %v: %d rounds without work", held, n)
			}
			b.disconnect()
			must(t, b.tap.Close())
		}
	})
}

// TestAPanicCostsOneVif, and neither its worker nor the queues beside it.
func TestAPanicCostsOneVif(t *testing.T) {
	tests := []struct {
		name  string
		cause func(f *front)
		says  string
	}{
		{"in a grant copy", func(f *front) {
			r := f.requests(packet{frame: udp(1, 1)})
			f.beforeCopy(r[0].Gref, func() error { panic("injected") })
			f.put(packet{frame: udp(1, 1)})
			f.ring(r, int(r[0].Size), 0)
			f.push()
		}, "injected"},
		{"on a page gone bad", func(f *front) {
			must(f.tb, unix.Mprotect(f.back[:netif.PageSize], unix.PROT_NONE))
			f.tb.Cleanup(func() { _ = unix.Mprotect(f.back[:netif.PageSize], unix.PROT_READ|unix.PROT_WRITE) })
			f.events.send(txPort)
		}, "invalid memory address"},
	}
	inModes(t, allModes, func(t *testing.T, m mode) {
		for _, tt := range tests {
			b := newBed(t, m, setup{cfg: full, queues: 2})
			f := b.front()
			b.settle()
			tt.cause(f)
			b.settle()
			err := b.breach()
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s: breach %v", tt.name, err)
			}
			if len(b.warned) != 1 || !strings.Contains(b.warned[0].Error(), "dataplane.(*worker).txPass") {
				t.Errorf("%s: warned %v", tt.name, b.warned)
			}
			for range 10 {
				b.fronts[1].put(packet{frame: udp(5, 1)})
			}
			b.fronts[1].push()
			b.settle()
			b.fronts[1].answers()
			b.works(t, 1)
			b.disconnect()
		}
	})
}

// TestAnIoUringThatFails: the worker serves all its vifs without the failed io_uring.
func TestAnIoUringThatFails(t *testing.T) {
	inModes(t, []mode{{vnet: true, uring: true}}, func(t *testing.T, m mode) {
		for _, rx := range []bool{false, true} {
			b := newBed(t, m, setup{cfg: full})
			f := b.front()
			f.post(100)
			b.settle()
			must(t, b.w.uring.ring.Close()) // Submit fails, as if the kernel had turned against it
			if rx {
				b.queue().reader.run.expected = 30
				for i := range 30 {
					b.host.sendPlain(udp(1, uint16(i)))
				}
				b.settle()
				// A failed read may have taken packets from the TAP.
				if n := len(f.received()); n == 0 {
					t.Error("no packets delivered")
				}
			} else {
				var want []answer
				for range 10 {
					want = append(want, f.put(packet{frame: udp(1, 1)})...)
				}
				f.push()
				b.settle()
				if diff := cmp.Diff(want, f.answers()); diff != "" {
					t.Errorf("answers (-want +got):\n%s", diff)
				}
			}
			if len(b.warned) != 1 || b.w.uring.ring != nil {
				t.Errorf("warned %v", b.warned)
			}
			b.works(t, 0)
			b.disconnect()
		}
	})
}

// TestRoundsAreShared: with many queues busy, each has its turn in every round.
func TestRoundsAreShared(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full, queues: 2})
		b.settle()
		for _, f := range b.fronts {
			f.fill()
			f.push()
		}
		must(t, b.w.poll(0))
		for round := range 2 {
			b.w.round()
			for i := range b.fronts {
				if n := b.conn.Stats(i).Load(TxPackets); n != uint64(batchPackets*(round+1)) {
					t.Errorf("round %d: queue %d has sent %d packets", round, i, n)
				}
			}
		}
	})
}

// TestTheEventOfADeadPredecessor: a daemon that was killed after publishing and before
// notifying leaves a guest that sleeps, and no later response crosses its rsp_event. The
// successor notifies it.
func TestTheEventOfADeadPredecessor(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		journals := []*Journal{NewJournal()}
		b := newBed(t, m, setup{cfg: full, journals: journals})
		f := b.front()
		f.post(64)
		b.settle()
		b.host.sendPlain(udp(10, 1))
		b.settle()
		f.events.notifies(rxPort) // never reached the guest
		b.disconnect()
		f.events.rebind()
		b.connect(m, &setup{cfg: full, journals: journals, fronts: b.fronts})
		b.settle()
		if got := f.events.notifies(rxPort); got != 1 {
			t.Errorf("%d events for the guest, want 1", got)
		}
	})
}
