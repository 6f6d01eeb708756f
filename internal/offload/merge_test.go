// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/pkg/tap"
)

// flow returns n packets of a flow, with size bytes of payload each, that can be merged.
func flow(like packettest.Frame, n, size int) (frames []packettest.Frame) {
	for i := range n {
		f := like
		f.Payload = packettest.Pattern(size + i)[i:]
		if like.IPv4 != nil {
			ip := *like.IPv4
			ip.ID += uint16(i)
			f.IPv4 = &ip
		}
		if like.IPv6 != nil {
			ip := *like.IPv6
			f.IPv6 = &ip
		}
		if like.TCP != nil {
			t := *like.TCP
			t.Seq += uint32(i * size)
			f.TCP = &t
		}
		if like.UDP != nil {
			u := *like.UDP
			f.UDP = &u
		}
		frames = append(frames, f)
	}
	return frames
}

var (
	stamps = []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}
	tcp4   = packettest.Frame{
		IPv4: &packettest.IPv4{ID: 0xffff, DF: true, TOS: 2},
		TCP:  &packettest.TCP{Seq: 0xffffff00, Ack: 5, Window: 77, Flags: packettest.ACK, Options: stamps},
	}
	tcp6 = packettest.Frame{
		IPv6: &packettest.IPv6{FlowLabel: 0xabcde, TrafficClass: 2},
		TCP:  &packettest.TCP{Seq: 1000, Ack: 5, Window: 77, Flags: packettest.ACK},
	}
	udp4 = packettest.Frame{IPv4: &packettest.IPv4{ID: 9}, UDP: &packettest.UDP{}}
	udp6 = packettest.Frame{IPv6: &packettest.IPv6{FlowLabel: 7}, UDP: &packettest.UDP{}}
)

// mergeable returns flows whose packets can be merged.
func mergeable() map[string]packettest.Frame {
	tagged, tagged6 := tcp4, udp6
	tagged.Tags, tagged6.Tags = qTag, qTags
	return map[string]packettest.Frame{
		"TCP over IPv4": tcp4, "TCP over IPv6": tcp6, "UDP over IPv4": udp4, "UDP over IPv6": udp6,
		"TCP over IPv4 behind a tag": tagged, "UDP over IPv6 behind two tags": tagged6,
	}
}

// csumOf returns what a guest says about a frame's checksum.
func csumOf(f packettest.Frame) Csum { return Csum{Partial: f.Partial} }

// merge merges frames, from the first one on, and returns their number, and the merged
// packet with its header; nothing if not even two can be merged.
func merge(t testing.TB, frames [][]byte, csums []Csum) (n int, v tap.VnetHdr, packet []byte) {
	t.Helper()
	var m Merger
	first := bytes.Clone(frames[0])
	if !m.Start(first, len(first), csums[0]) {
		return 0, v, nil
	}
	packet = bytes.Clone(first)
	n = 1
	for i, f := range frames[1:] {
		f := bytes.Clone(f)
		if !m.Add(f, len(f), csums[i+1]) {
			break
		}
		packet = append(packet, f[m.Header():]...)
		n++
	}
	if m.Packets() != n || m.Len() != len(packet) {
		t.Errorf("%d packets and %d bytes are counted as %d and %d", n, len(packet), m.Packets(), m.Len())
	}
	if n == 1 {
		return 0, v, nil
	}
	v = m.Finish()
	copy(packet, first[:m.Header()])
	return n, v, packet
}

// unmerge segments a merged packet as the host does, and completes the checksums.
func unmerge(t testing.TB, v tap.VnetHdr, packet []byte) (out [][]byte) {
	t.Helper()
	if v.GSOType != tap.VnetGSOUDP {
		var s Segmenter
		if err := s.Init(packet, int(v.GSOSize)); err != nil {
			t.Fatal(err)
		}
		for range s.Left() {
			b := make([]byte, s.MaxLen())
			n, err := s.Next(b)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, b[:n])
		}
		return out
	}
	h, err := Parse(packet, len(packet))
	if err != nil {
		t.Fatal(err)
	}
	for i, rest := 0, packet[h.End:]; len(rest) > 0; i++ {
		n := min(int(v.GSOSize), len(rest))
		d := append(bytes.Clone(packet[:h.End]), rest[:n]...)
		rest = rest[n:]
		ip, size := d[h.L3:h.L4], len(d)-int(h.L4)
		if h.IPv == 4 {
			binary.BigEndian.PutUint16(ip[2:], uint16(len(d)-int(h.L3)))
			binary.BigEndian.PutUint16(ip[4:], binary.BigEndian.Uint16(ip[4:])+uint16(i))
			binary.BigEndian.PutUint16(ip[10:], 0)
			binary.BigEndian.PutUint16(ip[10:], ^checksum(ip))
		} else {
			binary.BigEndian.PutUint16(ip[4:], uint16(size))
		}
		binary.BigEndian.PutUint16(d[h.L4+4:], uint16(size))
		field := d[h.L4+udpCheck:]
		binary.BigEndian.PutUint16(field, add16(binary.BigEndian.Uint16(field), ^uint16(len(packet)-int(h.L4))))
		binary.BigEndian.PutUint16(field, add16(binary.BigEndian.Uint16(field), uint16(size)))
		if err := Complete(h.L4, udpCheck, d); err != nil {
			t.Fatal(err)
		}
		out = append(out, d)
	}
	return out
}

// TestMergeRules: two packets are merged if nothing is wrong with either, and are not if
// there is.
func TestMergeRules(t *testing.T) {
	type frames = []packettest.Frame
	tests := []struct {
		name   string
		like   packettest.Frame
		size   int
		change func(f frames)
		raw    func(a, b []byte)
		merge  bool
	}{
		{name: "nothing", like: tcp4, merge: true},
		{name: "PSH in the second", like: tcp4, merge: true, change: func(f frames) { f[1].TCP.Flags |= packettest.PSH }},
		{name: "PSH in the first", like: tcp4, change: func(f frames) { f[0].TCP.Flags |= packettest.PSH }},
		{name: "a shorter second", like: tcp4, merge: true, change: func(f frames) { f[1].Payload = f[1].Payload[:1] }},
		{name: "a longer second", like: tcp4, change: func(f frames) { f[1].Payload = packettest.Pattern(1001) }},
		{name: "an empty second", like: tcp4, change: func(f frames) { f[1].Payload = nil }},
		{name: "an empty first", like: tcp4, change: func(f frames) { f[0].Payload, f[1].TCP.Seq = nil, f[0].TCP.Seq }},
		{name: "segments of 7 bytes", like: tcp4, size: 7},
		{name: "segments of 8 bytes", like: tcp4, size: 8, merge: true},
		{name: "a gap", like: tcp4, change: func(f frames) { f[1].TCP.Seq++ }},
		{name: "a repetition", like: tcp4, change: func(f frames) { f[1].TCP.Seq = f[0].TCP.Seq }},
		{name: "another acknowledgement", like: tcp6, change: func(f frames) { f[1].TCP.Ack++ }},
		{name: "another window", like: tcp6, change: func(f frames) { f[1].TCP.Window++ }},
		{name: "another source port", like: tcp6, change: func(f frames) { f[1].TCP.SrcPort = 1 }},
		{name: "another destination port", like: udp6, change: func(f frames) { f[1].UDP.DstPort = 1 }},
		{name: "other time stamps", like: tcp4, change: func(f frames) {
			f[1].TCP.Options = append(bytes.Clone(stamps[:11]), 9)
		}},
		{name: "no options", like: tcp4, change: func(f frames) { f[1].TCP.Options = nil }},
		{name: "an urgent pointer", like: tcp4, change: func(f frames) { f[1].TCP.Urgent = 1 }},
		{name: "FIN", like: tcp4, change: func(f frames) { f[1].TCP.Flags |= packettest.FIN }},
		{name: "SYN in both", like: tcp4, change: func(f frames) { f[0].TCP.Flags |= packettest.SYN; f[1].TCP.Flags |= packettest.SYN }},
		{name: "RST", like: tcp4, change: func(f frames) { f[1].TCP.Flags |= packettest.RST }},
		{name: "URG in both", like: tcp4, change: func(f frames) { f[0].TCP.Flags |= packettest.URG; f[1].TCP.Flags |= packettest.URG }},
		{name: "ECE in both", like: tcp4, change: func(f frames) { f[0].TCP.Flags |= packettest.ECE; f[1].TCP.Flags |= packettest.ECE }},
		{name: "CWR in the first", like: tcp4, change: func(f frames) { f[0].TCP.Flags |= packettest.CWR }},
		{name: "no ACK", like: tcp4, change: func(f frames) { f[0].TCP.Flags, f[1].TCP.Flags = 0, 0 }},
		{name: "AE in both", like: tcp4, raw: func(a, b []byte) { setAE(a); setAE(b) }},
		{name: "another type of service", like: tcp4, change: func(f frames) { f[1].IPv4.TOS++ }},
		{name: "another time to live", like: tcp4, raw: func(_, b []byte) { b[22]--; ipSum(b) }},
		{name: "no DF", like: tcp4, change: func(f frames) { f[1].IPv4.DF = false }},
		{name: "the same identification", like: tcp4, change: func(f frames) { f[1].IPv4.ID = f[0].IPv4.ID }},
		{name: "an identification that skips one", like: udp4, change: func(f frames) { f[1].IPv4.ID++ }},
		{name: "IP options", like: tcp4, change: func(f frames) {
			f[0].IPv4.Options, f[1].IPv4.Options = []byte{1, 1, 1, 1}, []byte{1, 1, 1, 1}
		}},
		{name: "the reserved flag of IPv4 in both", like: tcp4, raw: func(a, b []byte) { a[20] |= 0x80; b[20] |= 0x80; ipSum(a); ipSum(b) }},
		{name: "a wrong checksum of IPv4", like: tcp4, raw: func(_, b []byte) { b[24] ^= 1 }},
		{name: "a wrong checksum of IPv4 in the first", like: udp4, raw: func(a, _ []byte) { a[25] ^= 1 }},
		{name: "another traffic class", like: tcp6, change: func(f frames) { f[1].IPv6.TrafficClass++ }},
		{name: "another flow label", like: tcp6, change: func(f frames) { f[1].IPv6.FlowLabel++ }},
		{name: "another hop limit", like: udp6, raw: func(_, b []byte) { b[21]-- }},
		{name: "extension headers", like: tcp6, change: func(f frames) {
			ext := ip6ext(packettest.Options(packettest.ProtoDest, 8))
			f[0].IPv6, f[1].IPv6 = ext, ext
		}},
		{name: "another source address", like: udp6, raw: func(_, b []byte) { b[14+8] ^= 1; b[54+6] = 0 }},
		{name: "another Ethernet address", like: udp6, raw: func(_, b []byte) { b[11] ^= 1 }},
		{name: "another tag", like: packettest.Frame{Tags: qTag, IPv6: udp6.IPv6, UDP: udp6.UDP}, raw: func(_, b []byte) { b[15] ^= 1 }},
		{name: "padding", like: udp4, change: func(f frames) { f[1].Payload = f[1].Payload[:10] }, raw: func(_, b []byte) { b[17] -= 2; ipSum(b) }},
		{name: "a length of IPv4 that lies", like: tcp4, raw: func(_, b []byte) { b[16]++; ipSum(b) }},
		{name: "a length of IPv6 that lies", like: tcp6, raw: func(_, b []byte) { b[18]++ }},
		{name: "a length of UDP that lies", like: udp6, raw: func(_, b []byte) { b[58]++ }},
		{name: "a length of UDP that lies in the first", like: udp6, raw: func(a, _ []byte) { a[58]++ }},
		{name: "no checksum", like: udp4, change: func(f frames) { f[0].UDP.NoChecksum, f[1].UDP.NoChecksum = true, true }},
		{name: "fragments", like: tcp4, raw: func(a, b []byte) { a[20] |= 0x20; b[20] |= 0x20; ipSum(a); ipSum(b) }},
		{name: "SCTP", like: packettest.Frame{IPv4: &packettest.IPv4{}, SCTP: &packettest.SCTP{}}},
		{name: "ICMP", like: packettest.Frame{IPv4: &packettest.IPv4{}, ICMP: &packettest.ICMP{}}},
		{name: "no IP", like: packettest.Frame{EtherType: 0x88b5}},
	}
	for _, tt := range tests {
		for _, partial := range []bool{false, true} {
			size := tt.size
			if size == 0 {
				size = 1000
			}
			f := flow(tt.like, 2, size)
			if tt.change != nil {
				tt.change(f)
			}
			var raw [][]byte
			var csums []Csum
			for i := range f {
				f[i].Partial = partial && (f[i].TCP != nil || f[i].UDP != nil && !f[i].UDP.NoChecksum)
				raw, csums = append(raw, f[i].Bytes()), append(csums, csumOf(f[i]))
			}
			if tt.raw != nil {
				tt.raw(raw[0], raw[1])
			}
			n, v, packet := merge(t, raw, csums)
			if merged := n == 2; merged != tt.merge {
				t.Errorf("%s, partial checksums %v: merged %v, want %v", tt.name, partial, merged, tt.merge)
			}
			if n == 2 {
				sameAs(t, tt.name, f, unmerge(t, v, packet))
			}
		}
	}
}

func setAE(b []byte) {
	b[34+tcpOff] |= 1
	h, _ := Parse(b, len(b))
	WritePseudo(b, h, len(b))
	_ = Complete(h.L4, tcpCheck, b)
}

// ipSum makes the checksum of an IPv4 header right.
func ipSum(b []byte) {
	ip := b[14:34]
	binary.BigEndian.PutUint16(ip[10:], 0)
	binary.BigEndian.PutUint16(ip[10:], ^checksum(ip))
}

// sameAs checks that segments are the frames with complete checksums.
func sameAs(t testing.TB, what string, frames []packettest.Frame, segments [][]byte) {
	t.Helper()
	if len(segments) != len(frames) {
		t.Errorf("%s: %d segments, want %d", what, len(segments), len(frames))
		return
	}
	for i, f := range frames {
		f.Partial = false
		if !bytes.Equal(f.Bytes(), segments[i]) {
			t.Errorf("%s: segment %d is\n%x, want\n%x", what, i, segments[i], f.Bytes())
		}
	}
}

// TestMergeChecksums: no bit of a packet with a complete checksum can be wrong, and none of
// a partial checksum.
func TestMergeChecksums(t *testing.T) {
	for name, like := range mergeable() {
		f := flow(like, 2, 64)
		for _, first := range []bool{false, true} {
			frames := [][]byte{f[0].Bytes(), f[1].Bytes()}
			victim := frames[1]
			if first {
				victim = frames[0]
			}
			// From the IP header on: no checksum covers what is before.
			for bit := 14 * 8; bit < len(victim)*8; bit++ {
				if len(like.Tags) > 0 && bit < (14+4*len(like.Tags))*8 {
					continue
				}
				victim[bit/8] ^= 1 << (bit % 8)
				n, v, packet := merge(t, frames, make([]Csum, 2))
				if n == 2 && !coveredByNone(like, bit) {
					t.Fatalf("%s: merged with bit %d wrong in the first: %v: %+v %x", name, bit, first, v, packet)
				}
				victim[bit/8] ^= 1 << (bit % 8)
			}
			for i := range f {
				f[i].Partial = true
			}
			open := [][]byte{f[0].Bytes(), f[1].Bytes()}
			h, _ := Parse(open[0], len(open[0]))
			for bit := range 16 {
				b := open[1][int(h.L4)+int(h.csumOffset()):]
				b[bit/8] ^= 1 << (bit % 8)
				if n, _, _ := merge(t, open, []Csum{{Partial: true}, {Partial: true}}); n != 0 {
					t.Errorf("%s: merged with bit %d of the partial checksum wrong", name, bit)
				}
				b[bit/8] ^= 1 << (bit % 8)
			}
			for i := range f {
				f[i].Partial = false
			}
		}
	}
}

// coveredByNone reports whether no checksum covers a bit: the traffic class, flow label and
// hop limit of IPv6.
func coveredByNone(f packettest.Frame, bit int) bool {
	at := bit/8 - 14 - 4*len(f.Tags)
	return f.IPv6 != nil && (at < 4 || at == 7)
}

// TestMergeRandom merges random streams, and cuts them again: the segments are the packets
// that came, merged or not.
func TestMergeRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	merged := 0
	for range 3000 {
		frames := randomStream(r)
		var raw [][]byte
		var csums []Csum
		for _, f := range frames {
			raw, csums = append(raw, f.Bytes()), append(csums, csumOf(f))
		}
		for i := 0; i < len(raw); {
			n, v, packet := merge(t, raw[i:], csums[i:])
			if n == 0 {
				i++
				continue
			}
			if n > maxMergedSegments || len(packet) > maxMergedFrame {
				t.Fatalf("%d packets were merged to %d bytes", n, len(packet))
			}
			merged += n
			sameAs(t, "random stream", frames[i:i+n], unmerge(t, v, packet))
			i += n
		}
		if t.Failed() {
			return
		}
	}
	if merged < 10000 {
		t.Errorf("%d packets were merged: too few to prove anything", merged)
	}
}

// randomStream returns packets of a few flows, most of which can be merged.
func randomStream(r *rand.Rand) (frames []packettest.Frame) {
	kinds := []packettest.Frame{tcp4, tcp6, udp4, udp6}
	for range 1 + r.IntN(3) {
		size := 1 + r.IntN(1448)
		run := flow(kinds[r.IntN(len(kinds))], 1+r.IntN(70), size)
		partial, mixed := r.IntN(2) == 0, r.IntN(4) == 0
		for i := range run {
			f := &run[i]
			f.Partial = partial || mixed && r.IntN(2) == 0
			if r.IntN(20) != 0 {
				continue
			}
			switch r.IntN(6) {
			case 0:
				f.Payload = f.Payload[:r.IntN(size)]
			case 1:
				if f.TCP != nil {
					f.TCP.Flags |= 1 << r.IntN(8)
				}
			case 2:
				if f.TCP != nil {
					f.TCP.Seq += uint32(r.IntN(3))
				}
			case 3:
				if f.IPv4 != nil {
					f.IPv4.ID += uint16(r.IntN(3))
				}
			case 4:
				if f.TCP != nil {
					f.TCP.Window++
				}
			case 5:
				f.Payload = packettest.Pattern(size + r.IntN(2))
			}
		}
		frames = append(frames, run...)
	}
	return frames
}

// TestMergeBounds: neither the bytes nor the segments of a merged packet exceed the bounds.
func TestMergeBounds(t *testing.T) {
	for name, like := range mergeable() {
		for _, size := range []int{8, 100, 1023, 1024, 1400, 9000, 32000, 32767, 60000} {
			frames := flow(like, 70, size)
			var raw [][]byte
			for _, f := range frames {
				raw = append(raw, f.Bytes())
			}
			n, _, packet := merge(t, raw, make([]Csum, len(raw)))
			head := len(raw[0]) - size
			want := min(maxMergedSegments, (maxMergedFrame-head)/size)
			if want < 2 {
				want = 0
			}
			if n != want || len(packet) > maxMergedFrame {
				t.Errorf("%s, %d bytes: %d packets were merged to %d bytes, want %d", name, size, n, len(packet), want)
			}
		}
	}
}

// TestMergeHeads: a packet of which only the head is given is merged if its checksum is
// partial.
func TestMergeHeads(t *testing.T) {
	for name, like := range mergeable() {
		for _, partial := range []bool{false, true} {
			f := flow(like, 2, 9000)
			f[0].Partial, f[1].Partial = partial, partial
			a, b := f[0].Bytes(), f[1].Bytes()
			h, _ := Parse(a, len(a))
			for cut, want := range map[int]bool{int(h.End): true, MaxHeader: true, int(h.End) - 1: false, 14: false} {
				var m Merger
				got := m.Start(a[:cut], len(a), csumOf(f[0])) && m.Add(b[:cut], len(b), csumOf(f[1]))
				if got != (want && partial) {
					t.Errorf("%s, %d bytes, partial checksum %v: merged %v", name, cut, partial, got)
				}
				if got && m.Len() != len(a)+9000 {
					t.Errorf("%s: %d bytes", name, m.Len())
				}
			}
		}
	}
}

// TestMergeStated: a guest that says where the checksum is must say what the headers say.
func TestMergeStated(t *testing.T) {
	for name, like := range mergeable() {
		f := flow(like, 2, 500)
		f[0].Partial, f[1].Partial = true, true
		raw := [][]byte{f[0].Bytes(), f[1].Bytes()}
		h, _ := Parse(raw[0], len(raw[0]))
		right := Csum{Partial: true, Start: h.L4, Offset: h.csumOffset()}
		for _, tt := range []struct {
			c    Csum
			want int
		}{
			{right, 2},
			{Csum{Partial: true, Start: h.L4 + 2, Offset: h.csumOffset() - 2}, 0},
			{Csum{Partial: true, Start: h.L4, Offset: h.csumOffset() + 2}, 0},
			{Csum{Partial: true, Start: 1, Offset: h.csumOffset()}, 0},
			{Csum{Partial: true, Start: 0xffff, Offset: 0xffff}, 0},
		} {
			if n, _, _ := merge(t, raw, []Csum{right, tt.c}); n != tt.want {
				t.Errorf("%s: %+v in the second: %d were merged, want %d", name, tt.c, n, tt.want)
			}
			if n, _, _ := merge(t, raw, []Csum{tt.c, right}); n != tt.want {
				t.Errorf("%s: %+v in the first: %d were merged, want %d", name, tt.c, n, tt.want)
			}
		}
	}
}

// FuzzMerge changes bytes and lengths of packets that could be merged. All that is merged
// must come out again as it was.
func FuzzMerge(f *testing.F) {
	f.Add(uint8(0), uint8(3), uint16(100), false, []byte{})
	f.Add(uint8(1), uint8(9), uint16(9000), true, []byte{1, 0, 47, 8})
	f.Add(uint8(2), uint8(70), uint16(8), true, []byte{1, 0, 16, 1, 0, 1, 17, 0xff})
	f.Add(uint8(3), uint8(2), uint16(1400), false, []byte{1, 0, 58, 1, 1, 0xff, 0xff, 9})
	fuzzloop.Fuzz(f, func(t *testing.T, kind, n uint8, size uint16, partial bool, changes []byte) {
		like := []packettest.Frame{tcp4, tcp6, udp4, udp6}[kind%4]
		if kind&4 != 0 {
			like.Tags = qTag
		}
		frames := flow(like, 1+int(n)%80, 1+int(size)%10000)
		var raw, want [][]byte
		var csums []Csum
		for i := range frames {
			frames[i].Partial = partial
			raw, csums = append(raw, frames[i].Bytes()), append(csums, Csum{Partial: partial})
		}
		for ; len(changes) >= 4; changes = changes[4:] {
			b := &raw[int(changes[0])%len(raw)]
			at := int(binary.BigEndian.Uint16(changes[1:]))
			if at == 0xffff {
				*b = (*b)[:len(*b)-min(int(changes[3]), len(*b)-14)]
				continue
			}
			(*b)[at%len(*b)] ^= changes[3]
		}
		for _, b := range raw {
			want = append(want, finish(t, b, partial))
		}
		m, v, packet := merge(t, raw, csums)
		if m == 0 {
			return
		}
		if m > maxMergedSegments || len(packet) > maxMergedFrame {
			t.Fatalf("%d packets were merged to %d bytes", m, len(packet))
		}
		for i, got := range unmerge(t, v, packet) {
			if !bytes.Equal(got, want[i]) {
				t.Errorf("segment %d is\n%x, want\n%x", i, got, want[i])
			}
		}
	})
}

// finish returns a frame as it leaves the host: with a partial checksum completed.
func finish(t *testing.T, b []byte, partial bool) []byte {
	t.Helper()
	b = bytes.Clone(b)
	if h, err := Parse(b, len(b)); partial && err == nil && h.transport() {
		if err := Complete(h.L4, h.csumOffset(), b); err != nil {
			t.Fatal(err)
		}
		if h.Proto == protoTCP && b[int(h.L4)+tcpCheck] == 0xff && b[int(h.L4)+tcpCheck+1] == 0xff {
			// Segmentation writes the other form of the sum.
			b[int(h.L4)+tcpCheck], b[int(h.L4)+tcpCheck+1] = 0, 0
		}
	}
	return b
}
