// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/toeplitz"
	"github.com/netbackd/netbackd/pkg/xen"
)

// TestNoAllocation runs whole turns, from the guest's event to the last response, through
// every path that a packet can take, and counts allocations.
func TestNoAllocation(t *testing.T) {
	open := partial(tcp(4, 20000))
	tagged := partial(tcp(4, 20000, vlan))
	cases := []struct {
		name string
		tx   []packet
		rx   []hostFrame
		set  func(b *bed)
		// counts is a counter that proves that the case took its path.
		counts Counter
	}{
		{name: "small packets", tx: []packet{{frame: udp(18, 1)}, {frame: udp(18, 1)}, {frame: udp(18, 1)}, {frame: udp(18, 1)}}, counts: TxPackets},
		{name: "one packet", tx: []packet{{frame: udp(1400, 1)}}, counts: TxPackets},
		{name: "large packets", tx: []packet{{frame: udp(9000, 1)}, {frame: udp(3000, 1)}}, counts: TxPackets},
		{name: "open checksums", tx: []packet{{frame: partial(tcp(6, 1400)).Bytes(), flags: netif.TxCsumBlank}}, counts: TxPackets},
		{name: "GSO", tx: []packet{{frame: open.Bytes(), flags: netif.TxCsumBlank, slots: tail(len(open.Bytes()), 14, 20), extras: []netif.ExtraInfo{gso(4, 1448)}}}, counts: TxGSO},
		{name: "packets that are dropped", tx: []packet{{frame: udp(1, 1)[:10]}, {frame: arp(), flags: netif.TxCsumBlank}}, counts: DropTxShort},
		{name: "bad grants", tx: []packet{{frame: udp(1, 1)}}, counts: DropTxGrant, set: func(b *bed) {
			for i := range frontPages {
				must(b.tb, b.front().guest.Revoke(firstRef+xen.Gref(i)))
			}
		}},
		{name: "multicast", tx: []packet{
			{extras: []netif.ExtraInfo{netif.NewMcast(true, mac(1))}},
			{extras: []netif.ExtraInfo{netif.NewMcast(false, mac(1))}},
		}, counts: McastChanges},
		{name: "packets to the guest", rx: []hostFrame{{Frame: udp(18, 1)}, {Frame: udp(1400, 1)}, {Frame: udp(18, 1)}}, counts: RxPackets},
		{name: "multicast to the guest", rx: []hostFrame{{Frame: append([]byte{1, 2, 3, 4, 5, 6}, udp(18, 1)[6:]...)}}, counts: DropRxMcast, set: func(b *bed) {
			b.conn.cfg.Mcast.SetFilter(true)
		}},
		{name: "GSO to the guest", rx: []hostFrame{{vnetOf(open, 1448), open.Bytes()}}, counts: RxGSO},
		{name: "a checksum to finish", rx: []hostFrame{{vnetOf(open, 0), open.Bytes()}}, counts: CsumCompleted, set: func(b *bed) {
			b.queue().guest.CsumIPv4 = false
		}},
		{name: "segments to cut", rx: []hostFrame{{vnetOf(tagged, 1400), tagged.Bytes()}}, counts: Segmented},
		{name: "packets that wait for slots", rx: []hostFrame{{Frame: udp(18, 1)}, {Frame: udp(18, 1)}}, counts: RxParked, set: func(b *bed) {
			b.queue().reader.run.expected = 16
		}},
		{name: "pages that cannot be written", rx: []hostFrame{{Frame: udp(18, 1)}}, counts: DropRxGrant, set: func(b *bed) {
			for i := range frontPages {
				must(b.tb, b.front().guest.SetProt(firstRef+frontPages+xen.Gref(i), gntdev.ReadOnly))
			}
		}},
		{name: "static grants, small", tx: []packet{{frame: udp(18, 1)}, {frame: udp(1400, 1)}}, rx: []hostFrame{{Frame: udp(18, 1)}, {Frame: udp(1400, 1)}}, counts: StaticHits, set: func(b *bed) {
			b.front().allStatic()
		}},
		{name: "static grants, large", tx: []packet{{frame: udp(9000, 1)}}, rx: []hostFrame{{Frame: udp(9000, 1)}, {Frame: udp(9000, 1)}, {Frame: udp(18, 1)}}, counts: StaticHits, set: func(b *bed) {
			b.front().allStatic()
		}},
		{name: "static grants, GSO", tx: []packet{{frame: open.Bytes(), flags: netif.TxCsumBlank, slots: tail(len(open.Bytes()), 14, 20), extras: []netif.ExtraInfo{gso(4, 1448)}}},
			rx: []hostFrame{{vnetOf(open, 1448), open.Bytes()}, {vnetOf(open, 1448), open.Bytes()}, {vnetOf(tagged, 1400), tagged.Bytes()}}, counts: RxGSO, set: func(b *bed) {
				b.front().allStatic()
			}},
		{name: "static grants, some", tx: []packet{{frame: udp(9000, 1)}, {frame: udp(18, 1)}}, rx: []hostFrame{{Frame: udp(9000, 1)}, {Frame: udp(18, 1)}}, counts: StaticMisses, set: func(b *bed) {
			for i := 0; i < 2*frontPages; i += 2 {
				b.front().makeStatic(0, firstRef+xen.Gref(i))
			}
		}},
		{name: "a page that may only be read", rx: []hostFrame{{Frame: udp(18, 1)}}, counts: DropRxReadOnly, set: func(b *bed) {
			b.front().makeStatic(netif.GrefReadOnly, refs(frontPages, 2*frontPages)...)
		}},
		{name: "hashes", rx: []hostFrame{{Frame: udp(18, 1)}, {vnetOf(open, 1448), open.Bytes()}, {Frame: arp()}}, counts: RxHash, set: func(b *bed) {
			b.queue().setHash(&steer.Config{Hasher: hasher(b.tb), Types: toeplitz.AllTypes})
		}},
		{name: "headroom", rx: []hostFrame{{Frame: udp(18, 1)}, {Frame: udp(9000, 1)}, {vnetOf(open, 1448), open.Bytes()}}, counts: RxXDPSplit, set: func(b *bed) {
			b.queue().setXDPHeadroom(256)
		}},
		{name: "a rate", tx: []packet{{frame: udp(18, 1)}}, counts: TxPackets, set: func(b *bed) {
			b.conn.cfg.Limiter = new(Limiter)
			b.conn.cfg.Limiter.Set(1<<40, 1)
		}},
	}
	inModes(t, allModes, func(t *testing.T, m mode) {
		for _, tt := range cases {
			if !m.vnet && tt.counts != TxPackets && tt.rx != nil && tt.rx[0].Vnet != (tap.VnetHdr{}) {
				continue // a TAP without vnet header finishes it itself
			}
			b := newBed(t, m, setup{cfg: full})
			f, q := b.front(), b.queue()
			b.settle()
			if tt.set != nil {
				tt.set(b)
			}
			// All that the guest and the host do, prepared.
			var slots []func()
			for _, p := range tt.tx {
				r := f.requests(p)
				total, flags, extras := len(p.frame), p.flags, p.extras
				r[0].Size = uint16(total)
				r[0].Flags |= flags
				if len(extras) > 0 {
					r[0].Flags |= netif.TxExtraInfo
				}
				slots = append(slots, func() {
					f.tx.Put(r[0])
					for _, e := range extras {
						f.tx.PutExtra(e)
					}
					for _, q := range r[1:] {
						f.tx.Put(q)
					}
				})
			}
			var sends [][]byte
			for _, r := range tt.rx {
				hdr := make([]byte, tap.VnetHdrLen)
				r.Vnet.Encode(hdr)
				sends = append(sends, append(hdr[:packetHdrLen], r.Frame...))
			}
			cycle := func() {
				for _, put := range slots {
					put()
				}
				for _, s := range sends {
					_, _ = unix.Write(b.host.fd, s)
				}
				f.push()
				f.post(int(f.rx.Free()))
				b.settle()
				n, _ := f.tx.Responses()
				f.tx.Take(n)
				n, _ = f.rx.Responses()
				f.rx.Take(n)
				for {
					if _, err := unix.Read(b.host.fd, b.host.buf); err != nil {
						break
					}
				}
			}
			if tt.counts == RxParked {
				// The ring is kept short.
				cycle = func() {
					for _, s := range sends {
						_, _ = unix.Write(b.host.fd, s)
					}
					b.settle()
					f.post(len(sends))
					b.settle()
					n, _ := f.rx.Responses()
					f.rx.Take(n)
				}
			}
			cycle()
			if n := testing.AllocsPerRun(20, cycle); n != 0 {
				t.Errorf("%s: %v allocations", tt.name, n)
			}
			if q.stats.Load(tt.counts) < 20 {
				t.Errorf("%s: did not happen: %v", tt.name, b.stats(Traffic, Drop))
			}
			b.disconnect()
		}
	})
}
