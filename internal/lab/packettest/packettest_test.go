// SPDX-License-Identifier: Apache-2.0

package packettest

import (
	"encoding/hex"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
)

// TestBytesOfOneFrame compares a frame with bytes that were computed by hand.
func TestBytesOfOneFrame(t *testing.T) {
	got := Frame{
		Tags:    []Tag{{TCI: 5}},
		IPv4:    &IPv4{ID: 1, DF: true},
		UDP:     &UDP{},
		Payload: []byte("abc"),
	}.Bytes()
	want := "020000000002" + "020000000001" + "8100" + "0005" + "0800" +
		"4500001f" + "00014000" + "4011b6c9" + "c0000201" + "c0000202" +
		"9c40" + "0035" + "000b" + "1afc" + "616263"
	if diff := cmp.Diff(want, hex.EncodeToString(got)); diff != "" {
		t.Errorf("frame (-want +got):\n%s", diff)
	}
}

func frames() map[string]Frame {
	v4, v6 := &IPv4{ID: 3}, &IPv6{FlowLabel: 0x12345}
	return map[string]Frame{
		"TCP over IPv4":        {IPv4: v4, TCP: &TCP{Seq: 9, Flags: ACK | PSH}, Payload: Pattern(11)},
		"TCP over IPv6":        {IPv6: v6, TCP: &TCP{Options: []byte{1, 1, 1}}, Payload: Pattern(10)},
		"UDP over IPv4":        {IPv4: v4, UDP: &UDP{}, Payload: Pattern(7)},
		"UDP without checksum": {IPv4: v4, UDP: &UDP{NoChecksum: true}, Payload: Pattern(7)},
		"UDP over IPv6":        {IPv6: v6, UDP: &UDP{}},
		"SCTP":                 {IPv4: v4, SCTP: &SCTP{Tag: 77}, Payload: Pattern(16)},
		"ICMP":                 {IPv4: v4, ICMP: &ICMP{Type: 8}, Payload: Pattern(56)},
		"ICMPv6":               {IPv6: v6, ICMP: &ICMP{Type: 128}, Payload: Pattern(56)},
		"options and a short frame": {
			IPv4: &IPv4{Options: []byte{7, 3, 4}}, TCP: &TCP{}, Payload: Pattern(1), PadTo: 80,
		},
		"two VLAN tags": {Tags: []Tag{{TypeQinQ, 1}, {TypeVLAN, 2}}, IPv4: v4, TCP: &TCP{}},
		"extension headers": {
			IPv6: &IPv6{Ext: []Ext{
				Options(ProtoHopByHop, 8), Options(ProtoDest, 24), Options(ProtoRouting, 8),
				Fragment(0, false, 5), Auth(24),
			}},
			TCP: &TCP{}, Payload: Pattern(5),
		},
	}
}

func TestDecodeIsTheInverseOfBytes(t *testing.T) {
	for name, f := range frames() {
		t.Run(name, func(t *testing.T) {
			p, err := Verify(f.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(f.Payload), string(p.Payload)); diff != "" {
				t.Errorf("payload (-want +got):\n%s", diff)
			}
			if p.Proto != f.proto() || len(p.Tags) != len(f.Tags) {
				t.Errorf("protocol %d with %d tags, want %d with %d",
					p.Proto, len(p.Tags), f.proto(), len(f.Tags))
			}
		})
	}
}

func TestVerifyNoticesEveryBit(t *testing.T) {
	for name, f := range frames() {
		t.Run(name, func(t *testing.T) {
			b := f.Bytes()
			p, err := Verify(b)
			if err != nil {
				t.Fatal(err)
			}
			if f.UDP != nil && f.UDP.NoChecksum {
				return
			}
			for i := p.L4; i < p.End+len(p.Payload); i++ {
				for bit := range 8 {
					b[i] ^= 1 << bit
					if _, err := Verify(b); err == nil {
						t.Errorf("byte %d bit %d can be flipped", i, bit)
					}
					b[i] ^= 1 << bit
				}
			}
		})
	}
}

func TestVerifyOfPartial(t *testing.T) {
	f := Frame{IPv4: &IPv4{}, TCP: &TCP{}, Payload: Pattern(100), Partial: true}
	if _, err := Verify(f.Bytes()); err == nil {
		t.Error("a partial checksum was taken for a complete one")
	}
}

func TestDecodeFields(t *testing.T) {
	f := Frame{
		Tags: []Tag{{TCI: 0x2005}},
		IPv6: &IPv6{Src: netip.MustParseAddr("fe80::1"), Ext: []Ext{Fragment(1448, true, 9)}},
		TCP:  &TCP{}, Payload: Pattern(3),
	}
	got, err := Decode(f.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	got.Payload = nil
	want := Packet{
		DstMAC: [6]byte{2, 0, 0, 0, 0, 2}, SrcMAC: [6]byte{2, 0, 0, 0, 0, 1},
		Tags: []Tag{{TypeVLAN, 0x2005}}, EtherType: TypeIPv6,
		L3: 18, End: 66,
		Src: netip.MustParseAddr("fe80::1"), Dst: netip.MustParseAddr("2001:db8::2"),
		Proto: ProtoTCP, Fragment: true,
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("packet (-want +got):\n%s", diff)
	}
}

func FuzzVerify(f *testing.F) {
	for _, fr := range frames() {
		f.Add(fr.Bytes())
	}
	fuzzloop.Fuzz(f, func(t *testing.T, b []byte) {
		p, err := Verify(b)
		if err == nil && p.L4 != 0 && p.End+len(p.Payload) > len(b) {
			t.Errorf("payload beyond the frame: %+v", p)
		}
	})
}
