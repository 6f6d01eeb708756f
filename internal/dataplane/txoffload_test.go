// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
)

// tcp returns a TCP segment with a payload of n bytes over IPv4 or IPv6.
func tcp(ipv, n int, tags ...packettest.Tag) packettest.Frame {
	f := packettest.Frame{
		Tags: tags,
		TCP: &packettest.TCP{
			Seq: 1000, Ack: 1, Flags: packettest.ACK | packettest.PSH, Window: 500,
			Options: []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2},
		},
		Payload: packettest.Pattern(n),
	}
	if ipv == 4 {
		f.IPv4 = &packettest.IPv4{ID: 77, DF: true}
	} else {
		f.IPv6 = &packettest.IPv6{FlowLabel: 5}
	}
	return f
}

// udp6 returns a datagram over IPv6.
func udp6(n int) packettest.Frame {
	return packettest.Frame{IPv6: &packettest.IPv6{}, UDP: &packettest.UDP{}, Payload: packettest.Pattern(n)}
}

// partial returns f with an open checksum.
func partial(f packettest.Frame) packettest.Frame {
	f.Partial = true
	return f
}

func gso(ipv, size int) netif.ExtraInfo {
	t := netif.GSOTCPv4
	if ipv == 6 {
		t = netif.GSOTCPv6
	}
	return netif.NewGSO(netif.GSOInfo{Size: uint16(size), Type: t})
}

// vlan is a tag of the customer, qinq one of the provider.
var (
	vlan = packettest.Tag{TCI: 42}
	qinq = packettest.Tag{TPID: packettest.TypeQinQ, TCI: 7}
)

// layouts returns ways to spread n bytes over slots.
func layouts(n int) map[string][]int {
	l := map[string][]int{
		"whole pages":     nil,
		"header alone":    tail(n, 14),
		"header cut":      tail(n, 14, 1, 1, 1, 1, 1, 1, 1),
		"headers by ones": tail(n, 14, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1),
		"with none":       tail(n, 20, 0, 30, 0, 0),
	}
	for _, k := range []int{17, 18, 19} { // XSA-423, XSA-432
		first := max(14, n/k)
		l[fmt.Sprintf("%d slots", k)] = append([]int{first}, parts(n-first, k-1)...)
	}
	for name, s := range l {
		if len(s) > 19 {
			delete(l, name)
		}
	}
	return l
}

// tail returns sizes and, in pages, the rest of n.
func tail(n int, sizes ...int) []int {
	for _, s := range sizes {
		n -= s
	}
	sizes = slices.Clone(sizes)
	for n > 0 {
		sizes = append(sizes, min(n, netif.PageSize))
		n -= netif.PageSize
	}
	return sizes
}

// TestTxOffload sends packets with offloads in many layouts of slots. It checks the vnet
// header at the host or, without vnet headers, the finished packets.
func TestTxOffload(t *testing.T) {
	tests := []struct {
		name   string
		frame  packettest.Frame
		flags  netif.TxFlags
		extras []netif.ExtraInfo
		vnet   tap.VnetHdr // as the host should see it
		mss    int         // segments that are made where there is no vnet header
	}{
		{name: "finished UDP", frame: packettest.Frame{IPv4: &packettest.IPv4{}, UDP: &packettest.UDP{}, Payload: packettest.Pattern(1000)}},
		{name: "verified UDP", frame: udp6(1000), flags: netif.TxDataValidated},
		{
			name: "open UDP over IPv4", frame: partial(packettest.Frame{IPv4: &packettest.IPv4{}, UDP: &packettest.UDP{}, Payload: packettest.Pattern(1001)}),
			flags: netif.TxCsumBlank | netif.TxDataValidated,
			vnet:  tap.VnetHdr{Flags: tap.VnetNeedsCsum, CsumStart: 34, CsumOffset: 6},
		},
		{
			name: "open UDP over IPv6, large", frame: partial(udp6(9000)), flags: netif.TxCsumBlank,
			vnet: tap.VnetHdr{Flags: tap.VnetNeedsCsum, CsumStart: 54, CsumOffset: 6},
		},
		{
			name: "open TCP over IPv4", frame: partial(tcp(4, 1448)), flags: netif.TxCsumBlank,
			vnet: tap.VnetHdr{Flags: tap.VnetNeedsCsum, CsumStart: 34, CsumOffset: 16},
		},
		{
			name: "open TCP over IPv6, tiny", frame: partial(tcp(6, 1)), flags: netif.TxCsumBlank,
			vnet: tap.VnetHdr{Flags: tap.VnetNeedsCsum, CsumStart: 54, CsumOffset: 16},
		},
		{
			name: "open UDP of no payload", frame: partial(udp6(0)), flags: netif.TxCsumBlank,
			vnet: tap.VnetHdr{Flags: tap.VnetNeedsCsum, CsumStart: 54, CsumOffset: 6},
		},
		{
			name: "open TCP behind a tag", frame: partial(tcp(4, 1400, vlan)), flags: netif.TxCsumBlank,
			vnet: tap.VnetHdr{Flags: tap.VnetNeedsCsum, CsumStart: 38, CsumOffset: 16},
		},
		{
			name: "open TCP behind two tags and an extension header",
			frame: partial(packettest.Frame{
				Tags: []packettest.Tag{qinq, vlan},
				IPv6: &packettest.IPv6{Ext: []packettest.Ext{packettest.Options(packettest.ProtoDest, 16)}},
				TCP:  &packettest.TCP{Flags: packettest.ACK}, Payload: packettest.Pattern(1400),
			}),
			flags: netif.TxCsumBlank,
			vnet:  tap.VnetHdr{Flags: tap.VnetNeedsCsum, CsumStart: 78, CsumOffset: 16},
		},
		{
			name: "GSO over IPv4", frame: partial(tcp(4, 20000)), flags: netif.TxCsumBlank | netif.TxDataValidated,
			extras: []netif.ExtraInfo{gso(4, 1448)}, mss: 1448,
			vnet: tap.VnetHdr{Flags: tap.VnetNeedsCsum, CsumStart: 34, CsumOffset: 16, GSOType: tap.VnetGSOTCPv4, GSOSize: 1448},
		},
		{
			name: "GSO over IPv6", frame: partial(tcp(6, 20000)), flags: netif.TxCsumBlank,
			extras: []netif.ExtraInfo{gso(6, 1428)}, mss: 1428,
			vnet: tap.VnetHdr{Flags: tap.VnetNeedsCsum, CsumStart: 54, CsumOffset: 16, GSOType: tap.VnetGSOTCPv6, GSOSize: 1428},
		},
		{
			name: "GSO that forgot csum_blank", frame: tcp(4, 20000),
			extras: []netif.ExtraInfo{gso(4, 1448)}, mss: 1448,
			vnet: tap.VnetHdr{Flags: tap.VnetNeedsCsum, CsumStart: 34, CsumOffset: 16, GSOType: tap.VnetGSOTCPv4, GSOSize: 1448},
		},
		{
			name: "GSO over IPv6 that forgot csum_blank, with a hash", frame: tcp(6, 20000),
			extras: []netif.ExtraInfo{netif.NewHash(netif.HashInfo{}), gso(6, 1000)}, mss: 1000,
			vnet: tap.VnetHdr{Flags: tap.VnetNeedsCsum, CsumStart: 54, CsumOffset: 16, GSOType: tap.VnetGSOTCPv6, GSOSize: 1000},
		},
		{
			name: "GSO of a packet that needs none", frame: partial(tcp(4, 1000)), flags: netif.TxCsumBlank,
			extras: []netif.ExtraInfo{gso(4, 1448)},
			vnet:   tap.VnetHdr{Flags: tap.VnetNeedsCsum, CsumStart: 34, CsumOffset: 16},
		},
		{
			name: "GSO behind a tag", frame: partial(tcp(4, 9000, vlan)), flags: netif.TxCsumBlank,
			extras: []netif.ExtraInfo{gso(4, 1400)}, mss: 1400,
			vnet: tap.VnetHdr{Flags: tap.VnetNeedsCsum, CsumStart: 38, CsumOffset: 16, GSOType: tap.VnetGSOTCPv4, GSOSize: 1400},
		},
		{
			name: "the largest packet", frame: partial(tcp(4, 0xffff-14-20-32)), flags: netif.TxCsumBlank,
			extras: []netif.ExtraInfo{gso(4, 1448)}, mss: 1448,
			vnet: tap.VnetHdr{Flags: tap.VnetNeedsCsum, CsumStart: 34, CsumOffset: 16, GSOType: tap.VnetGSOTCPv4, GSOSize: 1448},
		},
	}
	inModes(t, allModes, func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		b.queue().coalescer.what = CoalesceOff // the host must see each packet
		f := b.front()
		for _, tt := range tests {
			frame := tt.frame.Bytes()
			if tt.frame.TCP != nil && tt.flags&netif.TxCsumBlank == 0 {
				// The content of the checksum field must not matter.
				l4 := bytes.Index(frame, []byte{0x9c, 0x40, 0x01, 0xbb})
				frame[l4+16] ^= 0x55
			}
			var sent int
			for name, sizes := range layouts(len(frame)) {
				what := fmt.Sprintf("%s, %s", tt.name, name)
				// Several at a time, for io_uring.
				var want []answer
				const copies = 4
				for range copies {
					want = append(want, f.put(packet{frame: frame, flags: tt.flags, slots: sizes, extras: tt.extras})...)
				}
				f.push()
				b.settle()
				sent += copies
				if diff := cmp.Diff(want, f.answers()); diff != "" {
					t.Errorf("%s: answers (-want +got):\n%s", what, diff)
				}
				got := b.host.received()
				switch {
				case m.vnet:
					fixed := frame
					if tt.flags&netif.TxCsumBlank == 0 && tt.mss != 0 {
						fixed = partial(tt.frame).Bytes()
					}
					sameFrames(t, what, got, tt.vnet, fixed, copies)
				case tt.mss == 0:
					finished := tt.frame
					finished.Partial = false
					sameFrames(t, what, got, tap.VnetHdr{}, finished.Bytes(), copies)
				default:
					segments(t, what, got, tt.frame, tt.mss, copies)
				}
			}
			if n := b.stat(TxPackets); n != uint64(sent) {
				t.Errorf("%s: %d packets counted, want %d", tt.name, n, sent)
			}
			if n := b.stat(TxBytes); n != uint64(sent*len(frame)) {
				t.Errorf("%s: %d bytes counted, want %d", tt.name, n, sent*len(frame))
			}
			for i := range NumCounters {
				b.queue().stats.n[i].Store(0)
			}
		}
		if d := b.stats(Drop); len(d) > 0 {
			t.Errorf("drops: %v", d)
		}
	})
}

// sameFrames checks that got is n times frame with the header vnet.
func sameFrames(t *testing.T, what string, got []hostFrame, vnet tap.VnetHdr, frame []byte, n int) {
	t.Helper()
	if len(got) != n {
		t.Errorf("%s: %d frames at the host, want %d", what, len(got), n)
	}
	for _, g := range got {
		// The kernel adds a hint of the header length, and that the sum is right.
		g.Vnet.HdrLen = 0
		g.Vnet.Flags &^= tap.VnetDataValid
		if g.Vnet == vnet && bytes.Equal(g.Frame, frame) {
			continue
		}
		if diff := cmp.Diff(hostFrame{vnet, frame}, g); diff != "" {
			t.Errorf("%s: at the host (-want +got):\n%s", what, diff)
			return
		}
	}
}

// segments checks that got is n times the packet cut into finished segments.
func segments(t *testing.T, what string, got []hostFrame, of packettest.Frame, mss, n int) {
	t.Helper()
	count := (len(of.Payload) + mss - 1) / mss
	if len(got) != n*count {
		t.Errorf("%s: %d segments, want %d", what, len(got), n*count)
		return
	}
	for len(got) > 0 {
		var payload []byte
		for i := range count {
			p, err := packettest.Verify(got[i].Frame)
			if err != nil {
				t.Errorf("%s: segment %d: %v", what, i, err)
				return
			}
			if want := of.TCP.Seq + uint32(len(payload)); p.Seq != want {
				t.Errorf("%s: segment %d has sequence number %d, want %d", what, i, p.Seq, want)
			}
			payload = append(payload, p.Payload...)
		}
		if !bytes.Equal(payload, of.Payload) {
			t.Errorf("%s: payload differs", what)
		}
		got = got[count:]
	}
}

// TestFramesKeepTheirOrder mixes packets that are written in different ways.
func TestFramesKeepTheirOrder(t *testing.T) {
	inModes(t, allModes, func(t *testing.T, m mode) {
		b := newBed(t, m, setup{cfg: full})
		f := b.front()
		var want []uint16
		id := uint16(0)
		next := func() uint16 { id++; want = append(want, id); return id }
		for range 10 {
			f.put(packet{frame: udp(20, next())})
			f.put(packet{frame: udp(9000, next())})
			open := packettest.Frame{IPv4: &packettest.IPv4{ID: next()}, UDP: &packettest.UDP{}, Payload: packettest.Pattern(500), Partial: true}
			f.put(packet{frame: open.Bytes(), flags: netif.TxCsumBlank, slots: tail(542, 14, 10)})
			large := partial(tcp(4, 5000))
			large.IPv4.ID = next()
			f.put(packet{frame: large.Bytes(), flags: netif.TxCsumBlank, extras: []netif.ExtraInfo{gso(4, 1448)}})
		}
		f.push()
		b.settle()
		var got []uint16
		for _, frame := range b.host.frames() {
			p, err := packettest.Decode(frame)
			must(t, err)
			if p.Proto == packettest.ProtoTCP && p.Seq != 1000 {
				continue // a further segment
			}
			got = append(got, p.ID)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("order of frames (-want +got):\n%s", diff)
		}
	})
}
