// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/internal/lab/packettest"
)

// Short names for the parts of most tests' frames.
var (
	qTag  = []packettest.Tag{{TCI: 7}}
	qTags = []packettest.Tag{{TPID: packettest.TypeQinQ, TCI: 9}, {TCI: 7}}
	tcp   = &packettest.TCP{Seq: 1000, Flags: packettest.ACK}
	udp   = &packettest.UDP{}
	ip4   = &packettest.IPv4{ID: 100}
	ip6   = &packettest.IPv6{}
)

func ip6ext(ext ...packettest.Ext) *packettest.IPv6 { return &packettest.IPv6{Ext: ext} }

// patched returns a copy of the frame with the bytes at off replaced.
func patched(b []byte, off int, with ...byte) []byte {
	copy(b[off:], with)
	return b
}

func TestParse(t *testing.T) {
	hop := packettest.Options(packettest.ProtoHopByHop, 8)
	dest := packettest.Options(packettest.ProtoDest, 16)
	routing := packettest.Options(packettest.ProtoRouting, 24)
	ports := packettest.Pattern(20)
	tests := map[string]struct {
		frame []byte
		want  Headers
		err   error
	}{
		"TCP over IPv4": {
			frame: packettest.Frame{IPv4: ip4, TCP: tcp}.Bytes(),
			want:  Headers{EtherType: 0x0800, IPv: 4, L3: 14, L4: 34, End: 54, Proto: 6, TCPFlags: 0x10},
		},
		"TCP with options over IPv4 with options": {
			frame: packettest.Frame{
				IPv4: &packettest.IPv4{Options: make([]byte, 40)},
				TCP:  &packettest.TCP{Options: make([]byte, 40), Flags: packettest.FIN},
			}.Bytes(),
			want: Headers{EtherType: 0x0800, IPv: 4, L3: 14, L4: 74, End: 134, Proto: 6, TCPFlags: 1},
		},
		"UDP over IPv6": {
			frame: packettest.Frame{IPv6: ip6, UDP: udp}.Bytes(),
			want:  Headers{EtherType: 0x86dd, IPv: 6, L3: 14, L4: 54, End: 62, Proto: 17},
		},
		"don't fragment is no fragment": {
			frame: packettest.Frame{IPv4: &packettest.IPv4{DF: true}, UDP: udp}.Bytes(),
			want:  Headers{EtherType: 0x0800, IPv: 4, L3: 14, L4: 34, End: 42, Proto: 17},
		},
		"one VLAN tag": {
			frame: packettest.Frame{Tags: qTag, IPv4: ip4, UDP: udp}.Bytes(),
			want:  Headers{EtherType: 0x0800, VLANs: 1, IPv: 4, L3: 18, L4: 38, End: 46, Proto: 17},
		},
		"two VLAN tags": {
			frame: packettest.Frame{Tags: qTags, IPv6: ip6, TCP: tcp}.Bytes(),
			want:  Headers{EtherType: 0x86dd, VLANs: 2, IPv: 6, L3: 22, L4: 62, End: 82, Proto: 6, TCPFlags: 0x10},
		},
		"three VLAN tags are one too many": {
			frame: packettest.Frame{Tags: append(qTag, qTags...), IPv4: ip4, UDP: udp}.Bytes(),
			want:  Headers{EtherType: 0x8100, VLANs: 2},
		},
		"cut off in a tag": {
			frame: packettest.Frame{Tags: qTag, IPv4: ip4, UDP: udp}.Bytes()[:17],
			want:  Headers{EtherType: 0x8100},
			err:   ErrTruncated,
		},
		"ARP": {
			frame: packettest.Frame{EtherType: packettest.TypeARP, Payload: make([]byte, 28)}.Bytes(),
			want:  Headers{EtherType: 0x0806},
		},
		"802.3 with a length": {
			frame: packettest.Frame{EtherType: 46, Payload: make([]byte, 46)}.Bytes(),
			want:  Headers{EtherType: 46},
		},
		"no Ethernet header": {frame: make([]byte, 13), err: ErrTruncated},
		"nothing":            {frame: nil, err: ErrTruncated},
		"only an Ethernet header": {
			frame: packettest.Frame{EtherType: packettest.TypeIPv4}.Bytes(),
			want:  Headers{EtherType: 0x0800},
			err:   ErrTruncated,
		},
		"IPv6 behind the type of IPv4": {
			frame: packettest.Frame{EtherType: packettest.TypeIPv4, Payload: packettest.Frame{IPv6: ip6, TCP: tcp}.Bytes()[14:]}.Bytes(),
			want:  Headers{EtherType: 0x0800},
			err:   ErrIPHeader,
		},
		"IPv4 behind the type of IPv6": {
			frame: packettest.Frame{EtherType: packettest.TypeIPv6, Payload: packettest.Frame{IPv4: ip4, TCP: tcp}.Bytes()[14:]}.Bytes(),
			want:  Headers{EtherType: 0x86dd},
			err:   ErrIPHeader,
		},
		"IPv4 header of 16 bytes": {
			frame: patched(packettest.Frame{IPv4: ip4, TCP: tcp}.Bytes(), 14, 0x44),
			want:  Headers{EtherType: 0x0800},
			err:   ErrIPHeader,
		},
		"IPv4 options beyond the packet": {
			frame: patched(packettest.Frame{IPv4: ip4, UDP: udp}.Bytes(), 14, 0x4f),
			want:  Headers{EtherType: 0x0800},
			err:   ErrTruncated,
		},
		"TCP header of 16 bytes": {
			frame: patched(packettest.Frame{IPv4: ip4, TCP: tcp}.Bytes(), 34+12, 0x40),
			want:  Headers{EtherType: 0x0800, IPv: 4, L3: 14},
			err:   ErrTCPHeader,
		},
		"TCP options beyond the packet": {
			frame: patched(packettest.Frame{IPv4: ip4, TCP: tcp, Payload: make([]byte, 39)}.Bytes(), 34+12, 0xf0),
			want:  Headers{EtherType: 0x0800, IPv: 4, L3: 14},
			err:   ErrTruncated,
		},
		"TCP header cut off": {
			frame: packettest.Frame{IPv6: ip6, TCP: tcp}.Bytes()[:73],
			want:  Headers{EtherType: 0x86dd, IPv: 6, L3: 14},
			err:   ErrTruncated,
		},
		"UDP header cut off": {
			frame: packettest.Frame{IPv4: ip4, UDP: udp}.Bytes()[:41],
			want:  Headers{EtherType: 0x0800, IPv: 4, L3: 14},
			err:   ErrTruncated,
		},
		"lengths that lie are not believed": {
			frame: patched(patched(packettest.Frame{IPv4: ip4, UDP: udp}.Bytes(), 16, 0, 1), 38, 0xff, 0xff),
			want:  Headers{EtherType: 0x0800, IPv: 4, L3: 14, L4: 34, End: 42, Proto: 17},
		},
		"first fragment": {
			frame: packettest.Frame{IPv4: &packettest.IPv4{MF: true}, UDP: udp}.Bytes(),
			want:  Headers{EtherType: 0x0800, IPv: 4, L3: 14, Proto: 17, Fragment: true},
		},
		"last fragment": {
			frame: packettest.Frame{IPv4: &packettest.IPv4{Offset: 8, Proto: 6}, Payload: ports}.Bytes(),
			want:  Headers{EtherType: 0x0800, IPv: 4, L3: 14, Proto: 6, Fragment: true},
		},
		"SCTP": {
			frame: packettest.Frame{IPv4: ip4, SCTP: &packettest.SCTP{}}.Bytes(),
			want:  Headers{EtherType: 0x0800, IPv: 4, L3: 14, L4: 34, End: 34, Proto: 132},
		},
		"IPv4 authentication header is a protocol": {
			frame: packettest.Frame{IPv4: &packettest.IPv4{Proto: 51}, Payload: ports}.Bytes(),
			want:  Headers{EtherType: 0x0800, IPv: 4, L3: 14, L4: 34, End: 34, Proto: 51},
		},
		"no next header": {
			frame: packettest.Frame{IPv6: ip6}.Bytes(),
			want:  Headers{EtherType: 0x86dd, IPv: 6, L3: 14, L4: 54, End: 54, Proto: 59},
		},
		"extension headers": {
			frame: packettest.Frame{IPv6: ip6ext(hop, dest, routing), TCP: tcp}.Bytes(),
			want:  Headers{EtherType: 0x86dd, IPv: 6, L3: 14, L4: 102, End: 122, Proto: 6, TCPFlags: 0x10},
		},
		"authentication header": {
			frame: packettest.Frame{IPv6: ip6ext(packettest.Auth(24)), TCP: tcp}.Bytes(),
			want:  Headers{EtherType: 0x86dd, IPv: 6, L3: 14, L4: 78, End: 98, Proto: 6, TCPFlags: 0x10, Auth: true},
		},
		"atomic fragment": {
			frame: packettest.Frame{IPv6: ip6ext(packettest.Fragment(0, false, 1)), UDP: udp}.Bytes(),
			want:  Headers{EtherType: 0x86dd, IPv: 6, L3: 14, L4: 62, End: 70, Proto: 17, Atomic: true},
		},
		"reserved bits of a fragment header": {
			frame: patched(packettest.Frame{IPv6: ip6ext(packettest.Fragment(0, false, 1)), UDP: udp}.Bytes(), 54, 17, 0xff, 0, 6),
			want:  Headers{EtherType: 0x86dd, IPv: 6, L3: 14, L4: 62, End: 70, Proto: 17, Atomic: true},
		},
		"first IPv6 fragment": {
			frame: packettest.Frame{IPv6: ip6ext(hop, packettest.Fragment(0, true, 1)), UDP: udp}.Bytes(),
			want:  Headers{EtherType: 0x86dd, IPv: 6, L3: 14, Proto: 17, Fragment: true},
		},
		"later IPv6 fragment": {
			frame: packettest.Frame{IPv6: ip6ext(packettest.Fragment(8, false, 1)), TCP: tcp}.Bytes(),
			want:  Headers{EtherType: 0x86dd, IPv: 6, L3: 14, Proto: 6, Fragment: true},
		},
		"extension header beyond the packet": {
			frame: patched(packettest.Frame{IPv6: ip6ext(hop), UDP: udp}.Bytes(), 55, 2),
			want:  Headers{EtherType: 0x86dd, IPv: 6, L3: 14},
			err:   ErrTruncated,
		},
		"extension header cut off": {
			frame: packettest.Frame{IPv6: ip6ext(hop), UDP: udp}.Bytes()[:61],
			want:  Headers{EtherType: 0x86dd, IPv: 6, L3: 14},
			err:   ErrTruncated,
		},
		"as many extension headers as allowed": {
			frame: packettest.Frame{IPv6: ip6ext(hop, hop, hop, hop, hop, hop, hop, hop), UDP: udp}.Bytes(),
			want:  Headers{EtherType: 0x86dd, IPv: 6, L3: 14, L4: 118, End: 126, Proto: 17},
		},
		"one extension header too many": {
			frame: packettest.Frame{IPv6: ip6ext(hop, hop, hop, hop, hop, hop, hop, hop, hop), UDP: udp}.Bytes(),
			want:  Headers{EtherType: 0x86dd, IPv: 6, L3: 14},
			err:   ErrExtHeaders,
		},
		"extension headers as long as allowed": {
			frame: packettest.Frame{IPv6: ip6ext(packettest.Options(0, 256)), UDP: udp}.Bytes(),
			want:  Headers{EtherType: 0x86dd, IPv: 6, L3: 14, L4: 310, End: 318, Proto: 17},
		},
		"extension headers too long": {
			frame: packettest.Frame{IPv6: ip6ext(packettest.Options(0, 264)), UDP: udp}.Bytes(),
			want:  Headers{EtherType: 0x86dd, IPv: 6, L3: 14},
			err:   ErrExtHeaders,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Parse(tt.frame, len(tt.frame))
			if err != tt.err {
				t.Errorf("error %v, want %v", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("headers (-want +got):\n%s", diff)
			}
		})
	}
}

// TestParseOfAHead parses every prefix of a packet. The result is the same, or a request
// for more bytes; with MaxHeader bytes it is never the latter.
func TestParseOfAHead(t *testing.T) {
	for name, frame := range map[string][]byte{
		"IPv4": packettest.Frame{IPv4: ip4, TCP: tcp, Payload: make([]byte, 900)}.Bytes(),
		"longest headers": packettest.Frame{
			Tags: qTags,
			IPv6: ip6ext(packettest.Options(packettest.ProtoHopByHop, 256)),
			TCP:  &packettest.TCP{Options: make([]byte, 40)}, Payload: make([]byte, 900),
		}.Bytes(),
	} {
		t.Run(name, func(t *testing.T) {
			want, err := Parse(frame, len(frame))
			if err != nil {
				t.Fatal(err)
			}
			if name == "longest headers" && want.End != MaxHeader {
				t.Errorf("headers end at %d, MaxHeader is %d", want.End, MaxHeader)
			}
			for n := range len(frame) {
				got, err := Parse(frame[:n:n], len(frame))
				if n >= int(want.End) {
					if err != nil || got != want {
						t.Errorf("of %d bytes: %+v, %v", n, got, err)
					}
				} else if err != ErrHeadShort {
					t.Errorf("of %d bytes: error %v, want %v", n, err, ErrHeadShort)
				}
			}
		})
	}
}

func TestParseStopsAtTotal(t *testing.T) {
	frame := packettest.Frame{IPv4: ip4, TCP: tcp, Payload: make([]byte, 100)}.Bytes()
	for _, total := range []int{-1, 0, 13, 14, 33, 53} {
		if _, err := Parse(frame, total); err != ErrTruncated {
			t.Errorf("packet of %d bytes: error %v, want %v", total, err, ErrTruncated)
		}
	}
}

func TestErrorsHaveDistinctTexts(t *testing.T) {
	seen := map[string]bool{}
	for e := range NumErrors + 1 {
		if e == 0 || e == NumErrors {
			continue
		}
		if s := e.Error(); s == "" || seen[s] {
			t.Errorf("error %d reads %q", e, s)
		}
		seen[e.Error()] = true
	}
	if got := Error(0).Error(); got != (NumErrors+1).Error() || seen[got] {
		t.Errorf("an error that is none reads %q", got)
	}
}

// seeds returns frames for the fuzz targets' corpora.
func seeds() [][]byte {
	var s [][]byte
	for _, f := range []packettest.Frame{
		{IPv4: ip4, TCP: tcp, Payload: packettest.Pattern(100)},
		{IPv4: &packettest.IPv4{Options: []byte{1, 1, 1, 0}}, TCP: &packettest.TCP{Flags: packettest.CWR | packettest.FIN, Options: make([]byte, 12)}, Payload: packettest.Pattern(31)},
		{IPv6: ip6, TCP: tcp, Payload: packettest.Pattern(77)},
		{Tags: qTag, IPv4: ip4, TCP: tcp, Payload: packettest.Pattern(40)},
		{Tags: qTags, IPv6: ip6ext(packettest.Options(0, 16), packettest.Options(60, 8)), TCP: tcp, Payload: packettest.Pattern(40)},
		{IPv4: ip4, UDP: udp, Payload: packettest.Pattern(9)},
		{IPv6: ip6ext(packettest.Auth(12)), UDP: udp, Payload: packettest.Pattern(9)},
		{IPv6: ip6ext(packettest.Fragment(0, true, 3)), UDP: udp, Payload: packettest.Pattern(9)},
		{IPv6: ip6ext(packettest.Fragment(0, false, 3)), TCP: tcp},
		{IPv4: &packettest.IPv4{MF: true}, TCP: tcp},
		{IPv4: ip4, SCTP: &packettest.SCTP{}, Payload: packettest.Pattern(16)},
		{EtherType: packettest.TypeARP, Payload: make([]byte, 28)},
	} {
		s = append(s, f.Bytes())
	}
	return s
}

func FuzzParse(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s, uint16(0))
		f.Add(s[:len(s)/2], uint16(len(s)))
	}
	fuzzloop.Fuzz(f, func(t *testing.T, b []byte, more uint16) {
		total := len(b) + int(more)
		b = b[:len(b):len(b)]
		h, err := Parse(b, total)
		if err == ErrHeadShort && len(b) >= MaxHeader {
			t.Errorf("%d bytes are not enough", len(b))
		}
		if err == ErrHeadShort && more == 0 {
			t.Error("asks for more of a packet that is all there")
		}
		if err != nil && (h.L4 != 0 || h.End != 0 || h.Proto != 0) {
			t.Errorf("transport in spite of an error: %+v", h)
		}
		if int(h.End) > len(b) || h.L4 > h.End || h.L4 != 0 && h.L3 >= h.L4 {
			t.Errorf("headers out of order or beyond %d bytes: %+v", len(b), h)
		}
		if (h.IPv == 0) != (h.L3 == 0) || h.Fragment && h.L4 != 0 {
			t.Errorf("headers contradict each other: %+v", h)
		}
		// The other decoder agrees where it decodes the frame. It trusts
		// lengths, and follows any number of headers.
		if p, derr := packettest.Decode(b); more == 0 && derr == nil && err == nil && p.EtherType == h.EtherType {
			if h.IPv != 0 && (p.L3 != int(h.L3) || p.L4 != int(h.L4) || p.Proto != h.Proto || p.Fragment != h.Fragment) {
				t.Errorf("parsed %+v, decoded %+v", h, p)
			}
		}
	})
}

func BenchmarkParse(b *testing.B) {
	for _, bb := range []struct {
		name  string
		frame packettest.Frame
	}{
		{"tcp4", packettest.Frame{IPv4: ip4, TCP: tcp}},
		{"udp6", packettest.Frame{IPv6: ip6, UDP: udp}},
		{"vlan", packettest.Frame{Tags: qTag, IPv4: ip4, TCP: tcp}},
		{"ext", packettest.Frame{IPv6: ip6ext(packettest.Options(0, 8), packettest.Options(60, 8)), TCP: tcp}},
	} {
		frame := bb.frame.Bytes()
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Parse(frame, len(frame)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
