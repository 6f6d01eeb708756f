// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// asBytes compares frames as a whole. Byte by byte it takes seconds for long ones, with the race
// detector.
var asBytes = cmp.Comparer(bytes.Equal)

func framesOf(ds []delivery) (frames [][]byte) {
	for _, d := range ds {
		frames = append(frames, d.Frame)
	}
	return frames
}

// vnetOf returns the header with which the host leaves the checksum of f open, and with
// an mss also its segmentation.
func vnetOf(f packettest.Frame, mss int) tap.VnetHdr {
	p, err := packettest.Decode(f.Bytes())
	if err != nil {
		panic(err)
	}
	v := tap.VnetHdr{Flags: tap.VnetNeedsCsum, CsumStart: uint16(p.L4), CsumOffset: 6}
	if f.TCP != nil {
		v.CsumOffset = 16
	}
	if mss != 0 {
		v.GSOType, v.GSOSize, v.HdrLen = tap.VnetGSOTCPv4, uint16(mss), uint16(p.End)
		if f.IPv6 != nil {
			v.GSOType = tap.VnetGSOTCPv6
		}
	}
	return v
}

const validated, blank = netif.RxDataValidated, netif.RxCsumBlank

// TestRxOffload sends packets with every offload of the host to guests that take all or
// some offloads, and checks the deliveries.
func TestRxOffload(t *testing.T) {
	guests := []struct {
		name string
		sg   bool
		g    offload.Guest
	}{
		{"everything", true, full.Guest},
		{"no GSO", true, offload.Guest{CsumIPv4: true, CsumIPv6: true}},
		{"IPv4 only", true, offload.Guest{CsumIPv4: true, GSOTCPv4: true}},
		{"no offload", true, offload.Guest{}},
		{"no sg", false, offload.Guest{CsumIPv4: true, CsumIPv6: true}},
		{"nothing", false, offload.Guest{}},
	}
	sctp := packettest.Frame{IPv4: &packettest.IPv4{}, SCTP: &packettest.SCTP{}, Payload: packettest.Pattern(100)}
	unsummed := sctp.Bytes()
	copy(unsummed[14+20+8:], []byte{0, 0, 0, 0})
	frames := []struct {
		name   string
		frame  packettest.Frame
		vnet   tap.VnetHdr
		raw    []byte // instead of frame, before its checksum is done
		mss    int
		tagged bool
		keep   bool // offloads pass if the guest takes them
	}{
		{name: "finished", frame: packettest.Frame{IPv4: &packettest.IPv4{}, UDP: &packettest.UDP{}, Payload: packettest.Pattern(1400)}},
		{name: "not IP", frame: packettest.Frame{EtherType: packettest.TypeARP, Payload: packettest.Pattern(46)}},
		{name: "open UDP over IPv4", frame: partial(packettest.Frame{IPv4: &packettest.IPv4{}, UDP: &packettest.UDP{}, Payload: packettest.Pattern(1401)}), keep: true},
		{name: "open TCP over IPv6", frame: partial(tcp(6, 1400)), keep: true},
		{name: "open TCP behind a tag", frame: partial(tcp(4, 1400, vlan)), tagged: true},
		{name: "open SCTP", frame: sctp, raw: unsummed,
			vnet: tap.VnetHdr{Flags: tap.VnetNeedsCsum, CsumStart: 34, CsumOffset: 8}},
		{name: "GSO over IPv4", frame: partial(tcp(4, 60000)), mss: 1448, keep: true},
		{name: "GSO over IPv6", frame: partial(tcp(6, 33333)), mss: 1428, keep: true},
		{name: "GSO behind a tag", frame: partial(tcp(4, 20000, vlan)), mss: 1400, tagged: true},
		{name: "GSO behind two tags", frame: partial(tcp(6, 20000, qinq, vlan)), mss: 1400, tagged: true},
		{name: "GSO with segments of more than a page", frame: partial(tcp(4, 20000, vlan)), mss: 5000, tagged: true},
	}
	modes := allModes[:2] // a TAP without vnet header has no offloads
	inModes(t, modes, func(t *testing.T, m mode) {
		for _, g := range guests {
			cfg := full
			cfg.Guest, cfg.SG = g.g, g.sg
			b := newBed(t, m, setup{cfg: cfg})
			f := b.front()
			for _, tt := range frames {
				what := fmt.Sprintf("%s to a guest that takes %s", tt.name, g.name)
				v := tt.vnet
				if tt.frame.Partial {
					v = vnetOf(tt.frame, tt.mss)
				}
				raw := tt.raw
				if raw == nil {
					raw = tt.frame.Bytes()
				}
				takes := g.g.CsumIPv4
				takesGSO := g.g.GSOTCPv4
				if tt.frame.IPv6 != nil {
					takes, takesGSO = g.g.CsumIPv6, g.g.GSOTCPv6
				}
				f.post(int(f.rx.Free()))
				b.host.send(hostFrame{v, raw})
				b.settle()
				got := f.received()

				switch {
				case tt.mss > netif.PageSize && !g.sg:
					if len(got) != 0 || b.stat(DropRxSize) != 1 {
						t.Errorf("%s: %d packets, %v", what, len(got), b.stats(Drop))
					}
					b.queue().stats.n[DropRxSize].Store(0)
				case tt.mss != 0 && tt.keep && takesGSO:
					want := delivery{
						Frame: raw, Flags: blank | validated,
						GSO: netif.GSOInfo{Size: uint16(tt.mss), Type: netif.GSOTCPv4},
					}
					if tt.frame.IPv6 != nil {
						want.GSO.Type = netif.GSOTCPv6
					}
					sameDelivery(t, what, want, got)
				case tt.mss != 0:
					var cut []hostFrame
					for _, d := range got {
						if d.Flags != validated || d.Slots != (len(d.Frame)+netif.PageSize-1)/netif.PageSize {
							t.Errorf("%s: segment %v", what, d)
						}
						cut = append(cut, hostFrame{Frame: d.Frame})
					}
					segments(t, what, cut, tt.frame, tt.mss, 1)
				case tt.frame.Partial && tt.keep && takes:
					sameDelivery(t, what, delivery{Frame: raw, Flags: blank | validated}, got)
				case tt.frame.Partial:
					finished := tt.frame
					finished.Partial = false
					sameDelivery(t, what, delivery{Frame: finished.Bytes(), Flags: validated}, got)
				default:
					want := delivery{Frame: tt.frame.Bytes()}
					if tt.raw != nil && len(got) == 1 {
						want.Flags = got[0].Flags // of no meaning for SCTP
					}
					sameDelivery(t, what, want, got)
				}
			}
			if d := b.stats(Drop); len(d) > 0 {
				t.Errorf("%s: drops %v", g.name, d)
			}
			b.disconnect()
		}
	})
}

func sameDelivery(t *testing.T, what string, want delivery, got []delivery) {
	t.Helper()
	want.Slots = (len(want.Frame) + netif.PageSize - 1) / netif.PageSize
	for left := len(want.Frame); left > 0; left -= netif.PageSize {
		want.Statuses = append(want.Statuses, netif.Status(min(left, netif.PageSize)))
	}
	if want.GSO.Type != 0 {
		want.Slots++
	}
	if len(got) == 1 && bytes.Equal(got[0].Frame, want.Frame) {
		want.Frame, got[0].Frame = nil, nil
	}
	if diff := cmp.Diff([]delivery{want}, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// TestRxOnAPlainTAP: packets of a TAP without vnet header are finished, and their checksum
// is not marked as validated.
func TestRxOnAPlainTAP(t *testing.T) {
	inModes(t, allModes[2:], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		f := b.front()
		f.post(256)
		frame := udp(1400, 5)
		b.host.sendPlain(frame)
		b.settle()
		sameDelivery(t, "a packet", delivery{Frame: frame}, f.received())
		// The kernel completes the offloads that the TAP lacks.
		open := partial(tcp(4, 1400))
		b.host.send(hostFrame{vnetOf(open, 0), open.Bytes()})
		b.settle()
		open.Partial = false
		sameDelivery(t, "an open packet", delivery{Frame: open.Bytes()}, f.received())
	})
}

// TestRxInOrder: many packets of all sizes, in the order in which the host sent
// them, in slots that follow each other.
func TestRxInOrder(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		f := b.front()
		sizes := []int{1, 4054, 4055, 5000, 1400, 20, 60000, 30, 8150, 8151, 100, 100, 100, 1, 2, 3, 4, 5, 6, 7, 8, 9}
		var want [][]byte
		for round := range 20 {
			f.post(int(f.rx.Free()))
			for i, n := range sizes {
				large := partial(tcp(4, n))
				large.TCP.Seq = uint32(1000*round + i)
				mss := 0
				if n > 1448 {
					mss = 1448
				}
				want = append(want, large.Bytes())
				b.host.send(hostFrame{vnetOf(large, mss), large.Bytes()})
			}
			b.settle()
			got := framesOf(f.received())
			if len(got) > len(want) {
				t.Fatalf("%d packets, want %d", len(got), len(want))
			}
			for i := range got {
				if !bytes.Equal(got[i], want[i]) {
					t.Fatalf("round %d: packet %d differs: %d bytes, want %d", round, i, len(got[i]), len(want[i]))
				}
			}
			want = want[len(got):]
		}
		if len(want) > 0 {
			t.Errorf("%d packets did not come", len(want))
		}
		if n := b.stat(RxSlots); uint32(n) != uint32(f.rx.RspCons()) {
			t.Errorf("%d slots counted, %d used", n, f.rx.RspCons())
		}
	})
}

// TestRxAnySizes: small packets are read to places close together, and a larger packet
// among them overruns the next places. In any mix all packets arrive as they were sent.
func TestRxAnySizes(t *testing.T) {
	inModes(t, allModes, func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		f := b.front()
		const headers = 14 + 20 + 8
		size := rapid.OneOf(
			rapid.IntRange(18, 1500),
			rapid.IntRange(rxDense-headers-2, rxDense-headers+2),
			rapid.IntRange(smallPacket-headers-2, smallPacket-headers+2),
			rapid.IntRange(netif.PageSize-headers-2, netif.PageSize-headers+2),
			rapid.IntRange(1500, 30000),
		)
		rapid.Check(t, func(t *rapid.T) {
			var sent [][]byte
			slots := 0
			for range rapid.IntRange(1, 80).Draw(t, "packets") {
				n := size.Draw(t, "bytes")
				if slots += int(slotsOf(n + headers)); slots > netif.RxRingSize {
					break
				}
				frame := udp(n, uint16(len(sent)))
				frame[len(frame)-1] = byte(len(sent))
				sent = append(sent, frame)
			}
			f.post(int(f.rx.Free()))
			b.host.sendPlain(sent...)
			b.settle()
			same(t, sent, framesOf(f.received()))
		})
		if d := b.stats(Drop); len(d) > 0 {
			t.Errorf("drops %v", d)
		}
	})
}

// TestRxNeedsExactly: a packet is delivered with exactly as many slots as it takes. With
// one less it waits, and the queue requests an event at the missing slot.
func TestRxNeedsExactly(t *testing.T) {
	open := partial(tcp(4, 20000)).Bytes()
	large := partial(tcp(4, 60000))
	tagged := partial(tcp(4, 20000, vlan))
	tests := []struct {
		name  string
		frame hostFrame
		need  int
	}{
		{"one slot", hostFrame{Frame: udp(100, 1)}, 1},
		{"a full page", hostFrame{Frame: udp(4096-42, 1)}, 1},
		{"a byte more", hostFrame{Frame: udp(4096-41, 1)}, 2},
		{"GSO", hostFrame{vnetOf(partial(tcp(4, 20000)), 1448), open}, (len(open)+4095)/4096 + 1},
		{"GSO of the largest size", hostFrame{vnetOf(large, 1448), large.Bytes()}, 16},
		{"a segment", hostFrame{vnetOf(tagged, 1400), tagged.Bytes()}, 1},
		{"a segment of just a page", hostFrame{vnetOf(tagged, 4096-18-20-32), tagged.Bytes()}, 1},
		{"a segment of a byte more", hostFrame{vnetOf(tagged, 4096-18-20-31), tagged.Bytes()}, 2},
	}
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		for _, tt := range tests {
			b := newBed(t, m, setup{cfg: full})
			f := b.front()
			f.post(tt.need - 1)
			b.host.send(tt.frame)
			b.settle()
			if got := f.received(); got != nil {
				t.Errorf("%s: delivered with %d slots: %v", tt.name, tt.need-1, got)
			}
			if s := b.queue().rx.State(); uint32(s.ReqEvent) != uint32(tt.need) {
				t.Errorf("%s: asks for an event at slot %d, want %d", tt.name, s.ReqEvent, tt.need)
			}
			f.post(1)
			b.settle()
			got := f.received()
			if len(got) != 1 || got[0].Slots != tt.need {
				t.Errorf("%s: delivered with %d slots: %v", tt.name, tt.need, got)
			}
			b.disconnect()
		}
	})
}

// TestRxWaits: packets that find no slots wait in order. Meanwhile the worker neither
// reads the TAP nor checks the rings, until the guest sends an event for new slots.
func TestRxWaits(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		f := b.front()
		var want [][]byte
		for i := range 40 {
			want = append(want, udp(10, uint16(i)))
		}
		b.host.sendPlain(want...)
		b.settle()
		s := b.conn.queues[0]
		if s.backlog.len() == 0 || s.backlog.len() == len(want) || s.tapIn.armed {
			t.Errorf("%d packets held, TAP watched: %v", s.backlog.len(), s.tapIn.armed)
		}
		reads := b.stat(TapReadCalls)
		b.host.sendPlain(udp(10, 40))
		want = append(want, udp(10, 40))
		if n := b.settle(); n != 0 {
			t.Errorf("%d rounds without slots", n)
		}
		if n := b.stat(TapReadCalls); n != reads {
			t.Error("TAP was read without slots")
		}
		f.post(5)
		b.settle()
		got := framesOf(f.received())
		if len(got) != 5 {
			t.Errorf("%d packets in 5 slots", len(got))
		}
		f.post(100)
		b.settle()
		got = append(got, framesOf(f.received())...)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("packets (-want +got):\n%s", diff)
		}
		if !s.tapIn.armed || s.backlog.len() != 0 {
			t.Errorf("%d packets held, TAP watched: %v", s.backlog.len(), s.tapIn.armed)
		}
		if n := b.settle(); n != 0 {
			t.Errorf("%d rounds without work", n)
		}
	})
}

// TestRxSlotsThatComeUnasked are seen with the next packet.
func TestRxSlotsThatComeUnasked(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		f := b.front()
		f.post(1) // asked for by the ring's initial state
		b.settle()
		wakes := b.stat(Wakes)
		f.post(10)
		if n := b.settle(); n != 0 || b.stat(Wakes) != wakes {
			t.Errorf("%d rounds, %d wakes for slots that no packet waits for", n, b.stat(Wakes)-wakes)
		}
		for i := range 11 {
			b.host.sendPlain(udp(10, uint16(i)))
		}
		b.settle()
		if n := len(f.received()); n != 11 {
			t.Errorf("%d packets, want 11", n)
		}
	})
}

// TestRxDrain: packets that wait too long are dropped, and no others. A guest that posts
// no slots is stalled, and resumes when it posts slots.
func TestRxDrain(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		cfg := full
		cfg.Drain, cfg.Stall = 10*time.Second, 25*time.Second
		b := newBed(t, m, setup{cfg: cfg})
		f := b.front()
		b.host.sendPlain(udp(100, 1))
		b.settle()
		b.pass(9 * time.Second)
		if got := b.stats(Drop); len(got) != 0 {
			t.Errorf("dropped too early: %v", got)
		}
		b.pass(time.Second)
		if got := b.stats(Drop); !cmp.Equal(got, map[string]uint64{"rx_stalled": 1}) {
			t.Errorf("drops after 10 s: %v", got)
		}
		// The TAP is read again, once.
		b.host.sendPlain(udp(100, 2))
		b.settle()
		b.pass(10 * time.Second)
		if got := b.stats(Drop); !cmp.Equal(got, map[string]uint64{"rx_stalled": 2}) {
			t.Errorf("drops after 20 s: %v", got)
		}
		if len(b.notices) != 0 {
			t.Errorf("noticed too early: %v", b.notices)
		}
		b.host.sendPlain(udp(100, 3))
		b.pass(5 * time.Second)
		if diff := cmp.Diff([]Notice{{Kind: Stalled}}, b.notices); diff != "" {
			t.Errorf("notices after 25 s (-want +got):\n%s", diff)
		}
		// It is said once.
		b.pass(100 * time.Second)
		if diff := cmp.Diff([]Notice{{Kind: Stalled}}, b.notices); diff != "" {
			t.Errorf("notices after 125 s (-want +got):\n%s", diff)
		}
		b.host.sendPlain(udp(100, 4))
		b.settle()
		f.post(3)
		b.settle()
		if diff := cmp.Diff([]Notice{{Kind: Stalled}, {Kind: Resumed}}, b.notices); diff != "" {
			t.Errorf("notices in the end (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([][]byte{udp(100, 4)}, framesOf(f.received()), asBytes); diff != "" {
			t.Errorf("packets in the end (-want +got):\n%s", diff)
		}
		if d := b.queue().deadline(); !d.IsZero() {
			t.Errorf("deadline %v with nothing to do", d)
		}
	})
}

// TestRxResumesWithoutAPacket: a stalled guest resumes as soon as it posts slots, even if
// all packets have been dropped by then.
func TestRxResumesWithoutAPacket(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		cfg := full
		cfg.Drain, cfg.Stall = time.Second, 2*time.Second
		b := newBed(t, m, setup{cfg: cfg})
		f := b.front()
		frame := partial(tcp(4, 20000))
		f.post(5) // 6 are needed: XSA-392
		b.host.send(hostFrame{vnetOf(frame, 1448), frame.Bytes()})
		b.settle()
		b.pass(5 * time.Second)
		if diff := cmp.Diff([]Notice{{Kind: Stalled}}, b.notices); diff != "" {
			t.Errorf("notices of a guest that gives too few slots (-want +got):\n%s", diff)
		}
		f.post(1)
		b.settle()
		if diff := cmp.Diff([]Notice{{Kind: Stalled}, {Kind: Resumed}}, b.notices); diff != "" {
			t.Errorf("notices (-want +got):\n%s", diff)
		}
	})
}

// TestRxDropsByAge: when a large packet is dropped, a smaller one behind it gets the slots
// that were too few for the large one.
func TestRxDropsByAge(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		q, f := b.queue(), b.front()
		f.post(3)
		large := partial(tcp(4, 20000))
		q.backlog.push(large.Bytes(), &offload.RxPlan{}, b.now)
		b.now = b.now.Add(time.Second)
		q.backlog.push(udp(10, 1), &offload.RxPlan{}, b.now)
		b.w.sched.schedule(q)
		b.settle()
		b.pass(DefaultDrain - time.Second)
		if diff := cmp.Diff([][]byte{udp(10, 1)}, framesOf(f.received()), asBytes); diff != "" {
			t.Errorf("packets (-want +got):\n%s", diff)
		}
		if got := b.stats(Drop); !cmp.Equal(got, map[string]uint64{"rx_stalled": 1}) {
			t.Errorf("drops: %v", got)
		}
	})
}

// TestRxWithoutNotify: the rx ring of a guest without feature-rx-notify is polled, for a
// short time only.
func TestRxWithoutNotify(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		cfg := full
		cfg.RxNotify = false
		b := newBed(t, m, setup{cfg: cfg})
		f := b.front()
		f.post(1)
		b.settle()
		quiet := func(n int) { // slots without an event
			for range n {
				f.rx.Put(netif.RxRequest{ID: 1, Gref: firstRef})
				f.posted[(f.rx.ReqProd()-1)%netif.RxRingSize] = netif.RxRequest{ID: 1, Gref: firstRef}
			}
			f.rx.Push()
		}
		b.host.sendPlain(udp(10, 1), udp(10, 2))
		b.settle()
		b.pass(10 * time.Millisecond)
		quiet(1)
		b.pass(2 * time.Millisecond)
		if n := len(f.received()); n != 2 {
			t.Errorf("%d packets delivered, want 2", n)
		}
		b.host.sendPlain(udp(10, 3))
		b.settle()
		b.pass(100 * time.Millisecond)
		if got := b.stats(Drop); !cmp.Equal(got, map[string]uint64{"rx_stalled": 1}) {
			t.Errorf("drops: %v", got)
		}
		if d := b.queue().deadline(); !d.IsZero() {
			t.Errorf("deadline %v with nothing held", d)
		}
		b.pass(10 * time.Minute)
		if len(b.notices) != 0 {
			t.Errorf("a guest that cannot be judged was: %v", b.notices)
		}
		quiet(5)
		b.host.sendPlain(udp(10, 4))
		b.settle()
		if n := len(f.received()); n != 1 {
			t.Errorf("%d packets delivered in the end, want 1", n)
		}
	})
}

// TestRxTooBig: packets that a guest without sg cannot take are dropped, and those behind
// them are not.
func TestRxTooBig(t *testing.T) {
	inModes(t, allModes, func(t *testing.T, m mode) {
		cfg := full
		cfg.SG, cfg.Guest.GSOTCPv4, cfg.Guest.GSOTCPv6 = false, false, false
		b := newBed(t, m, setup{cfg: cfg, offload: &tap.Offload{}})
		f := b.front()
		f.post(20)
		b.host.sendPlain(udp(4054, 1), udp(4055, 2), udp(10, 3))
		b.settle()
		if diff := cmp.Diff([][]byte{udp(4054, 1), udp(10, 3)}, framesOf(f.received()), asBytes); diff != "" {
			t.Errorf("packets (-want +got):\n%s", diff)
		}
		b.host.sendPlain(udp(4055, 4), udp(4055, 5))
		b.settle()
		if got := b.stats(Drop); !cmp.Equal(got, map[string]uint64{"rx_too_big": 3}) {
			t.Errorf("drops: %v", got)
		}
		if len(b.notices) != 1 || b.notices[0] != (Notice{Kind: TooBig}) {
			t.Errorf("notices: %v, want one for all", b.notices)
		}
	})
}

// TestRxBacklog: a whole read of the largest packets comes where small ones are expected,
// to a guest that has slots for a few or that needs them segmented. None is lost.
func TestRxBacklog(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		for _, tt := range []struct {
			name  string
			frame packettest.Frame
			each  int // packets that the guest gets of one
		}{
			{"GSO", partial(tcp(4, 65000)), 1},
			{"GSO behind a tag", partial(tcp(4, 65000, vlan)), (65000 + 1447) / 1448},
		} {
			b := newBed(t, m, setup{cfg: full})
			f := b.front()
			h := hostFrame{vnetOf(tt.frame, 1448), tt.frame.Bytes()}
			f.post(256)
			b.settle()
			b.queue().reader.run.expected = rxReads
			for range rxReads {
				b.host.send(h)
			}
			b.settle()
			if n := b.queue().backlog.bytes(); m.uring && n <= keepBytes {
				t.Errorf("%s: %d bytes are held, no more than if they had been expected", tt.name, n)
			}
			n := 0
			for got := f.received(); len(got) > 0; got = f.received() {
				n += len(got)
				f.post(int(f.rx.Free()))
				b.settle()
			}
			if n != rxReads*tt.each {
				t.Errorf("%s: %d packets, want %d", tt.name, n, rxReads*tt.each)
			}
			if got := b.stats(Drop); len(got) != 0 {
				t.Errorf("%s: drops: %v", tt.name, got)
			}
			if b.queue().backlog.paid > alignUp(keepBytes, memStep) {
				t.Errorf("%s: the backlog keeps its memory", tt.name)
			}
			b.disconnect()
		}
	})
}

// TestReadsAreComparedOnTheQueuesFile: the comparison uses the file number of the queue and
// not that of another one.
func TestReadsAreComparedOnTheQueuesFile(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		if !m.uring {
			t.Skip("no io_uring")
		}
		b := newBed(t, m, setup{cfg: full, queues: 2})
		b.w.detach(b.queue()) // number 0 is free, and has no file
		other := b.conn.queues[1]
		b.w.detach(other)
		b.w.queues = []*Queue{b.queue(), nil} // as if it were taken
		b.fronts[1].events.rebind()
		c, err := newConn(full, []QueueConfig{func() QueueConfig {
			q := b.fronts[1].config()
			q.Tap = b.tap.Queue(1)
			return q
		}()})
		must(t, err)
		q := c.queues[0]
		q.worker.Store(b.w)
		b.w.reads.compared = false
		must(t, b.w.attach(q))
		if q.id != 1 || !b.w.reads.compared {
			t.Fatalf("number %d, compared %v", q.id, b.w.reads.compared)
		}
		if r := b.w.uring.cqes[0].Res; r == -int32(unix.EBADF) {
			t.Error("compared on a file that is not there")
		}
		b.w.detach(q)
		b.w.queues[0] = nil
	})
}

// TestRxReadsInVain: with io_uring few reads find the TAP empty, once the runs are like the
// previous ones.
func TestRxReadsInVain(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	upTo := func(most int) func() int { return func() int { return 1 + random.IntN(most) } }
	always := func(n int) func() int { return func() int { return n } }
	alternately := func(list ...int) func() int {
		i := 0
		return func() int { i++; return list[i%len(list)] }
	}
	for _, tt := range []struct {
		name    string
		backlog func() int
		vain    float64 // of reads through io_uring, at most
		calls   float64 // per packet, at most
	}{
		{"one at a time", always(1), 0, 1.08},
		{"few", always(7), 0, 1.2},
		{"40", always(40), 0, 0.076},
		{"128", always(128), 0, 0.04},
		{"more than there are slots", always(5000), 0.02, 0.02},
		{"few after many", alternately(60, 3), 0.3, 0.85},
		{"some", upTo(20), 0.35, 0.85},
		{"many", upTo(200), 0.2, 0.2},
	} {
		r := &tapReader{slots: 18}
		var packets, calls, posted, vain int
		for round := range 1000 {
			if round == 10 {
				packets, calls, posted, vain = 0, 0, 0, 0
			}
			left := tt.backlog()
			packets += left
			for {
				want := r.want(256, true, 0)
				got := min(want, left)
				left -= got
				// As tapReader.read does it.
				switch sure := r.run.endless(); {
				case want <= rxFew:
					calls += min(got+1, want)
				case got == 0 && !sure:
					calls++
				default:
					calls++
					posted += want
					vain += want - got
					if !sure {
						calls++
						posted--
					}
				}
				if more := r.run.note(got, got == want); !more && left == 0 {
					break
				}
			}
		}
		if f := float64(vain) / float64(max(posted, 1)); f > tt.vain {
			t.Errorf("%s: %.3f of reads in vain, want %.3f", tt.name, f, tt.vain)
		}
		if f := float64(calls) / float64(packets); f > tt.calls {
			t.Errorf("%s: %.3f calls per packet, want %.3f", tt.name, f, tt.calls)
		}
	}
}

// TestRxBurstAfterPings: packets that came alone for long do not hide a burst for long.
func TestRxBurstAfterPings(t *testing.T) {
	for pings := range 100 {
		var r readRun
		turns := 0
		read := func(left int) {
			for left > 0 {
				want := r.want(true)
				got := min(want, left)
				left -= got
				if more := r.note(got, got == want); !more {
					turns++
				}
			}
		}
		for range pings {
			read(1)
		}
		turns = 0
		read(1000)
		if turns > 1<<(maxLonely-someLonely)+1 {
			t.Errorf("after %d packets one at a time: %d turns for 1000", pings, turns)
		}
		turns = 0
		read(1000)
		if turns > 2 {
			t.Errorf("then %d turns for 1000", turns)
		}
	}
}

// TestRxWhereIoUringIsDear: where io_uring is slower, packets are read with system calls
// until a run is endless. The comparison takes no packet from the TAP.
func TestRxWhereIoUringIsDear(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		f := b.front()
		for i, tt := range []struct {
			dear    bool
			run     int // packets there were
			byCalls bool
		}{{false, 0, false}, {true, 0, true}, {true, rxSure, false}} {
			var want [][]byte
			for k := range 64 {
				want = append(want, udp(k, uint16(i)))
			}
			f.post(int(f.rx.Free()))
			b.host.sendPlain(want...)
			q := b.queue()
			b.w.reads.compared = false
			q.reader.compare(b.w)
			if !b.w.reads.compared {
				t.Error("nothing was compared")
			}
			b.w.reads.ringSlow = tt.dear
			q.reader.run.read, q.reader.run.expected, q.reader.run.previous = tt.run, tt.run+64, tt.run+64
			before := b.stat(TapReadCalls)
			b.settle()
			if diff := cmp.Diff(want, framesOf(f.received()), asBytes); diff != "" {
				t.Errorf("%+v: packets (-want +got):\n%s", tt, diff)
			}
			if n := b.stat(TapReadCalls) - before; (n >= 64) != tt.byCalls {
				t.Errorf("%+v: %d calls", tt, n)
			}
		}
	})
}

// TestRxBadOffload: a frame with an impossible offload is dropped.
func TestRxBadOffload(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		q, w, f := b.queue(), b.w, b.front()
		f.post(20)
		b.settle()
		bad := []tap.VnetHdr{
			{Flags: tap.VnetNeedsCsum, CsumStart: 50, CsumOffset: 5000},
			{Flags: tap.VnetNeedsCsum, CsumStart: 34, CsumOffset: 6, GSOType: 3, GSOSize: 100},
			{Flags: tap.VnetNeedsCsum, CsumStart: 34, CsumOffset: 16, GSOType: tap.VnetGSOTCPv6, GSOSize: 100},
		}
		// The kernel sends no such frame, so the test writes it to the arena.
		batch := &w.rx
		*batch = rxBatch{}
		batch.free, _ = q.rx.Available()
		for _, v := range bad {
			w.planFrame(q, batch, w.arrive(v, udp(100, 1)))
		}
		for _, n := range []int{0, 13, maxFrame + 1} {
			w.planFrame(q, batch, rxFrame{rxLineFrom, q.vnetLen + n})
		}
		w.planFrame(q, batch, w.arrive(tap.VnetHdr{}, udp(100, 2)))
		w.deliver(q, batch)
		q.stats.flush(&w.tally)
		if diff := cmp.Diff([][]byte{udp(100, 2)}, framesOf(f.received()), asBytes); diff != "" {
			t.Errorf("packets (-want +got):\n%s", diff)
		}
		if got := b.stats(Drop); !cmp.Equal(got, map[string]uint64{"rx_bad_offload": 3, "rx_too_big": 3}) {
			t.Errorf("drops: %v", got)
		}
	})
}

// arrive puts a frame in the arena as a read of a TAP with vnet header would.
func (w *worker) arrive(v tap.VnetHdr, frame []byte) rxFrame {
	at := rxLineFrom
	v.Encode(w.rxMem.mem[at-tap.VnetHdrLen : at])
	return rxFrame{at, tap.VnetHdrLen + copy(w.rxMem.mem[at:], frame)}
}

// TestRxGrantThatFails: the slot is marked, its packet is lost, and no other.
func TestRxGrantThatFails(t *testing.T) {
	large := udp(12000, 2)
	tests := []struct {
		name   string
		break_ func(f *front)
		want   [][]netif.Status
		drops  uint64
		bytes  int
	}{{
		name:   "second page of three",
		break_: func(f *front) { must(f.tb, f.guest.SetProt(f.postedRef(2), gntdev.ReadOnly)) },
		want:   [][]netif.Status{{52}, {4096, -1, 3850}, {53}},
		drops:  1, bytes: 52 + 53,
	}, {
		name: "two pages of one packet, one of another",
		break_: func(f *front) {
			for k, st := range map[int]gntdev.Status{1: gntdev.StatusBadGntref, 3: gntdev.StatusGeneralError, 4: gntdev.StatusEagain} {
				f.guest.FailRef(xentest.OpCopy, f.postedRef(k), st)
			}
		},
		want:  [][]netif.Status{{52}, {-1, 4096, -1}, {-1}},
		drops: 2, bytes: 52,
	}, {
		name:   "the whole call",
		break_: func(f *front) { f.beforeCopy(0, func() error { return unix.EFAULT }) },
		want:   [][]netif.Status{{-1}, {-1, -1, -1}, {-1}},
		drops:  3,
	}}
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		for _, tt := range tests {
			b := newBed(t, m, setup{cfg: full, offload: &tap.Offload{}})
			f := b.front()
			b.host.sendPlain(udp(1, 0), udp(1, 0), udp(1, 0), udp(1, 0)) // so that three come at once
			f.post(4)
			b.settle()
			f.received()
			f.post(7)
			b.settle()
			for i := range NumCounters {
				b.queue().stats.n[i].Store(0)
			}
			b.queue().reader.run.expected, b.queue().reader.large.some = 3, true
			tt.break_(f)
			b.host.sendPlain(udp(10, 1), large, udp(11, 3))
			b.settle()
			var got [][]netif.Status
			for _, d := range f.received() {
				got = append(got, d.Statuses)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("%s: statuses (-want +got):\n%s", tt.name, diff)
			}
			if n := b.stat(DropRxGrant); n != tt.drops {
				t.Errorf("%s: %d packets lost, want %d", tt.name, n, tt.drops)
			}
			if n := b.stat(RxPackets); n != 3-tt.drops {
				t.Errorf("%s: %d packets delivered, want %d", tt.name, n, 3-tt.drops)
			}
			if n := b.stat(RxBytes); n != uint64(tt.bytes) {
				t.Errorf("%s: %d bytes delivered, want %d", tt.name, n, tt.bytes)
			}
			b.host.sendPlain(udp(10, 4))
			b.settle()
			if diff := cmp.Diff([][]byte{udp(10, 4)}, framesOf(f.received()), asBytes); diff != "" {
				t.Errorf("%s: the next packet (-want +got):\n%s", tt.name, diff)
			}
			b.disconnect()
		}
	})
}

// TestRxWritesAllOfASlot: nothing of the backend's memory is in the response,
// XSA-216, and of a page only what belongs to the packet is written.
func TestRxWritesAllOfASlot(t *testing.T) {
	inModes(t, allModes[:1], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		f := b.front()
		for i := range frontPages * netif.PageSize {
			f.mem[rxPages+i] = 0xa5
		}
		for i := range 3 {
			q := netif.RxRequest{ID: uint16(i), Gref: firstRef + frontPages + xen.Gref(i)}
			f.posted[i] = q
			f.rx.Put(q)
		}
		f.rx.Push()
		open := partial(tcp(4, 5000))
		b.host.send(hostFrame{vnetOf(open, 1448), open.Bytes()})
		b.settle()
		want := []netif.RxSlot{
			netif.RxResponse{ID: 0, Flags: blank | validated | netif.RxMoreData | netif.RxExtraInfo, Status: 4096}.Slot(),
			netif.NewGSO(netif.GSOInfo{Size: 1448, Type: netif.GSOTCPv4}).Slot(),
			netif.RxResponse{ID: 2, Status: netif.Status(len(open.Bytes()) - 4096)}.Slot(),
		}
		for i := range want {
			if got := f.rx.Slot(netif.Index(i)); got != want[i] {
				t.Errorf("slot %d: %#x, want %#x", i, got, want[i])
			}
		}
		last := f.page(firstRef + frontPages + 2)[want[2].Response().Status:]
		extra := f.page(firstRef + frontPages + 1)
		for _, c := range append(extra, last...) {
			if c != 0xa5 {
				t.Fatal("a byte beyond the packet was written")
			}
		}
	})
}

// TestRxOverflow: a guest that posts more slots than the ring has is in breach.
func TestRxOverflow(t *testing.T) {
	inModes(t, allModes[:2], func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		f := b.front()
		b.settle()
		f.rx.SetReqProd(f.rx.RspCons().Add(257))
		b.host.sendPlain(udp(10, 1))
		b.settle()
		if err := b.breach(); err == nil {
			t.Error("no breach")
		}
		b.host.sendPlain(udp(10, 1))
		f.events.send(rxPort)
		if n := b.settle(); n != 0 {
			t.Errorf("%d rounds of a queue at rest", n)
		}
	})
}
