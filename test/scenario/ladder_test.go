// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"slices"
	"testing"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
)

const (
	moreData = netif.TxMoreData
	hasExtra = netif.TxExtraInfo
)

// tiny is a packet of n data slots of 64 octets each.
func tiny(n int) (ops []guest.RawOp, frame []byte) {
	frame = plainFrame(64 * n)
	return inSlots(0, frame, slices.Repeat([]int{64}, n-1)...), frame
}

// A packet that breaks a rule, but not the ring, is answered with an error in
// each of its data slots, counted and forgotten. The packet behind it passes.
func TestBrokenPacketCostsThatPacket(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	p := g.prober()
	f := plainFrame(256)
	slots20, _ := tiny(20)
	slots21, _ := tiny(21)
	tests := []struct {
		name string
		ops  []guest.RawOp
		want []netif.Status
		why  dataplane.Counter
	}{
		{"later slot crosses its page", []guest.RawOp{head(moreData, 356, f), slot(0, 4000, 97)},
			each(2, failed), dataplane.DropTxCross},
		{"later slot of more than a page", []guest.RawOp{head(moreData, 5000, f), slot(0, 0, 4097)},
			each(2, failed), dataplane.DropTxCross},
		{"later slot crosses the end of 16 bits", []guest.RawOp{head(moreData, 356, f), slot(0, 0xffff, 2)},
			each(2, failed), dataplane.DropTxCross},
		{"first slot crosses its page", []guest.RawOp{ref("page", 0, 4000, 97)},
			each(1, failed), dataplane.DropTxCross},
		{"first slot crosses its page by what is left for it", []guest.RawOp{ref("page", moreData, 100, 5000), slot(0, 0, 1000)},
			each(2, failed), dataplane.DropTxCross},
		{"first slot crosses the end of 16 bits", []guest.RawOp{ref("page", 0, 0xfff0, 100)},
			each(1, failed), dataplane.DropTxCross},
		{"single slot of 64 KiB", []guest.RawOp{ref("page", 0, 0, 0xffff)},
			each(1, failed), dataplane.DropTxCross},
		{"GSO of segments of 0 octets", withExtras(inSlots(0, f), gso(netif.GSOTCPv4, 0)),
			each(1, failed), dataplane.DropTxGSO},
		{"GSO of no type", withExtras(inSlots(0, f), gso(netif.GSONone, 1000)),
			each(1, failed), dataplane.DropTxGSO},
		{"GSO of an unknown type, in three slots", withExtras(inSlots(0, f, 100, 100), gso(3, 1000)),
			each(3, failed), dataplane.DropTxGSO},
		{"20 data slots", slots20, each(20, failed), dataplane.DropTxSlots},
		{"21 data slots", slots21, each(21, failed), dataplane.DropTxSlots},
		{"21 data slots and an extra", withExtras(slots21, gso(netif.GSOTCPv4, 1000)), each(21, failed), dataplane.DropTxSlots},
		{"slots add up to more than the packet", []guest.RawOp{head(moreData, 300, f), slot(moreData, 0, 200), slot(0, 0, 101)},
			each(3, failed), dataplane.DropTxSize},
		{"later slot is larger than the packet", []guest.RawOp{head(moreData, 100, f), slot(0, 0, 101)},
			each(2, failed), dataplane.DropTxSize},
		// A frontend that forgot that the size has 16 bits.
		{"packet of 64 KiB whose size has wrapped", slices.Concat(
			[]guest.RawOp{head(moreData, 256, f)}, slices.Repeat([]guest.RawOp{slot(moreData, 0, 4096)}, 15), []guest.RawOp{slot(0, 0, 4096)}),
			each(17, failed), dataplane.DropTxSize},
		{"first slot of 13 octets", []guest.RawOp{head(moreData, 113, f), slot(0, 0, 100)},
			each(2, failed), dataplane.DropTxShort},
		{"first slot of no octets", []guest.RawOp{head(moreData, 100, f), slot(0, 0, 100)},
			each(2, failed), dataplane.DropTxShort},
		{"packet of 13 octets", inSlots(0, f[:13]), each(1, failed), dataplane.DropTxShort},
		{"packet of no octets", []guest.RawOp{ref("bogus", 0, 0, 0)}, each(1, failed), dataplane.DropTxShort},
		{"packet of no octets in three slots", []guest.RawOp{ref("bogus", moreData, 0, 0), slot(moreData, 0, 0), slot(0, 0, 0)},
			each(3, failed), dataplane.DropTxShort},
	}
	w.undisturbed(func() {
		for _, tt := range tests {
			w.situation(tt.name, func() {
				p.expect(tt.ops, tt.want, drops{tt.why: 1})
			})
		}
	})
	g.pings(3)
	g.innocent()
	if n := g.lines("ERROR") + g.lines("WARN"); n != 0 {
		t.Errorf("%d lines in the log about what a guest can do as often as it likes", n)
	}
}

func TestOddPacketThatIsLegalPasses(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	p := g.prober()
	slots18, frame18 := tiny(18)
	slots19, frame19 := tiny(19)
	f := plainFrame(300)
	large := plainFrame(0xffff)
	half := append(bytes.Clone(f[:150]), f[:150]...)
	atEnd := data(0, append(make([]byte, netif.PageSize-300), f...))
	atEnd.Offset, atEnd.Size = netif.PageSize-300, 300
	first := func(o guest.RawOp) []guest.RawOp { return []guest.RawOp{o} }
	tests := []struct {
		name  string
		ops   []guest.RawOp
		frame []byte
	}{
		{"18 data slots", slots18, frame18},
		{"19 data slots", slots19, frame19},
		{"19 data slots and three extras", withExtras(slots19, netif.NewHash(netif.HashInfo{Type: netif.HashIPv4, Algorithm: netif.HashAlgorithmToeplitz}),
			netif.NewHash(netif.HashInfo{}), netif.NewHash(netif.HashInfo{})), frame19},
		{"first slot of 14 octets, then one octet each", inSlots(0, f[:14+17], append([]int{14}, slices.Repeat([]int{1}, 17)...)...), f[:14+17]},
		{"65535 octets in 16 slots", inSlots(0, large, slices.Repeat([]int{4096}, 15)...), large},
		{"65535 octets in 18 slots", inSlots(0, large, append([]int{14, 4000}, slices.Repeat([]int{4096}, 15)...)...), large},
		{"65535 octets in 19 slots", inSlots(0, large, append([]int{100, 2000, 1900}, slices.Repeat([]int{4096}, 15)...)...), large},
		{"data ends with its page", first(atEnd), f},
		{"the same page twice", []guest.RawOp{head(moreData, 300, f[:150]), slot(0, 0, 150)}, half},
		{"later slot of no octets, with a bogus reference",
			[]guest.RawOp{head(moreData, 300, f), ref("bogus", 0, netif.PageSize, 0)}, f},
		{"all later slots of no octets",
			append(first(head(moreData, 300, f)), append(slices.Repeat([]guest.RawOp{ref("bogus", moreData, 0, 0)}, 17), ref("freed", 0, 0, 0))...), f},
		{"a slot of no octets in the middle of a packet in pages", []guest.RawOp{
			head(moreData, 3*4096, large[:4096]), ref("bogus", moreData, 9, 0), data(moreData, large[4096:2*4096]), ref("bogus", moreData, 0, 0), data(0, large[2*4096:3*4096])}, large[:3*4096]},
		{"a hash that nobody asked for", withExtras(inSlots(0, f), netif.NewHash(netif.HashInfo{Type: 99, Algorithm: 99, Value: 99})), f},
		{"checksum said to be good", inSlots(netif.TxDataValidated, f), f},
		{"flags that do not exist", inSlots(0xfff0, f), f},
		{"14 octets", inSlots(0, f[:14]), f[:14]},
		{"smallest size that is not copied into one piece", inSlots(0, large[:2049], 14), large[:2049]},
	}
	for _, tt := range tests {
		w.situation(tt.name, func() {
			p.expect(tt.ops, okays(tt.ops), drops{}, tt.frame)
		})
	}
	g.pings(3)
	g.innocent()
}

func TestAnswersKeepTheOrderAndTheIDsOfTheRequests(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	p := g.prober()
	f := plainFrame(64)
	var ops []guest.RawOp
	var want []netif.Status
	id := func(o guest.RawOp, id uint16) guest.RawOp { o.RingID = id; return o }
	for _, n := range []uint16{0xffff, 7, 0xffff, 0x8000, 1} {
		ops = append(ops,
			id(data(0, f), n),
			id(ref("bogus", 0, 0, 64), n),
			id(head(moreData|hasExtra, 128, f), n), more(netif.NewHash(netif.HashInfo{})), extra(netif.NewHash(netif.HashInfo{})), id(ref("last", 0, 0, 64), n+1),
			id(ref("page", 0, 0, 13), n),
		)
		want = append(want, okay, failed, okay, okay, failed)
	}
	answers, out := p.send(ops...)
	w.answered(want, answers)
	if len(out) != 10 {
		t.Errorf("%d frames came out, want 10", len(out))
	}
	g.innocent()
}

func TestRingFilledToTheLastSlotIsServed(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	p := g.prober()
	ops := []guest.RawOp{data(0, plainFrame(64))}
	for len(ops) < netif.TxRingSize-1 {
		ops = append(ops, slot(0, 0, 64))
	}
	for range 5 {
		answers, out := p.send(ops...)
		w.answered(each(len(ops), okay), answers)
		if len(out) != len(ops) {
			t.Errorf("%d frames came out, want %d", len(out), len(ops))
		}
	}
	g.innocent()
}

// What leaves nobody able to say where the next packet begins takes the vif out
// of service. What was good before it is delivered and answered, nothing after
// it is touched, and when the guest connects anew all is well.
func TestBreachOfTheTxRing(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	p := g.prober()
	f := plainFrame(64)
	prod := func(n int64) []guest.RawOp { return []guest.RawOp{{Op: "tx-prod", Value: n}, {Op: "kick"}} }
	slots22, _ := tiny(22)
	endless := append([]guest.RawOp{head(moreData, 0xffff, f)}, slices.Repeat([]guest.RawOp{slot(moreData, 0, 64)}, netif.TxRingSize-2)...)
	extras := append([]guest.RawOp{data(hasExtra, f)}, slices.Repeat([]guest.RawOp{more(gso(netif.GSOTCPv4, 1000))}, 20)...)
	tests := []struct {
		name   string
		ops    []guest.RawOp
		reason string
	}{
		{"req_prod 257 ahead", prod(257), "req_prod is out of bounds"},
		{"req_prod half of all numbers ahead", prod(1 << 31), "req_prod is out of bounds"},
		{"req_prod rewound by one", prod(-1), "req_prod is out of bounds"},
		{"req_prod rewound by a ring", prod(-256), "req_prod is out of bounds"},
		{"extra announced and not published", []guest.RawOp{data(hasExtra, f)}, "extra info announced but not published"},
		{"extras without end", extras, "extra info announced but not published"},
		{"extra of type 0", []guest.RawOp{data(hasExtra, f), extra(netif.ExtraInfo{})}, "extra info of none"},
		{"extra of type 5, which is Linux's", []guest.RawOp{data(hasExtra, f), extra(netif.ExtraInfo{Type: netif.ExtraXDP})}, "extra info of xdp"},
		{"extra of type 255", []guest.RawOp{data(hasExtra, f), more(gso(netif.GSOTCPv4, 9)), extra(netif.ExtraInfo{Type: 255})}, "extra info of unknown(255)"},
		{"packet published in part", []guest.RawOp{head(moreData, 128, f)}, "packet published in part"},
		{"packet published in part, behind an extra", []guest.RawOp{head(moreData|hasExtra, 128, f), extra(gso(netif.GSOTCPv4, 9))}, "packet published in part"},
		{"22 data slots", slots22, "packet without end"},
		{"packet without end", endless, "packet without end"},
	}
	w.undisturbed(func() {
		for _, tt := range tests {
			w.situation(tt.name, func() {
				before := g.drops()
				state := p.raw().TxRing
				ops, good := tt.ops, packetOf(tt.name)
				if ops[0].Op == "tx" {
					ops = append([]guest.RawOp{data(0, good)}, ops...)
				}
				ids := number(ops)
				var r guest.RawResult
				g.quarantined(tt.reason, func() { r = p.raw(append(ops, guest.RawOp{Op: "flush"})...) })
				if tt.ops[0].Op == "tx" {
					w.answered(each(1, okay), p.answers(ids[:1], r))
					p.c.until(good)
					if n := p.raw().TxRing.RspProd.Sub(state.RspProd); n != 1 {
						w.t.Errorf("%d slots were answered, want 1", n)
					}
				}
				g.dropped(before, drops{})
				g.reconnect()
			})
		}
	})
	g.innocent()
}

// packetOf is a frame with a text in it.
func packetOf(text string) []byte { return append(plainFrame(14), text...) }

// The same for the rx ring, which is looked at when there is something to
// deliver.
func TestBreachOfTheRxRing(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	p := g.prober()
	w.undisturbed(func() {
		for _, tt := range []struct {
			name string
			by   int64
		}{
			{"req_prod 257 ahead", 257},
			{"req_prod one ahead of a full ring", 1},
			{"req_prod rewound by a ring and one", -257},
			{"req_prod half of all numbers ahead", 1 << 31},
		} {
			w.situation(tt.name, func() {
				g.quarantined("rx ring: req_prod is out of bounds", func() {
					p.raw(guest.RawOp{Op: "rx-prod", Value: tt.by}, guest.RawOp{Op: "kick"})
					p.c.send(tap.VnetHdr{}, plainFrame(64))
				})
				g.reconnect()
			})
		}
	})
	g.innocent()
}

// The quarantine ends by hand as well: the guest completes what it published in
// part, and netbackd is told to try again.
func TestQuarantinedVifComesBackByReset(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	p := g.prober()
	frame := plainFrame(200)
	packet := inSlots(0, frame, 100)
	g.quarantined("packet published in part", func() {
		p.raw(append(packet[:1:1], guest.RawOp{Op: "flush"})...)
	})
	// Nothing is read of a ring in quarantine, whoever sends events.
	r := p.raw(packet[1], guest.RawOp{Op: "flush"}, guest.RawOp{Op: "kick"})
	w.must(w.Control().Reset(w.ctx, g.VifName()))
	w.answered(each(2, okay), p.answers([]uint16{0, 0}, r))
	if got := p.c.next(); !bytes.Equal(got.frame, frame) {
		t.Errorf("%d octets came out, want %d", len(got.frame), len(frame))
	}
	g.well()
	g.innocent()

	// A reset of what is still broken is no way back.
	g.quarantined("req_prod is out of bounds", func() {
		p.raw(guest.RawOp{Op: "tx-prod", Value: -1}, guest.RawOp{Op: "kick"})
	})
	w.must(w.Control().Reset(w.ctx, g.VifName()))
	g.waitStatus("the reset to fail", func(s *vif.Status) bool { return s.Error != "" && len(s.Queues) == 0 })
	g.reconnect()
}

// One queue's breach takes the whole vif out of service, since a guest that lies
// on one ring lies on all.
func TestBreachOnOneOfFourQueues(t *testing.T) {
	w := newWorld(t)
	g := w.guest(queues(4))
	p := g.prober()
	p.queue = 2
	w.undisturbed(func() {
		g.quarantined("queue 2: tx ring", func() {
			p.raw(head(moreData, 100, plainFrame(64)), guest.RawOp{Op: "flush"})
		})
		for q := range 4 {
			p.queue = q
			before := p.raw().TxRing.RspProd
			if now := p.raw(data(0, plainFrame(64)), guest.RawOp{Op: "flush"}, guest.RawOp{Op: "kick"}).TxRing.RspProd; now != before {
				t.Errorf("queue %d is served in quarantine", q)
			}
		}
		g.reconnect()
		g.tcpToHost(1 << 20)
	})
	g.innocent()
}

// A queue whose guest has one event channel is served like one with two.
func TestBreachWithASingleEventChannel(t *testing.T) {
	w := newWorld(t)
	g := w.guest(front(func(c *netfront.Config) { c.SplitEvents = false }))
	p := g.prober()
	answers, out := p.send(inSlots(0, plainFrame(300), 14, 1)...)
	w.answered(each(3, okay), answers)
	w.cameOut(out, plainFrame(300))
	g.quarantined("extra info of none", func() {
		p.raw(data(hasExtra, plainFrame(64)), extra(netif.ExtraInfo{}), guest.RawOp{Op: "flush"})
	})
	g.reconnect()
	g.innocent()
}
