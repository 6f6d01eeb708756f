// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/pkg/tap"
)

// TestVirtWaits: packets that find no buffers wait in order, until the guest posts some.
func TestVirtWaits(t *testing.T) {
	inFormats(t, vnetModes, vPlain, func(t *testing.T, m mode, o vOptions) {
		b := newVbed(t, m, o)
		g := b.guest()
		var want, got [][]byte
		for i := range 200 {
			n := 100
			if i%7 == 0 {
				n = 9000
			}
			want = append(want, udp(n, uint16(i)))
			b.host.sendPlain(want[i])
		}
		b.settle()
		if n := b.idle(t, func() {}); n != 0 {
			t.Errorf("%d events while packets wait", n)
		}
		if b.queue().waiting() == 0 || b.stat(RxParked) == 0 {
			t.Error("no packet waits")
		}
		for len(got) < len(want) {
			kicks := g.rx.kicks
			if g.post(3); g.rx.kicks == kicks {
				t.Fatalf("the device does not ask for kicks after %d packets", len(got))
			}
			b.settle()
			more := vframes(g.received())
			if got = append(got, more...); len(g.rx.bufs) == 256 {
				t.Fatalf("no packet after %d with all buffers", len(got))
			}
		}
		if diff := diffFrames(want, got); diff != "" {
			t.Error(diff)
		}
	})
}

// TestVirtDrainAndStall: packets that wait too long are dropped, and the owner learns of a
// guest that posts no buffers, and that it does again.
func TestVirtDrainAndStall(t *testing.T) {
	inFormats(t, vnetModes, vPlain, func(t *testing.T, m mode, o vOptions) {
		o.cfg.Drain, o.cfg.Stall = 2*time.Second, time.Second
		b := newVbed(t, m, o)
		g := b.guest()
		b.host.sendPlain(udp(100, 1), udp(100, 1))
		b.pass(900 * time.Millisecond)
		if len(b.notices) != 0 || b.stat(DropRxStalled) != 0 {
			t.Errorf("too early: %v, %v", b.notices, b.stats(Drop))
		}
		b.pass(200 * time.Millisecond)
		if len(b.notices) != 1 || b.notices[0] != (Notice{Kind: Stalled}) {
			t.Errorf("notices %v", b.notices)
		}
		b.pass(time.Second)
		if b.stat(DropRxStalled) != 2 || b.queue().waiting() != 0 {
			t.Errorf("not drained: %v", b.stats(Drop))
		}
		g.post(10)
		b.settle()
		if len(b.notices) != 2 || b.notices[1] != (Notice{Kind: Resumed}) {
			t.Errorf("notices %v", b.notices)
		}
		b.host.sendPlain(udp(100, 1))
		b.settle()
		if n := len(g.received()); n != 1 {
			t.Errorf("%d packets after the stall", n)
		}
	})
}

// TestVirtRate: the limit holds for packets of all sizes, and what is beyond it is sent
// later.
func TestVirtRate(t *testing.T) {
	inFormats(t, vnetModes, vPlain, func(t *testing.T, m mode, o vOptions) {
		lim := new(Limiter)
		o.cfg.Limiter = lim
		b := newVbed(t, m, o)
		g := b.guest()
		lim.Set(1_000_000, time.Second)
		frame := udp(60000, 1)
		sent := 0
		for range 30 {
			g.put(vsent{frame: frame})
		}
		g.tx.push()
		for range 10 {
			b.pass(100 * time.Millisecond)
			for range b.host.drain() {
				sent += len(frame)
			}
		}
		// A second's burst and a second.
		if sent < 1_800_000-2*len(frame) || sent > 2_000_000 {
			t.Errorf("%d bytes in a second", sent)
		}
		if b.stat(RateWaits) == 0 {
			t.Error("no wait is counted")
		}
		b.pass(time.Second)
		if g.sent() != 30 {
			t.Error("packets are missing")
		}
	})
}

// TestVirtManyPackets sends more than a turn takes, of all sizes.
func TestVirtManyPackets(t *testing.T) {
	inFormats(t, allModes, vFormats, func(t *testing.T, m mode, o vOptions) {
		o.size = 1024
		b := newVbed(t, m, o)
		g := b.guest()
		for round := range 3 {
			var want [][]byte
			for i := range 88 { // as there are buffers
				n := []int{20, 1400, 60000, 2000, 3000, 30000}[(i+round)%6]
				want = append(want, udp(n, uint16(i)))
				if !g.put(vsent{frame: want[i], alone: i%2 == 0}) {
					t.Fatal("the ring is full")
				}
			}
			g.tx.push()
			b.settle()
			if n := g.sent(); n != len(want) {
				t.Errorf("%d chains came back", n)
			}
			if diff := diffFrames(want, b.host.frames()); diff != "" {
				t.Fatal(diff)
			}
		}
	})
}

// TestVirtManySegments sends packets that have more segments than a turn may take: the
// others are returned to the ring and come next, in order.
func TestVirtManySegments(t *testing.T) {
	inFormats(t, allModes, vFormats, func(t *testing.T, m mode, o vOptions) {
		b := newVbed(t, m, o)
		g := b.guest()
		const mss, size, packets = 100, 20000, 20
		var want []packettest.Frame
		for i := range packets {
			f := partial(tcp(4, size))
			f.TCP.Seq = uint32(i << 20)
			want = append(want, f)
			if !g.put(vsent{vnet: vnetOf(f, mss), frame: f.Bytes(), alone: true, parts: []int{66, size}}) {
				t.Fatal("the ring is full")
			}
		}
		g.tx.push()
		must(t, b.w.poll(0))
		b.w.round()
		if n := b.stat(TxPackets); n == 0 || n > turnSegments*mss/size+1 {
			t.Errorf("%d packets in a turn", n)
		}
		b.settle()
		if n := g.sent(); n != packets {
			t.Errorf("%d chains came back", n)
		}
		got := b.host.received()
		for i, f := range want {
			if !m.vnet {
				segments(t, "a packet", got[:size/mss], f, mss, 1)
				got = got[size/mss:]
				continue
			}
			sameFrames(t, "a packet", got[i:i+1], tap.VnetHdr{
				Flags: tap.VnetNeedsCsum, GSOType: tap.VnetGSOTCPv4, GSOSize: mss, CsumStart: 34, CsumOffset: 16,
			}, f.Bytes(), 1)
		}
		if n := b.stat(HostSegments); n != packets*size/mss {
			t.Errorf("%d segments are counted", n)
		}
	})
}
