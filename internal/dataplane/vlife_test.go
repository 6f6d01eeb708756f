// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// vPlain are the formats for tests of a device's life.
var vPlain = []vOptions{{features: vModern}, {features: vModern &^ virtEventIdx}, {features: vModern, packed: true}}

var vnetModes = allModes[:2]

// newLazyVbed makes a bed whose rings are not started.
func newLazyVbed(t *testing.T, m mode, o vOptions) *vbed {
	b := newVbed(t, m, o)
	for _, q := range b.conn.queues {
		for _, r := range q.virt.rings() {
			_, err := b.w.stopRing(q, r)
			must(t, err)
		}
	}
	b.settle()
	for _, g := range b.guests {
		for _, r := range []*vring{&g.rx, &g.tx} {
			eventCount(r.kick)
			eventCount(r.call)
		}
	}
	return b
}

// update changes a ring's settings as UpdateRing does.
func (b *vbed) update(r *vring) {
	b.tb.Helper()
	must(b.tb, b.w.updateRing(b.queue(), r.set))
	b.w.sched.schedule(b.queue())
	b.settle()
}

// stop stops a ring and returns its base.
func (b *vbed) stop(r *vring) uint32 {
	b.tb.Helper()
	base, err := b.w.stopRing(b.queue(), b.queue().virt.ring(r.set.Index))
	must(b.tb, err)
	b.settle()
	return base
}

// TestVirtStartsWithAKick: a ring that has no chains when it is started is not touched until
// its first kick.
func TestVirtStartsWithAKick(t *testing.T) {
	inFormats(t, vnetModes, vPlain, func(t *testing.T, m mode, o vOptions) {
		b := newLazyVbed(t, m, o)
		g := b.guest()
		b.startRing(0, &g.rx)
		b.startRing(0, &g.tx)
		g.post(10)
		g.send(vsent{frame: udp(100, 1)})
		eventCount(g.rx.kick)
		eventCount(g.tx.kick)
		b.host.sendPlain(udp(100, 2))
		b.settle()
		if got, sent := g.received(), g.sent(); len(got) != 0 || sent != 0 || len(b.host.frames()) != 0 {
			t.Errorf("before the first kick: %d packets to the guest, %d from it", len(got), sent)
		}
		if s := b.queue().virt.rx.state(); !s.Started || s.Live || !s.Enabled || s.Size != 256 {
			t.Errorf("state %+v", s)
		}
		g.tx.wake()
		b.settle()
		if got, sent := g.received(), g.sent(); len(got) != 0 || sent != 1 || len(b.host.frames()) != 1 {
			t.Errorf("after a kick of the tx ring: %d packets to the guest, %d from it", len(got), sent)
		}
		g.rx.wake()
		b.settle()
		if got := g.received(); len(got) != 1 {
			t.Errorf("after a kick of the rx ring: %d packets to the guest", len(got))
		}
		if s := b.queue().virt.tx.state(); !s.Live || s.Err != nil {
			t.Errorf("state %+v", s)
		}
	})
}

// TestVirtStartsWithChains: a ring that has chains when it is started needs no kick, once it is
// enabled. A predecessor may have taken the kick.
func TestVirtStartsWithChains(t *testing.T) {
	inFormats(t, vnetModes, vPlain, func(t *testing.T, m mode, o vOptions) {
		b := newLazyVbed(t, m, o)
		g := b.guest()
		g.post(10)
		g.send(vsent{frame: udp(100, 1)})
		eventCount(g.rx.kick)
		eventCount(g.tx.kick)
		g.rx.set.Enabled, g.tx.set.Enabled = false, false
		b.startRing(0, &g.rx)
		b.startRing(0, &g.tx)
		b.host.sendPlain(udp(100, 2))
		b.settle()
		if got, sent := g.received(), g.sent(); len(got) != 0 || sent != 0 || len(b.host.frames()) != 0 {
			t.Errorf("disabled: %d packets to the guest, %d from it", len(got), sent)
		}
		g.rx.set.Enabled, g.tx.set.Enabled = true, true
		b.update(&g.rx)
		b.update(&g.tx)
		if got, sent := g.received(), g.sent(); len(got) != 1 || sent != 1 || len(b.host.frames()) != 1 {
			t.Errorf("enabled: %d packets to the guest, %d from it", len(got), sent)
		}
	})
}

// TestVirtWithoutKicks: a ring without a descriptor for kicks is polled.
func TestVirtWithoutKicks(t *testing.T) {
	inFormats(t, vnetModes, vPlain, func(t *testing.T, m mode, o vOptions) {
		o.noKick = true
		b := newVbed(t, m, o)
		g := b.guest()
		for range 5 {
			g.send(vsent{frame: udp(100, 1)})
			b.host.sendPlain(udp(100, 2))
			b.pass(3 * noNotifyPoll)
			if n := len(b.host.frames()); n != 1 || g.sent() != 1 {
				t.Fatalf("%d packets from the guest", n)
			}
			g.post(1)
			b.pass(3 * noNotifyPoll)
			if n := len(g.received()); n != 1 {
				t.Fatalf("%d packets to the guest", n)
			}
		}
	})
}

// TestVirtDisabled: a ring that is started and disabled discards what the guest sends, and
// gives it nothing.
func TestVirtDisabled(t *testing.T) {
	inFormats(t, vnetModes, vPlain, func(t *testing.T, m mode, o vOptions) {
		b := newVbed(t, m, o)
		g := b.guest()
		g.post(10)
		g.rx.set.Enabled, g.tx.set.Enabled = false, false
		b.update(&g.rx)
		b.update(&g.tx)
		g.send(vsent{frame: udp(100, 1)}, vsent{frame: udp(100, 1)})
		b.host.sendPlain(udp(100, 2))
		b.settle()
		if n := g.sent(); n != 2 || len(b.host.frames()) != 0 || b.stat(DropTxDisabled) != 2 {
			t.Errorf("%d chains came back, %v", n, b.stats(Drop, Traffic))
		}
		if got := g.received(); len(got) != 0 {
			t.Errorf("%d packets to the guest", len(got))
		}
		if n := b.idle(t, func() { b.host.sendPlain(udp(100, 2)) }); n != 0 {
			t.Errorf("%d wakes by packets that cannot be delivered", n)
		}
		g.rx.set.Enabled, g.tx.set.Enabled = true, true
		b.update(&g.tx)
		b.update(&g.rx)
		g.send(vsent{frame: udp(100, 1)})
		b.settle()
		if n := g.sent(); n != 1 || len(b.host.frames()) != 1 {
			t.Errorf("enabled: %d chains came back, %v", n, b.stats(Drop, Traffic))
		}
		if got := g.received(); len(got) != 2 {
			t.Errorf("enabled: %d packets to the guest", len(got))
		}
	})
}

// idle counts the epoll events that f causes.
func (b *vbed) idle(t *testing.T, f func()) int {
	t.Helper()
	b.settle()
	f()
	events, err := b.w.epoll.wait(0)
	must(t, err)
	return len(events)
}

// TestVirtIdle: a device without work is woken by nothing, and by one kick for the packets
// that the guest sends together.
func TestVirtIdle(t *testing.T) {
	inFormats(t, vnetModes, vPlain, func(t *testing.T, m mode, o vOptions) {
		b := newVbed(t, m, o)
		g := b.guest()
		g.post(100)
		b.settle()
		kicks := g.rx.kicks
		if n := b.idle(t, func() { g.post(100) }); n != 0 || g.rx.kicks != kicks {
			t.Errorf("buffers that are not needed make %d events, %d kicks", n, g.rx.kicks-kicks)
		}
		for round := range 5 {
			wakes, calls := b.stat(Wakes), g.tx.kicks
			if n := b.idle(t, func() { g.send(vsent{frame: udp(9, 1)}, vsent{frame: udp(9, 2)}) }); n != 1 {
				t.Errorf("round %d: %d events", round, n)
			}
			b.settle()
			if w, k := b.stat(Wakes)-wakes, g.tx.kicks-calls; w != 1 || k != 1 {
				t.Errorf("round %d: %d wakes, %d kicks", round, w, k)
			}
			eventCount(g.tx.call)
			g.sent()
			g.tx.d.Disarm()
		}
		eventCount(g.rx.call)
		for range 20 {
			b.host.sendPlain(udp(9, 1))
		}
		b.settle()
		if n := eventCount(g.rx.call); n == 0 || n > 2 { // the first read is of one packet
			t.Errorf("%d calls for 20 packets", n)
		}
		if len(g.received()) != 20 {
			t.Error("packets are missing")
		}
		if b.w.timeout() != -1 {
			t.Error("there is a timer")
		}
	})
}

// TestVirtSpuriousKicks: a guest that only kicks is not listened to all the time.
func TestVirtSpuriousKicks(t *testing.T) {
	inFormats(t, vnetModes[:1], vPlain, func(t *testing.T, m mode, o vOptions) {
		b := newVbed(t, m, o)
		g := b.guest()
		b.settle()
		before := b.stat(Wakes)
		for range 1000 {
			g.tx.wake()
			g.rx.wake()
			b.settle()
		}
		if n := b.stat(Wakes) - before; n > 4*spuriousLimit {
			t.Errorf("%d wakes", n)
		}
		if d := b.w.timeout(); d < 0 || d > 10 {
			t.Errorf("the next wake is in %d ms", d)
		}
		g.send(vsent{frame: udp(100, 1)})
		b.pass(20 * time.Millisecond)
		if g.sent() != 1 {
			t.Error("the kick of a packet is lost")
		}
		before = b.stat(Wakes)
		g.send(vsent{frame: udp(100, 1)})
		b.settle()
		if g.sent() != 1 || b.stat(Wakes) != before+1 {
			t.Error("the guest is not listened to after work")
		}
	})
}

// TestVirtOddKicks: a descriptor for kicks may be a pipe, and its other end closed.
func TestVirtOddKicks(t *testing.T) {
	inFormats(t, vnetModes[:1], vPlain, func(t *testing.T, m mode, o vOptions) {
		b := newVbed(t, m, o)
		g := b.guest()
		var p [2]int
		must(t, unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC))
		defer unix.Close(p[0])
		g.tx.set.Kick, g.tx.kick = p[0], p[1]
		b.update(&g.tx)
		for range 3 {
			g.send(vsent{frame: udp(100, 1)})
			b.settle()
			if g.sent() != 1 {
				t.Error("a kick through a pipe is lost")
			}
		}
		_, err := unix.Write(p[1], make([]byte, 5000))
		must(t, err)
		must(t, unix.Close(p[1]))
		b.pass(time.Second)
		if n := b.idle(t, func() {}); n != 0 {
			t.Errorf("%d events of a closed pipe", n)
		}
		g.tx.kick = eventfd(t)
		g.tx.set.Kick = g.tx.kick
		b.update(&g.tx)
		g.send(vsent{frame: udp(100, 1)})
		b.settle()
		if g.sent() != 1 {
			t.Error("a kick through another descriptor is lost")
		}
	})
}

// TestVirtStop: a ring that is stopped is neither read nor written, and the guest not
// notified. Started again from its base it goes on.
func TestVirtStop(t *testing.T) {
	inFormats(t, vnetModes, vPlain, func(t *testing.T, m mode, o vOptions) {
		b := newVbed(t, m, o)
		g := b.guest()
		var sent, got int
		for round := range 300 { // the indices of packed rings wrap
			g.post(3)
			g.send(vsent{frame: udp(100, 1)}, vsent{frame: udp(3000, 1)})
			b.host.sendPlain(udp(100, 2), udp(100, 2))
			b.settle()
			sent += g.sent()
			got += len(g.received())
			eventCount(g.tx.call)
			eventCount(g.rx.call)

			g.rx.set.Base, g.tx.set.Base = b.stop(&g.rx), b.stop(&g.tx)
			before := append([]byte(nil), g.mem[vRings:vRings+2*vRingAt]...)
			g.tx.wake()
			b.host.sendPlain(udp(100, 2))
			b.settle()
			if string(before) != string(g.mem[vRings:vRings+2*vRingAt]) || eventCount(g.tx.call)+eventCount(g.rx.call) != 0 {
				t.Fatalf("round %d: a stopped ring was written to, or called", round)
			}
			b.start(0)
			if n := eventCount(g.tx.call); n == 0 {
				t.Fatalf("round %d: the guest is not notified by a successor", round)
			}
			sent += g.sent()
			got += len(g.received())
		}
		if sent != 600 || got != 900 || b.breach() != nil {
			t.Errorf("%d packets from the guest, %d to it, %v", sent, got, b.breach())
		}
	})
}

// TestVirtSuccessor: a daemon that was killed is followed by one that starts at the used
// index. No packet is lost or repeated that the guest can see.
func TestVirtSuccessor(t *testing.T) {
	inFormats(t, vnetModes[:1], []vOptions{{features: vModern}}, func(t *testing.T, m mode, o vOptions) {
		b := newVbed(t, m, o)
		g := b.guest()
		var ids []uint16
		next := uint16(0)
		for range 50 {
			g.post(4)
			for range 3 {
				next++
				g.send(vsent{frame: udp(100, next)})
			}
			b.host.sendPlain(udp(100, next))
			b.settle()
			g.sent()
			if n := len(g.received()); n != 1 {
				t.Fatalf("%d packets", n)
			}
			for _, f := range b.host.frames() {
				ids = append(ids, binary.BigEndian.Uint16(f[18:]))
			}
			// As after kill -9: the base is read from the ring.
			b.stop(&g.rx)
			b.stop(&g.tx)
			for _, r := range []*vring{&g.rx, &g.tx} {
				r.set.Base = uint32(binary.LittleEndian.Uint16(r.set.Used.Mem[2:]))
			}
			b.start(0)
		}
		for i, id := range ids {
			if int(id) != i+1 {
				t.Fatalf("packet %d is %d", i, id)
			}
		}
		if len(ids) != 150 {
			t.Errorf("%d packets", len(ids))
		}
	})
}

// TestVirtMemoryMoves swaps the memory under traffic: the old one is not used any more.
func TestVirtMemoryMoves(t *testing.T) {
	inFormats(t, vnetModes, vPlain, func(t *testing.T, m mode, o vOptions) {
		b := newVbed(t, m, o)
		g := b.guest()
		g.post(200)
		for round := range 20 {
			for range 20 {
				g.put(vsent{frame: udp(200, 1)})
				g.put(vsent{frame: udp(9000, 1)})
			}
			g.tx.push()
			for range 5 {
				b.host.sendPlain(udp(200, 1))
			}
			must(t, b.w.poll(0)) // some work is under way
			b.w.round()
			g.move(b)
			b.settle()
			if n, got := g.sent(), len(g.received()); n != 40 || got != 5 || b.breach() != nil {
				t.Fatalf("round %d: %d packets from the guest, %d to it, %v", round, n, got, b.breach())
			}
			g.post(5)
			b.host.drain()
		}
	})
}

// TestVirtLog: the log of dirty pages has the pages of packets and rings, from the time
// when it is set until it is taken away.
func TestVirtLog(t *testing.T) {
	formats := []vOptions{{features: vModern | 1<<26}, {features: vModern | 1<<26, packed: true}, {features: vModern | 1<<26, grants: true}}
	inFormats(t, vnetModes, formats, func(t *testing.T, m mode, o vOptions) {
		if o.grants {
			return // grants have no log: their addresses have bit 63
		}
		b := newVbed(t, m, o)
		g := b.guest()
		q := b.queue()
		mem := make([]byte, (vBase+vMemory)/4096/8)
		l, err := virtqueue.NewLog(mem)
		must(t, err)
		dirty := func(addr uint64) bool { return mem[addr>>15]&(1<<(addr>>12&7)) != 0 }
		traffic := func() {
			g.post(10)
			g.send(vsent{frame: udp(100, 1)})
			b.host.sendPlain(udp(100, 1), udp(5000, 1))
			b.settle()
			g.sent()
			g.received()
		}
		traffic()
		if n := pages(mem); n != 0 {
			t.Errorf("%d pages without a log", n)
		}
		q.virt.log = l
		for _, r := range []*vring{&g.rx, &g.tx} {
			r.set.LogRing, r.set.LogAddr = true, r.set.Used.Guest
			must(t, b.w.updateRing(q, r.set))
		}
		traffic()
		if !dirty(g.last) || pages(mem) < 4 {
			t.Errorf("%d pages are dirty, of the packet %t", pages(mem), dirty(g.last))
		}
		for _, r := range []*vring{&g.rx, &g.tx} {
			at := r.set.Used.Guest
			if o.packed {
				at = r.set.Desc.Guest
			}
			if !dirty(at) && !dirty(at+4096) {
				t.Errorf("ring %d is not dirty", r.set.Index)
			}
		}
		q.virt.log = nil
		for _, r := range q.virt.rings() {
			r.log(nil)
		}
		clear(mem)
		traffic()
		if n := pages(mem); n != 0 {
			t.Errorf("%d pages after the log was taken away", n)
		}
	})
}

// pages counts the bits of a log.
func pages(log []byte) (n int) {
	for _, b := range log {
		for ; b != 0; b &= b - 1 {
			n++
		}
	}
	return n
}

// TestVirtNewCall: after UpdateRing the old descriptors are not used.
func TestVirtNewCall(t *testing.T) {
	inFormats(t, vnetModes[:1], vPlain, func(t *testing.T, m mode, o vOptions) {
		b := newVbed(t, m, o)
		g := b.guest()
		b.settle()
		old := g.tx.call
		eventCount(old)
		g.tx.call = eventfd(t)
		g.tx.set.Call = g.tx.call
		b.update(&g.tx)
		g.send(vsent{frame: udp(100, 1)})
		b.settle()
		if eventCount(old) != 0 || eventCount(g.tx.call) == 0 {
			t.Error("the old descriptor was used")
		}
		g.tx.set.Call = -1
		b.update(&g.tx)
		g.send(vsent{frame: udp(100, 1)})
		b.settle()
		if g.sent() != 2 || eventCount(g.tx.call) != 0 {
			t.Error("a ring without calls")
		}
	})
}
