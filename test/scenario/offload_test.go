// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
)

// Parts of test frames.
var (
	ip4    = &packettest.IPv4{}
	ip6    = &packettest.IPv6{}
	tcp    = &packettest.TCP{Seq: 1000, Ack: 7, Flags: packettest.ACK | packettest.PSH, Options: bytes.Repeat([]byte{1}, 12)}
	udp    = &packettest.UDP{}
	tagged = []packettest.Tag{{TCI: 7}}
	twice  = []packettest.Tag{{TPID: packettest.TypeQinQ, TCI: 3}, {TCI: 7}}
)

// partial returns the frame with only the pseudo-header's sum in its checksum.
func partial(f packettest.Frame) packettest.Frame {
	f.Partial = true
	return f
}

// finished returns a frame with its checksum completed, as the host forwards it.
func (s seen) finished() []byte {
	f := bytes.Clone(s.frame)
	if s.vnet.Flags&tap.VnetNeedsCsum == 0 {
		return f
	}
	start, at := int(s.vnet.CsumStart), int(s.vnet.CsumStart+s.vnet.CsumOffset)
	if at+2 > len(f) {
		return nil
	}
	var sum uint32
	for i, c := range f[start:] {
		sum += uint32(c) << (8 - 8*(i&1))
		sum = sum&0xffff + sum>>16
	}
	c := ^uint16(sum)
	if c == 0 && s.vnet.CsumOffset == 6 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(f[at:], c)
	return f
}

// TestBlankChecksumIsLeftToTheHost: netbackd passes a guest's partial checksum on to the
// host, anywhere in the frame and in any slots.
func TestBlankChecksumIsLeftToTheHost(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	p := g.prober()
	payload := packettest.Pattern(1201)
	frames := []struct {
		name  string
		frame packettest.Frame
	}{
		{"UDP", packettest.Frame{IPv4: ip4, UDP: udp, Payload: payload}},
		{"TCP", packettest.Frame{IPv4: ip4, TCP: tcp, Payload: payload}},
		{"TCP without payload", packettest.Frame{IPv4: ip4, TCP: tcp}},
		{"UDP behind IPv4 options", packettest.Frame{IPv4: &packettest.IPv4{Options: make([]byte, 40)}, UDP: udp, Payload: payload}},
		{"UDP over IPv6", packettest.Frame{IPv6: ip6, UDP: udp, Payload: payload}},
		{"TCP over IPv6", packettest.Frame{IPv6: ip6, TCP: tcp, Payload: payload}},
		{"UDP behind IPv6 extension headers", packettest.Frame{
			IPv6: &packettest.IPv6{Ext: []packettest.Ext{packettest.Options(packettest.ProtoHopByHop, 8), packettest.Options(packettest.ProtoDest, 24)}},
			UDP:  udp, Payload: payload}},
		{"UDP behind a VLAN tag", packettest.Frame{Tags: tagged, IPv4: ip4, UDP: udp, Payload: payload}},
		{"TCP over IPv6 behind two VLAN tags", packettest.Frame{Tags: twice, IPv6: ip6, TCP: tcp, Payload: payload}},
		{"UDP padded to the least frame", packettest.Frame{IPv4: ip4, UDP: udp, PadTo: 60}},
		{"UDP of 9000 bytes", packettest.Frame{IPv4: ip4, UDP: udp, Payload: packettest.Pattern(8972)}},
	}
	inPieces := [][]int{nil, slices.Concat([]int{14}, slices.Repeat([]int{1}, 16))}
	for _, tt := range frames {
		for _, sizes := range inPieces {
			name := tt.name
			if sizes != nil {
				name += ", a byte per slot"
			}
			w.situation(name, func() {
				f := partial(tt.frame).Bytes()
				l4, err := packettest.Decode(f)
				w.must(err)
				want := tap.VnetHdr{Flags: tap.VnetNeedsCsum, CsumStart: uint16(l4.L4), CsumOffset: 16}
				if tt.frame.UDP != nil {
					want.CsumOffset = 6
				}
				if len(f) > netif.PageSize && sizes == nil {
					sizes = []int{4000, 4000}
				}
				if rest := len(f) - len(sizes); len(sizes) > 2 && rest > netif.PageSize {
					sizes = append([]int{14, 3000, 3000}, slices.Repeat([]int{1}, 15)...)
				}
				answers, out := p.send(inSlots(netif.TxCsumBlank|netif.TxDataValidated, f, sizes...)...)
				w.answered(each(len(answers), okay), answers)
				if len(out) != 1 {
					w.t.Fatalf("%d frames came out, want 1", len(out))
				}
				if diff := cmp.Diff(want, out[0].vnet); diff != "" {
					w.t.Errorf("what is left to the host (-want +got):\n%s", diff)
				}
				if !bytes.Equal(out[0].frame, f) {
					w.t.Error("the frame has changed")
				}
				if _, err := packettest.Verify(out[0].finished()); err != nil {
					w.t.Error(err)
				}
			})
		}
	}
	g.innocent()
}

// TestBlankChecksumWhereThereIsNoneToMake: a checksum of another protocol than TCP and UDP,
// or one that is not in the frame, cannot be completed. The guest gets no error, as with
// Linux.
func TestBlankChecksumWhereThereIsNoneToMake(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	p := g.prober()
	payload := packettest.Pattern(200)
	cut := partial(packettest.Frame{IPv4: ip4, TCP: tcp}).Bytes()
	for _, tt := range []struct {
		name  string
		frame []byte
	}{
		{"ICMP", packettest.Frame{IPv4: ip4, ICMP: &packettest.ICMP{Type: 8}, Payload: payload}.Bytes()},
		{"ICMPv6", packettest.Frame{IPv6: ip6, ICMP: &packettest.ICMP{Type: 128}, Payload: payload}.Bytes()},
		{"SCTP", packettest.Frame{IPv4: ip4, SCTP: &packettest.SCTP{}, Payload: payload}.Bytes()},
		{"ARP", packettest.Frame{EtherType: packettest.TypeARP, Payload: payload}.Bytes()},
		{"first fragment", packettest.Frame{IPv4: &packettest.IPv4{MF: true}, UDP: udp, Payload: payload}.Bytes()},
		{"last fragment", packettest.Frame{IPv4: &packettest.IPv4{Offset: 1480}, UDP: udp, Payload: payload}.Bytes()},
		{"fragment of IPv6", packettest.Frame{IPv6: &packettest.IPv6{Ext: []packettest.Ext{packettest.Fragment(0, true, 1)}}, UDP: udp, Payload: payload}.Bytes()},
		{"frame ends in the TCP header", cut[:14+20+17]},
		{"frame ends in the IP header", cut[:14+19]},
		{"nothing but an Ethernet header", cut[:14]},
		{"nothing behind the VLAN tag", packettest.Frame{Tags: tagged, EtherType: packettest.TypeIPv4}.Bytes()},
	} {
		w.situation(tt.name, func() {
			packet := inSlots(netif.TxCsumBlank|netif.TxDataValidated, tt.frame, 14)
			p.expect(packet, okays(packet), drops{dataplane.DropTxCsum: 1})
		})
	}
	g.pings(3)
	g.innocent()
}

// large has TCP packets with GSO.
var large = []struct {
	name  string
	frame packettest.Frame
	typ   netif.GSOType
	vnet  uint8
}{
	{"IPv4", packettest.Frame{IPv4: &packettest.IPv4{ID: 77, DF: true}, TCP: tcp}, netif.GSOTCPv4, tap.VnetGSOTCPv4},
	{"IPv6", packettest.Frame{IPv6: ip6, TCP: tcp}, netif.GSOTCPv6, tap.VnetGSOTCPv6},
	{"IPv4 behind a VLAN tag", packettest.Frame{Tags: tagged, IPv4: ip4, TCP: tcp}, netif.GSOTCPv4, tap.VnetGSOTCPv4},
	{"IPv6 behind a VLAN tag", packettest.Frame{Tags: tagged, IPv6: ip6, TCP: tcp}, netif.GSOTCPv6, tap.VnetGSOTCPv6},
}

const mss = 1400

// TestGSOFromOneGuestToAnother: a GSO packet leaves the vif in one piece. It arrives in one
// piece at a guest that takes GSO, and in correct segments at any other. The kernel makes
// some of these segments, netbackd the others.
func TestGSOFromOneGuestToAnother(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	p := g.prober()
	type receiver struct {
		*testGuest
		name  string
		nic   *cable
		to    [6]byte
		whole func(packettest.Frame) bool // arrives in one piece
		byUs  func(packettest.Frame) bool // netbackd makes the segments
	}
	none := func(packettest.Frame) bool { return false }
	tagged := func(f packettest.Frame) bool { return f.Tags != nil }
	receivers := []*receiver{
		{name: "a guest that takes nothing", whole: none, byUs: none,
			testGuest: w.guest(features(func(f *netfront.Features) {
				*f = netfront.Features{RxCopy: true, RxNotify: true, NoCsumOffload: true}
			}))},
		{name: "a guest that takes everything", whole: func(f packettest.Frame) bool { return !tagged(f) }, byUs: tagged,
			testGuest: w.guest()},
		{name: "a guest that takes no open checksum of IPv6",
			whole:     func(f packettest.Frame) bool { return !tagged(f) && f.IPv4 != nil },
			byUs:      func(f packettest.Frame) bool { return tagged(f) || f.IPv6 != nil },
			testGuest: w.guest(features(func(f *netfront.Features) { f.IPv6CsumOffload = false }))},
	}
	for _, r := range receivers {
		r.nic, r.to = r.inside(), r.mac()
	}
	for _, tt := range large {
		full := 0xffff - 14 - 4*len(tt.frame.Tags) - 20 - 32 // the largest payload
		if tt.frame.IPv6 != nil {
			full -= 20
		}
		for _, how := range []struct {
			name    string
			payload int
			sizes   []int
		}{
			{"3000 bytes", 3000, nil},
			{"two bytes more than a segment, a byte per slot", mss + 2, slices.Concat([]int{14}, slices.Repeat([]int{1}, 16))},
			{"64 KiB in 17 slots", full, slices.Concat([]int{86}, slices.Repeat([]int{4096}, 15))},
			{"64 KiB in 18 slots", full, slices.Concat([]int{14, 90}, slices.Repeat([]int{4096}, 15))},
		} {
			w.situation(tt.name+", "+how.name, func() {
				spec := partial(tt.frame)
				spec.Payload = packettest.Pattern(how.payload)
				for _, r := range receivers {
					spec.Dst = r.to
					f := spec.Bytes()
					packet := inSlots(netif.TxCsumBlank|netif.TxDataValidated, f, how.sizes...)
					before := r.counter(dataplane.Segmented)
					answers, out := p.send(withExtras(packet, gso(tt.typ, mss))...)
					w.answered(each(len(packet), okay), answers)
					w.inOnePiece(out, tt.vnet, f)
					in := p.arrivedAt(r.nic)
					if r.whole(spec) {
						w.inOnePiece(in, tt.vnet, f)
					} else {
						w.segments(in, spec, mss)
					}
					if r.byUs(spec) {
						before++
					}
					if now := r.counter(dataplane.Segmented); now != before {
						w.t.Errorf("%s: netbackd has segmented %d packets, want %d", r.name, now, before)
					}
				}
			})
		}
	}
	g.innocent()
	for _, r := range receivers {
		r.innocent()
	}
}

// inOnePiece checks that exactly one packet arrived, with GSO.
func (w *world) inOnePiece(out []seen, typ uint8, frame []byte) {
	w.t.Helper()
	if len(out) != 1 {
		w.t.Errorf("%d frames came, want 1", len(out))
		return
	}
	if h := out[0].vnet; h.GSOType != typ || h.GSOSize != mss || h.Flags != tap.VnetNeedsCsum {
		w.t.Errorf("the frame came with %+v", h)
	}
	if !bytes.Equal(out[0].frame, frame) {
		w.t.Error("the frame has changed")
	}
}

// segments checks that the segments of a packet arrived, with complete checksums.
func (w *world) segments(out []seen, of packettest.Frame, mss int) {
	w.t.Helper()
	var payload []byte
	for i, s := range out {
		if s.vnet.GSOType != tap.VnetGSONone {
			w.t.Errorf("segment %d came with %+v", i, s.vnet)
		}
		got, err := packettest.Verify(s.finished())
		if err != nil {
			w.t.Errorf("segment %d: %v", i, err)
			return
		}
		want := packettest.Packet{
			DstMAC: of.Dst, SrcMAC: testSrc, Tags: of.Tags, EtherType: got.EtherType,
			Proto: packettest.ProtoTCP, SrcPort: 40000, DstPort: 443,
			Seq: of.TCP.Seq + uint32(i*mss), Ack: of.TCP.Ack, Flags: of.TCP.Flags &^ packettest.CWR,
		}
		if i < len(out)-1 {
			want.Flags &^= packettest.PSH | packettest.FIN
			if len(got.Payload) != mss {
				w.t.Errorf("segment %d has %d bytes, want %d", i, len(got.Payload), mss)
			}
		}
		if i == 0 {
			want.Flags |= of.TCP.Flags & packettest.CWR
		}
		if of.IPv4 != nil && of.IPv4.ID != 0 {
			want.ID = of.IPv4.ID + uint16(i)
		} else {
			want.ID = got.ID
		}
		payload = append(payload, got.Payload...)
		got.L3, got.L4, got.End, got.Src, got.Dst, got.Payload = 0, 0, 0, want.Src, want.Dst, nil
		for t := range got.Tags {
			if of.Tags[t].TPID == 0 {
				got.Tags[t].TPID = 0
			}
		}
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			w.t.Errorf("segment %d (-want +got):\n%s", i, diff)
		}
	}
	if !bytes.Equal(payload, of.Payload) {
		w.t.Errorf("%d bytes arrived in %d segments, of %d, or others", len(payload), len(out), len(of.Payload))
	}
}

// arrivedAt returns the frames sent so far that have arrived at another guest.
func (p *prober) arrivedAt(nic *cable) []seen {
	p.g.w.t.Helper()
	p.renew(0)
	p.marks++
	mark := packettest.Frame{Dst: broadcast, EtherType: typeTest, Payload: append([]byte("mark for all"), p.marks)}.Bytes()
	p.answers([]uint16{0}, p.raw(data(0, mark), guest.RawOp{Op: "flush"}))
	p.c.until(mark)
	return slices.DeleteFunc(nic.until(mark), func(s seen) bool { return binary.BigEndian.Uint16(s.frame[12:]) == typeTest })
}

var broadcast = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// mac returns the guest's Ethernet address.
func (g *testGuest) mac() [6]byte {
	g.w.t.Helper()
	m, err := net.ParseMAC(g.Info.MAC)
	g.w.must(err)
	return [6]byte(m)
}

// TestGSOWithCongestionWindowReduced: the CWR flag of a GSO packet belongs to its first
// segment only. netif cannot express that, so a guest gets segments.
func TestGSOWithCongestionWindowReduced(t *testing.T) {
	w := newWorld(t)
	g, other := w.guest(), w.guest()
	p, nic := g.prober(), other.inside()
	cwr := *tcp
	cwr.Flags |= packettest.CWR
	f := partial(packettest.Frame{Dst: other.mac(), IPv4: ip4, TCP: &cwr, Payload: packettest.Pattern(3 * mss)})
	answers, out := p.send(withExtras(inSlots(netif.TxCsumBlank, f.Bytes(), 1000, 1000), gso(netif.GSOTCPv4, mss))...)
	w.answered(each(3, okay), answers)
	w.inOnePiece(out, tap.VnetGSOTCPv4|tap.VnetGSOECN, f.Bytes())
	w.segments(p.arrivedAt(nic), f, mss)
	other.innocent()
}

// TestGSOThatNeedNotBe sends unneeded but legal sizes and flags of a GSO extra.
func TestGSOThatNeedNotBe(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	p := g.prober()
	whole := packettest.Frame{IPv4: ip4, TCP: tcp, Payload: packettest.Pattern(2000)}
	open := partial(whole).Bytes()
	l4 := uint16(14 + 20)
	csum := tap.VnetHdr{Flags: tap.VnetNeedsCsum, CsumStart: l4, CsumOffset: 16}
	sized := func(n uint16) tap.VnetHdr {
		h := csum
		h.GSOType, h.GSOSize = tap.VnetGSOTCPv4, n
		return h
	}
	blank := netif.TxCsumBlank | netif.TxDataValidated
	for _, tt := range []struct {
		name   string
		flags  netif.TxFlags
		frame  []byte
		extras []netif.ExtraInfo
		want   tap.VnetHdr
	}{
		{"a single segment", blank, open, []netif.ExtraInfo{gso(netif.GSOTCPv4, 2000)}, csum},
		{"a single segment, by far", blank, open, []netif.ExtraInfo{gso(netif.GSOTCPv4, 0xfffe)}, csum},
		{"the least segments", blank, open, []netif.ExtraInfo{gso(netif.GSOTCPv4, offload.MinGSOSize)}, sized(offload.MinGSOSize)},
		{"the last of several extras counts", blank, open, []netif.ExtraInfo{gso(netif.GSOTCPv6, 7), netif.NewHash(netif.HashInfo{}), gso(netif.GSOTCPv4, 1000)}, sized(1000)},
		{"without csum_blank", 0, whole.Bytes(), []netif.ExtraInfo{gso(netif.GSOTCPv4, 1000)}, sized(1000)},
		{"said to be verified", netif.TxDataValidated, whole.Bytes(), []netif.ExtraInfo{gso(netif.GSOTCPv4, 1000)}, sized(1000)},
	} {
		w.situation(tt.name, func() {
			before := g.drops()
			packet := inSlots(tt.flags, tt.frame, 66)
			answers, out := p.send(withExtras(packet, tt.extras...)...)
			w.answered(each(2, okay), answers)
			if len(out) != 1 {
				w.t.Fatalf("%d frames came out, want 1", len(out))
			}
			got := out[0].vnet
			got.HdrLen = 0 // a hint
			if diff := cmp.Diff(tt.want, got); diff != "" {
				w.t.Errorf("what is left to the host (-want +got):\n%s", diff)
			}
			if !bytes.Equal(out[0].frame, open) {
				w.t.Error("the frame, with the pseudo-header's sum, is another")
			}
			g.dropped(before, drops{})
		})
	}
	g.innocent()
}

// TestGSOThatDoesNotFitThePacket: netbackd drops a packet whose GSO extra is for another
// protocol.
func TestGSOThatDoesNotFitThePacket(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	p := g.prober()
	payload := packettest.Pattern(3000)
	v4, v6 := gso(netif.GSOTCPv4, 1000), gso(netif.GSOTCPv6, 1000)
	tcp4 := partial(packettest.Frame{IPv4: ip4, TCP: tcp, Payload: payload}).Bytes()
	shortHeader := bytes.Clone(tcp4)
	shortHeader[14+20+12] = 4 << 4 // a TCP header of 16 bytes
	for _, tt := range []struct {
		name  string
		frame []byte
		extra netif.ExtraInfo
	}{
		{"IPv4's for IPv6", partial(packettest.Frame{IPv6: ip6, TCP: tcp, Payload: payload}).Bytes(), v4},
		{"IPv6's for IPv4", tcp4, v6},
		{"for UDP", partial(packettest.Frame{IPv4: ip4, UDP: udp, Payload: payload}).Bytes(), v4},
		{"for ICMP", packettest.Frame{IPv4: ip4, ICMP: &packettest.ICMP{}, Payload: payload}.Bytes(), v4},
		{"for ARP", packettest.Frame{EtherType: packettest.TypeARP, Payload: payload}.Bytes(), v4},
		{"for a fragment", partial(packettest.Frame{IPv4: &packettest.IPv4{MF: true}, TCP: tcp, Payload: payload}).Bytes(), v4},
		{"for a TCP header that is too short", shortHeader, v4},
		{"for a frame that ends in its headers", tcp4[:14+20+15], v4},
		{"for an Ethernet header", tcp4[:14], v4},
	} {
		w.situation(tt.name, func() {
			before := g.drops()
			packet := inSlots(netif.TxCsumBlank, tt.frame, 14)
			answers, out := p.send(withExtras(packet, tt.extra)...)
			w.answered(each(len(packet), failed), answers)
			w.cameOut(out)
			g.dropped(before, drops{dataplane.DropTxGSO: 1})
		})
	}
	g.pings(3)
	g.innocent()
}

// TestFramesFromTheHostAreFinishedAsTheGuestNeedsThem: netbackd completes a packet's pending
// offloads, unless the guest supports them.
func TestFramesFromTheHostAreFinishedAsTheGuestNeedsThem(t *testing.T) {
	w := newWorld(t)
	payload := packettest.Pattern(1000)
	frames := []struct {
		name  string
		frame packettest.Frame
		left  func(netfront.Features) bool // whether the guest gets the packet unchanged
	}{
		{"UDP", packettest.Frame{IPv4: ip4, UDP: udp, Payload: payload}, func(f netfront.Features) bool { return !f.NoCsumOffload }},
		{"TCP over IPv6", packettest.Frame{IPv6: ip6, TCP: tcp, Payload: payload}, func(f netfront.Features) bool { return f.IPv6CsumOffload }},
		{"UDP behind a VLAN tag", packettest.Frame{Tags: tagged, IPv4: ip4, UDP: udp, Payload: payload}, nil},
		{"TCP over IPv6 behind two VLAN tags", packettest.Frame{Tags: twice, IPv6: ip6, TCP: tcp, Payload: payload}, nil},
	}
	g := w.guest()
	for _, f := range []struct {
		name string
		f    netfront.Features
	}{
		{"takes everything", netfront.AllFeatures()},
		{"takes open checksums of IPv4", netfront.Features{RxCopy: true, RxNotify: true}},
		{"takes open checksums of IPv6", netfront.Features{RxCopy: true, RxNotify: true, NoCsumOffload: true, IPv6CsumOffload: true}},
		{"takes none", netfront.Features{RxCopy: true, RxNotify: true, NoCsumOffload: true}},
	} {
		g.reconnectWith(func(c *netfront.Config) { c.Features = f.f })
		host, nic := g.cable(), g.inside()
		for _, tt := range frames {
			w.situation("guest "+f.name+", "+tt.name, func() {
				spec := partial(tt.frame)
				b := spec.Bytes()
				l4, err := packettest.Decode(b)
				w.must(err)
				h := tap.VnetHdr{Flags: tap.VnetNeedsCsum, CsumStart: uint16(l4.L4), CsumOffset: 16}
				if spec.UDP != nil {
					h.CsumOffset = 6
				}
				host.send(h, b)
				in := host.mark(nic)
				if len(in) != 1 {
					w.t.Fatalf("%d frames arrived, want 1", len(in))
				}
				left := tt.left != nil && tt.left(f.f)
				if got := in[0].vnet.Flags&tap.VnetNeedsCsum != 0; got != left {
					w.t.Errorf("checksum is open: %t, want %t", got, left)
				}
				done := in[0].finished()
				if _, err := packettest.Verify(done); err != nil {
					w.t.Error(err)
				}
				spec.Partial = false
				if !bytes.Equal(done, spec.Bytes()) {
					w.t.Error("the frame has changed")
				}
			})
		}
		g.innocent()
	}
}
