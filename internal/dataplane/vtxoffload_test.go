// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/pkg/tap"
)

// vFew are formats for tests of what does not depend on the format.
var vFew = []vOptions{
	{features: vModern | virtHostUSO, indirect: true},
	{features: vModern | virtHostUSO, packed: true},
	{features: vModern | virtHostUSO, grants: true},
	{features: (vModern | virtHostUSO) &^ (virtVersion1 | virtMrgRxbuf)}, // a header of 10 bytes
}

// usoOf returns the header of a datagram that is to be cut.
func usoOf(f packettest.Frame, size int) tap.VnetHdr {
	v := vnetOf(f, 0)
	v.GSOType, v.GSOSize = tap.VnetGSOUDP, uint16(size)
	return v
}

// vlayouts returns ways to spread n bytes over the pieces of a chain.
func vlayouts(n int) (l []vsent) {
	l = []vsent{{}, {alone: true}, {alone: true, parts: []int{14, n - 14}}}
	if n > 300 {
		l = append(l, vsent{parts: []int{1, 20, 33, 1, n - 55}}, vsent{alone: true, parts: []int{54, 200, n - 254}})
	}
	return l
}

// TestVirtTxOffload sends packets with offloads, and checks the vnet header at the host or,
// without vnet headers, the finished packets.
func TestVirtTxOffload(t *testing.T) {
	cwr := partial(tcp(4, 20000))
	cwr.TCP.Flags |= packettest.CWR
	open4 := partial(packettest.Frame{IPv4: &packettest.IPv4{}, UDP: &packettest.UDP{}, Payload: packettest.Pattern(1001)})
	tests := []struct {
		name  string
		frame packettest.Frame
		asks  tap.VnetHdr
		want  *tap.VnetHdr // nil: as asked for
		mss   int
		vnet  bool // only with vnet headers
	}{
		{name: "open UDP over IPv4", frame: open4},
		{name: "open UDP over IPv6, large", frame: partial(udp6(9000))},
		{name: "open TCP over IPv4", frame: partial(tcp(4, 1448))},
		{name: "open TCP over IPv6, tiny", frame: partial(tcp(6, 1))},
		{name: "open TCP behind a tag", frame: partial(tcp(4, 1400, vlan))},
		{name: "GSO over IPv4", frame: partial(tcp(4, 20000)), mss: 1448},
		{name: "GSO over IPv6", frame: partial(tcp(6, 20000)), mss: 1428},
		{name: "GSO behind a tag", frame: partial(tcp(4, 9000, vlan)), mss: 1400},
		{name: "the largest packet", frame: partial(tcp(4, 0xffff-14-20-32)), mss: 1448},
		{
			name: "GSO of a packet that needs none", frame: partial(tcp(4, 1000)), asks: vnetOf(partial(tcp(4, 1000)), 1448),
			want: &tap.VnetHdr{Flags: tap.VnetNeedsCsum, CsumStart: 34, CsumOffset: 16},
		},
		{
			name: "GSO with CWR", frame: cwr, asks: withECN(vnetOf(cwr, 1448)), mss: 1448, vnet: true,
		},
		{
			name: "UDP to be cut", frame: partial(udp6(9000)), asks: usoOf(partial(udp6(9000)), 1200), vnet: true,
		},
		{
			name: "a header length that is wrong", frame: partial(tcp(4, 20000)), mss: 1448,
			asks: tap.VnetHdr{
				Flags: tap.VnetNeedsCsum, GSOType: tap.VnetGSOTCPv4, GSOSize: 1448,
				HdrLen: 60000, CsumStart: 34, CsumOffset: 16,
			},
		},
	}
	inFormats(t, allModes, vFew, func(t *testing.T, m mode, o vOptions) {
		b := newVbed(t, m, o)
		b.queue().coalescer.what = CoalesceOff // the host must see each packet
		g := b.guest()
		for _, tt := range tests {
			if tt.vnet && !m.vnet {
				continue
			}
			frame := tt.frame.Bytes()
			asks := tt.asks
			if asks == (tap.VnetHdr{}) {
				asks = vnetOf(tt.frame, tt.mss)
			}
			want := asks
			if tt.want != nil {
				want = *tt.want
			}
			want.HdrLen = 0
			for i, p := range vlayouts(len(frame)) {
				what := fmt.Sprintf("%s, layout %d", tt.name, i)
				const copies = 4
				p.vnet, p.frame = asks, frame
				g.send(p, p, p, p)
				b.settle()
				if n := g.sent(); n != copies {
					t.Errorf("%s: %d chains came back", what, n)
				}
				got := b.host.received()
				switch {
				case m.vnet:
					sameFrames(t, what, got, want, frame, copies)
				case tt.mss == 0:
					finished := tt.frame
					finished.Partial = false
					sameFrames(t, what, got, tap.VnetHdr{}, finished.Bytes(), copies)
				default:
					segments(t, what, got, tt.frame, tt.mss, copies)
				}
			}
		}
		if d := b.stats(Drop); len(d) > 0 || b.breach() != nil {
			t.Errorf("drops: %v, %v", d, b.breach())
		}
	})
}

func withECN(v tap.VnetHdr) tap.VnetHdr {
	v.GSOType |= tap.VnetGSOECN
	return v
}

// TestVirtTxDrops sends packets that are dropped and counted by their reason, each between
// two that are not.
func TestVirtTxDrops(t *testing.T) {
	large, open := partial(tcp(4, 20000)), partial(udp6(9000))
	gso := vnetOf(large, 1448)
	with := func(v tap.VnetHdr, f func(v *tap.VnetHdr)) tap.VnetHdr { f(&v); return v }
	all := vModern | uint64(virtHostUSO)
	tests := []struct {
		name     string
		features uint64
		p        vsent
		reason   Counter
	}{
		{"shorter than an Ethernet header", all, vsent{frame: make([]byte, 13)}, DropTxShort},
		{"no more than a vnet header", all, vsent{alone: true, parts: []int{}}, DropTxShort},
		{"longer than a frame", all, vsent{frame: make([]byte, maxFrame+1)}, DropTxTooBig},
		{"a checksum at the end", all, vsent{vnet: tap.VnetHdr{Flags: 1, CsumStart: 50, CsumOffset: 9}, frame: make([]byte, 60)}, DropTxCsum},
		{"a checksum far away", all, vsent{vnet: tap.VnetHdr{Flags: 1, CsumStart: 0xffff, CsumOffset: 0xffff}, frame: make([]byte, 60)}, DropTxCsum},
		{"a checksum without the feature", all &^ virtCsum, vsent{vnet: vnetOf(large, 0), frame: large.Bytes()}, DropTxCsum},
		{"GSO without the feature", all &^ virtHostTSO4, vsent{vnet: gso, frame: large.Bytes()}, DropTxGSO},
		{"ECN without the feature", all &^ virtHostECN, vsent{vnet: withECN(gso), frame: large.Bytes()}, DropTxGSO},
		{"USO without the feature", all &^ virtHostUSO, vsent{vnet: usoOf(open, 1000), frame: open.Bytes()}, DropTxGSO},
		{"GSO without a checksum", all, vsent{vnet: with(gso, func(v *tap.VnetHdr) { v.Flags = 0 }), frame: large.Bytes()}, DropTxGSO},
		{"GSO of an unknown type", all, vsent{vnet: with(gso, func(v *tap.VnetHdr) { v.GSOType = 3 }), frame: large.Bytes()}, DropTxGSO},
		{"GSO of the other IP", all, vsent{vnet: with(gso, func(v *tap.VnetHdr) { v.GSOType = tap.VnetGSOTCPv6 }), frame: large.Bytes()}, DropTxGSO},
		{"GSO of UDP", all, vsent{vnet: gso, frame: open.Bytes()}, DropTxGSO},
		{"USO of TCP", all, vsent{vnet: usoOf(large, 1000), frame: large.Bytes()}, DropTxGSO},
		{"GSO size of 0", all, vsent{vnet: with(gso, func(v *tap.VnetHdr) { v.GSOSize = 0 }), frame: large.Bytes()}, DropTxGSO},
		{"GSO size of 7", all, vsent{vnet: vnetOf(large, 7), frame: large.Bytes()}, DropTxGSOSmall},
		{"2049 segments", all, vsent{vnet: vnetOf(large, 9), frame: large.Bytes()}, DropTxSegments},
	}
	inFormats(t, allModes, vFew, func(t *testing.T, m mode, o vOptions) {
		legacy := vModern &^ o.features
		for _, tt := range tests {
			o.features = tt.features &^ legacy
			b := newVbed(t, m, o)
			g := b.guest()
			good := vsent{frame: udp(100, 1)}
			g.send(good, tt.p, good)
			b.settle()
			if n := g.sent(); n != 3 {
				t.Errorf("%s: %d chains came back", tt.name, n)
			}
			if diff := diffFrames([][]byte{good.frame, good.frame}, b.host.frames()); diff != "" {
				t.Errorf("%s: %s", tt.name, diff)
			}
			if b.stat(tt.reason) != 1 || len(b.stats(Drop)) != 1 {
				t.Errorf("%s: drops %v", tt.name, b.stats(Drop))
			}
			b.disconnect()
		}
	})
}
