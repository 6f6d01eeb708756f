// SPDX-License-Identifier: Apache-2.0

package offload

import (
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
)

func TestPlanTx(t *testing.T) {
	data := packettest.Pattern(3000)
	frag := packettest.Fragment(0, true, 1)
	atomic := packettest.Fragment(0, false, 1)
	csum := TxMeta{CsumBlank: true}
	gso4 := TxMeta{CsumBlank: true, GSOType: netif.GSOTCPv4, GSOSize: 1448}
	gso6 := TxMeta{CsumBlank: true, GSOType: netif.GSOTCPv6, GSOSize: 1428}
	tests := map[string]struct {
		meta  TxMeta
		frame packettest.Frame
		want  TxPlan
		err   error
	}{
		"nothing asked for": {
			frame: packettest.Frame{IPv4: ip4, TCP: tcp},
		},
		"nothing asked for a fragment": {
			frame: packettest.Frame{IPv4: &packettest.IPv4{MF: true}, UDP: udp},
		},
		"checksum of TCP": {
			meta: csum, frame: packettest.Frame{IPv4: ip4, TCP: tcp},
			want: TxPlan{Header: tap.VnetHdr{Flags: 1, HdrLen: 54, CsumStart: 34, CsumOffset: 16}},
		},
		"checksum of UDP over IPv6": {
			meta: csum, frame: packettest.Frame{IPv6: ip6, UDP: udp},
			want: TxPlan{Header: tap.VnetHdr{Flags: 1, HdrLen: 62, CsumStart: 54, CsumOffset: 6}},
		},
		"checksum behind a tag": {
			meta: csum, frame: packettest.Frame{Tags: qTag, IPv4: ip4, UDP: udp},
			want: TxPlan{Header: tap.VnetHdr{Flags: 1, HdrLen: 46, CsumStart: 38, CsumOffset: 6}},
		},
		"checksum behind extension headers": {
			meta: csum, frame: packettest.Frame{IPv6: ip6ext(packettest.Options(0, 8), packettest.Auth(16), atomic), TCP: tcp},
			want: TxPlan{Header: tap.VnetHdr{Flags: 1, HdrLen: 106, CsumStart: 86, CsumOffset: 16}},
		},
		"checksum of ARP": {
			meta: csum, frame: packettest.Frame{EtherType: packettest.TypeARP, Payload: make([]byte, 28)},
			err: ErrNotTCPUDP,
		},
		"checksum of ICMP": {
			meta: csum, frame: packettest.Frame{IPv4: ip4, ICMP: &packettest.ICMP{Type: 8}},
			err: ErrNotTCPUDP,
		},
		"checksum of SCTP": {
			meta: csum, frame: packettest.Frame{IPv4: ip4, SCTP: &packettest.SCTP{}},
			err: ErrNotTCPUDP,
		},
		"checksum of the first fragment": {
			meta: csum, frame: packettest.Frame{IPv4: &packettest.IPv4{MF: true}, UDP: udp},
			err: ErrFragment,
		},
		"checksum of an IPv6 fragment": {
			meta: csum, frame: packettest.Frame{IPv6: ip6ext(frag), UDP: udp},
			err: ErrFragment,
		},
		"GSO over IPv4": {
			meta: gso4, frame: packettest.Frame{IPv4: ip4, TCP: tcp, Payload: data},
			want: TxPlan{Header: tap.VnetHdr{Flags: 1, GSOType: 1, HdrLen: 54, GSOSize: 1448, CsumStart: 34, CsumOffset: 16}},
		},
		"GSO over IPv6 with TCP options": {
			meta: gso6, frame: packettest.Frame{IPv6: ip6, TCP: &packettest.TCP{Options: make([]byte, 12)}, Payload: data},
			want: TxPlan{Header: tap.VnetHdr{Flags: 1, GSOType: 4, HdrLen: 86, GSOSize: 1428, CsumStart: 54, CsumOffset: 16}},
		},
		"GSO behind a tag": {
			meta: gso4, frame: packettest.Frame{Tags: qTag, IPv4: ip4, TCP: tcp, Payload: data},
			want: TxPlan{Header: tap.VnetHdr{Flags: 1, GSOType: 1, HdrLen: 58, GSOSize: 1448, CsumStart: 38, CsumOffset: 16}},
		},
		"GSO without csum_blank": {
			meta:  TxMeta{GSOType: netif.GSOTCPv4, GSOSize: 1448},
			frame: packettest.Frame{IPv4: ip4, TCP: tcp, Payload: data},
			want: TxPlan{
				Header:      tap.VnetHdr{Flags: 1, GSOType: 1, HdrLen: 54, GSOSize: 1448, CsumStart: 34, CsumOffset: 16},
				WritePseudo: true,
			},
		},
		"GSO with CWR": {
			meta: gso4, frame: packettest.Frame{IPv4: ip4, TCP: &packettest.TCP{Flags: packettest.CWR}, Payload: data},
			want: TxPlan{Header: tap.VnetHdr{Flags: 1, GSOType: 0x81, HdrLen: 54, GSOSize: 1448, CsumStart: 34, CsumOffset: 16}},
		},
		"GSO of one segment": {
			meta: gso4, frame: packettest.Frame{IPv4: ip4, TCP: tcp, Payload: data[:1448]},
			want: TxPlan{Header: tap.VnetHdr{Flags: 1, HdrLen: 54, CsumStart: 34, CsumOffset: 16}},
		},
		"GSO of two segments": {
			meta: gso4, frame: packettest.Frame{IPv4: ip4, TCP: tcp, Payload: data[:1449]},
			want: TxPlan{Header: tap.VnetHdr{Flags: 1, GSOType: 1, HdrLen: 54, GSOSize: 1448, CsumStart: 34, CsumOffset: 16}},
		},
		"GSO size of 1": {
			meta:  TxMeta{CsumBlank: true, GSOType: netif.GSOTCPv4, GSOSize: 1},
			frame: packettest.Frame{IPv4: ip4, TCP: tcp, Payload: data}, err: ErrGSOSize,
		},
		"GSO size below the least that is accepted": {
			meta:  TxMeta{CsumBlank: true, GSOType: netif.GSOTCPv6, GSOSize: MinGSOSize - 1},
			frame: packettest.Frame{IPv6: ip6, TCP: tcp, Payload: data}, err: ErrGSOSize,
		},
		"the least GSO size": {
			meta:  TxMeta{CsumBlank: true, GSOType: netif.GSOTCPv4, GSOSize: MinGSOSize},
			frame: packettest.Frame{IPv4: ip4, TCP: tcp, Payload: data},
			want:  TxPlan{Header: tap.VnetHdr{Flags: 1, GSOType: 1, HdrLen: 54, GSOSize: 8, CsumStart: 34, CsumOffset: 16}},
		},
		"GSO size of 0xfffe": {
			meta:  TxMeta{CsumBlank: true, GSOType: netif.GSOTCPv4, GSOSize: 0xfffe},
			frame: packettest.Frame{IPv4: ip4, TCP: tcp, Payload: data},
			want:  TxPlan{Header: tap.VnetHdr{Flags: 1, HdrLen: 54, CsumStart: 34, CsumOffset: 16}},
		},
		"GSO size of 0": {
			meta: TxMeta{GSOType: netif.GSOTCPv4}, frame: packettest.Frame{IPv4: ip4, TCP: tcp}, err: ErrGSOSize,
		},
		"GSO size of 0xffff": {
			meta:  TxMeta{GSOType: netif.GSOTCPv4, GSOSize: 0xffff},
			frame: packettest.Frame{IPv4: ip4, TCP: tcp}, err: ErrGSOSize,
		},
		"GSO type 3": {
			meta:  TxMeta{GSOType: 3, GSOSize: 1448},
			frame: packettest.Frame{IPv4: ip4, UDP: udp}, err: ErrGSOType,
		},
		"GSO for IPv4 of IPv6": {
			meta: gso4, frame: packettest.Frame{IPv6: ip6, TCP: tcp, Payload: data}, err: ErrGSOMismatch,
		},
		"GSO for IPv6 of IPv4": {
			meta: gso6, frame: packettest.Frame{IPv4: ip4, TCP: tcp, Payload: data}, err: ErrGSOMismatch,
		},
		"GSO of UDP": {
			meta: gso4, frame: packettest.Frame{IPv4: ip4, UDP: udp, Payload: data}, err: ErrGSOMismatch,
		},
		"GSO of ARP": {
			meta: gso4, frame: packettest.Frame{EtherType: packettest.TypeARP, Payload: data}, err: ErrGSOMismatch,
		},
		"GSO of what is authenticated": {
			meta: gso6, frame: packettest.Frame{IPv6: ip6ext(packettest.Auth(16)), TCP: tcp, Payload: data}, err: ErrGSOMismatch,
		},
		"GSO of a fragment": {
			meta: gso4, frame: packettest.Frame{IPv4: &packettest.IPv4{MF: true}, TCP: tcp, Payload: data}, err: ErrFragment,
		},
		"GSO with a fragment header": {
			meta: gso6, frame: packettest.Frame{IPv6: ip6ext(atomic), TCP: tcp, Payload: data}, err: ErrFragment,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := tt.frame.Bytes()
			h, err := Parse(b, len(b))
			if err != nil {
				t.Fatal(err)
			}
			got, err := PlanTx(tt.meta, h, len(b))
			if err != tt.err {
				t.Errorf("error %v, want %v", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPlanTxOfWhatWasNotParsed(t *testing.T) {
	b := packettest.Frame{IPv4: ip4, TCP: tcp}.Bytes()
	h, err := Parse(b[:50], len(b))
	if err != ErrHeadShort {
		t.Fatalf("error %v, want %v", err, ErrHeadShort)
	}
	if _, err := PlanTx(TxMeta{CsumBlank: true}, h, len(b)); err != ErrNotTCPUDP {
		t.Errorf("error %v, want %v", err, ErrNotTCPUDP)
	}
	if _, err := PlanTx(TxMeta{GSOType: netif.GSOTCPv4, GSOSize: 1000}, h, len(b)); err != ErrGSOMismatch {
		t.Errorf("error %v, want %v", err, ErrGSOMismatch)
	}
}

// Guests of all kinds.
var (
	bare    = Guest{}
	linux   = Guest{CsumIPv4: true, CsumIPv6: true, GSOTCPv4: true, GSOTCPv6: true}
	only4   = Guest{CsumIPv4: true, GSOTCPv4: true}
	noCsum6 = Guest{CsumIPv4: true, GSOTCPv4: true, GSOTCPv6: true}
)

func TestPlanRx(t *testing.T) {
	data := packettest.Pattern(3000)
	csum := func(start, off uint16) tap.VnetHdr {
		return tap.VnetHdr{Flags: tap.VnetNeedsCsum, CsumStart: start, CsumOffset: off}
	}
	gso := func(typ uint8, size, start uint16) tap.VnetHdr {
		return tap.VnetHdr{Flags: tap.VnetNeedsCsum, GSOType: typ, GSOSize: size, CsumStart: start, CsumOffset: 16}
	}
	tcp4 := packettest.Frame{IPv4: ip4, TCP: tcp, Payload: data}
	tcp6 := packettest.Frame{IPv6: ip6, TCP: tcp, Payload: data}
	asIs := RxPlan{CsumBlank: true, DataValidated: true}
	complete := func(start, off uint16) RxPlan {
		return RxPlan{Action: ActComplete, DataValidated: true, CsumStart: start, CsumOffset: off}
	}
	tests := map[string]struct {
		vnet  tap.VnetHdr
		frame packettest.Frame
		guest Guest
		want  RxPlan
		err   error
	}{
		"nothing to do":          {frame: tcp4, guest: linux},
		"verified":               {vnet: tap.VnetHdr{Flags: tap.VnetDataValid}, frame: tcp4, guest: bare, want: RxPlan{DataValidated: true}},
		"partial":                {csum(34, 16), tcp4, linux, asIs, nil},
		"partial IPv6":           {csum(54, 16), tcp6, linux, asIs, nil},
		"partial with options":   {csum(38, 6), packettest.Frame{IPv4: &packettest.IPv4{Options: make([]byte, 4)}, UDP: udp}, linux, asIs, nil},
		"partial, not taken":     {csum(34, 16), tcp4, bare, complete(34, 16), nil},
		"partial, IPv6 not":      {csum(54, 16), tcp6, only4, complete(54, 16), nil},
		"partial, IPv6 but GSO":  {csum(54, 16), tcp6, noCsum6, complete(54, 16), nil},
		"partial behind a tag":   {csum(38, 6), packettest.Frame{Tags: qTag, IPv4: ip4, UDP: udp}, linux, complete(38, 6), nil},
		"partial behind tags":    {csum(62, 16), packettest.Frame{Tags: qTags, IPv6: ip6, TCP: tcp}, linux, complete(62, 16), nil},
		"partial, authenticated": {csum(66, 6), packettest.Frame{IPv6: ip6ext(packettest.Auth(12)), UDP: udp}, linux, complete(66, 6), nil},
		"partial, atomic":        {csum(62, 6), packettest.Frame{IPv6: ip6ext(packettest.Fragment(0, false, 1)), UDP: udp}, linux, complete(62, 6), nil},
		"partial in a tunnel": {
			csum(14+20+8+8+14+20, 16), packettest.Frame{IPv4: ip4, UDP: udp, Payload: data}, linux,
			RxPlan{Action: ActComplete, CsumStart: 84, CsumOffset: 16}, nil,
		},
		"partial in GRE": {
			csum(14+20+4+20, 16), packettest.Frame{IPv4: &packettest.IPv4{Proto: 47}, Payload: data}, linux,
			RxPlan{Action: ActComplete, CsumStart: 58, CsumOffset: 16}, nil,
		},
		"partial ICMP": {
			csum(34, 2), packettest.Frame{IPv4: ip4, ICMP: &packettest.ICMP{}}, linux,
			RxPlan{Action: ActComplete, CsumStart: 34, CsumOffset: 2}, nil,
		},
		"partial fragment": {
			csum(34, 6), packettest.Frame{IPv4: &packettest.IPv4{MF: true}, UDP: udp}, linux,
			RxPlan{Action: ActComplete, CsumStart: 34, CsumOffset: 6}, nil,
		},
		"partial SCTP": {
			csum(34, 8), packettest.Frame{IPv4: ip4, SCTP: &packettest.SCTP{}}, linux,
			RxPlan{Action: ActCompleteSCTP, CsumStart: 34, CsumOffset: 8}, nil,
		},
		"field of UDP in TCP": {
			csum(34, 6), tcp4, linux,
			RxPlan{Action: ActComplete, CsumStart: 34, CsumOffset: 6}, nil,
		},
		"field beyond the frame": {
			csum(0xfff0, 0xfff0), tcp4, linux, RxPlan{}, ErrCsumRange,
		},
		"field half beyond the frame": {
			csum(34, 7), packettest.Frame{IPv4: ip4, UDP: udp}, linux, RxPlan{}, ErrCsumRange,
		},
		"SCTP header cut off": {
			csum(34, 8), packettest.Frame{IPv4: &packettest.IPv4{Proto: 132}, Payload: data[:11]}, linux, RxPlan{}, ErrCsumRange,
		},

		"GSO": {
			gso(tap.VnetGSOTCPv4, 1448, 34), tcp4, linux,
			RxPlan{CsumBlank: true, DataValidated: true, GSOType: netif.GSOTCPv4, GSOSize: 1448}, nil,
		},
		"GSO over IPv6": {
			gso(tap.VnetGSOTCPv6, 1428, 54), tcp6, linux,
			RxPlan{CsumBlank: true, DataValidated: true, GSOType: netif.GSOTCPv6, GSOSize: 1428}, nil,
		},
		"GSO of a verified packet": {
			tap.VnetHdr{Flags: tap.VnetDataValid, GSOType: tap.VnetGSOTCPv4, GSOSize: 1448}, tcp4, linux,
			RxPlan{WritePseudo: true, CsumBlank: true, DataValidated: true, GSOType: netif.GSOTCPv4, GSOSize: 1448}, nil,
		},
		"GSO, not taken": {
			gso(tap.VnetGSOTCPv4, 1448, 34), tcp4, bare,
			RxPlan{Action: ActSegment, DataValidated: true, GSOSize: 1448}, nil,
		},
		"GSO of a verified packet, not taken": {
			tap.VnetHdr{Flags: tap.VnetDataValid, GSOType: tap.VnetGSOTCPv4, GSOSize: 1448}, tcp4, bare,
			RxPlan{Action: ActSegment, WritePseudo: true, DataValidated: true, GSOSize: 1448}, nil,
		},
		"GSO over IPv6 without its checksum": {
			gso(tap.VnetGSOTCPv6, 1428, 54), tcp6, noCsum6,
			RxPlan{Action: ActSegment, DataValidated: true, GSOSize: 1428}, nil,
		},
		"GSO behind a tag": {
			gso(tap.VnetGSOTCPv4, 1448, 38), packettest.Frame{Tags: qTag, IPv4: ip4, TCP: tcp, Payload: data}, linux,
			RxPlan{Action: ActSegment, DataValidated: true, GSOSize: 1448}, nil,
		},
		"GSO with CWR": {
			gso(tap.VnetGSOTCPv4|tap.VnetGSOECN, 1448, 34), tcp4, linux,
			RxPlan{Action: ActSegment, DataValidated: true, GSOSize: 1448}, nil,
		},
		"GSO size of 1": {
			gso(tap.VnetGSOTCPv4, 1, 34), tcp4, linux,
			RxPlan{CsumBlank: true, DataValidated: true, GSOType: netif.GSOTCPv4, GSOSize: 8}, nil,
		},
		"GSO of one segment": {
			gso(tap.VnetGSOTCPv4, 3000, 34), tcp4, linux, asIs, nil,
		},
		"GSO of one segment, checksum not taken": {
			gso(tap.VnetGSOTCPv4, 3000, 34), tcp4, bare, complete(34, 16), nil,
		},
		"GSO size of 0":      {gso(tap.VnetGSOTCPv4, 0, 34), tcp4, linux, RxPlan{}, ErrGSOSize},
		"GSO size of 0xffff": {gso(tap.VnetGSOTCPv4, 0xffff, 34), tcp4, linux, RxPlan{}, ErrGSOSize},
		"UDP segmentation":   {gso(5, 1000, 34), packettest.Frame{IPv4: ip4, UDP: udp, Payload: data}, linux, RxPlan{}, ErrGSOType},
		"nothing but ECN":    {gso(tap.VnetGSOECN, 1000, 34), tcp4, linux, RxPlan{}, ErrGSOType},
		"GSO of the other IP": {
			gso(tap.VnetGSOTCPv6, 1000, 34), tcp4, linux, RxPlan{}, ErrGSOMismatch,
		},
		"GSO with the checksum elsewhere": {
			gso(tap.VnetGSOTCPv4, 1000, 54), tcp4, linux, RxPlan{}, ErrGSOMismatch,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := tt.frame.Bytes()
			h, err := Parse(b, len(b))
			if err != nil {
				t.Fatal(err)
			}
			got, err := PlanRx(tt.vnet, h, len(b), tt.guest)
			if err != tt.err {
				t.Errorf("error %v, want %v", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
			if !NeedsParse(tt.vnet.Flags, tt.vnet.GSOType) {
				if p, err := PlanRx(tt.vnet, Headers{}, len(b), tt.guest); err != nil || p != got {
					t.Errorf("depends on headers: %+v, %v", p, err)
				}
			}
		})
	}
}

func TestPlanRxOfWhatCannotBeParsed(t *testing.T) {
	v := tap.VnetHdr{Flags: tap.VnetNeedsCsum, CsumStart: 34, CsumOffset: 16}
	b := patched(packettest.Frame{IPv4: ip4, TCP: tcp}.Bytes(), 14, 0x40)
	h, err := Parse(b, len(b))
	if err != ErrIPHeader {
		t.Fatal(err)
	}
	want := RxPlan{Action: ActComplete, CsumStart: 34, CsumOffset: 16}
	if got, err := PlanRx(v, h, len(b), linux); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	v.GSOType, v.GSOSize = tap.VnetGSOTCPv4, 1000
	if _, err := PlanRx(v, h, len(b), linux); err != ErrGSOMismatch {
		t.Errorf("error %v, want %v", err, ErrGSOMismatch)
	}
}

// FuzzPlanTx: the kernel accepts the header of a planned packet, and the offloads that it
// requests make the packet correct.
func FuzzPlanTx(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s, true, uint8(0), uint16(0), uint16(0))
		f.Add(s, true, uint8(1), uint16(20), uint16(0))
		f.Add(s, false, uint8(2), uint16(9), uint16(0))
		f.Add(s[:len(s)-3], true, uint8(1), uint16(1), uint16(700))
	}
	fuzzloop.Fuzz(f, func(t *testing.T, b []byte, blank bool, typ uint8, size, more uint16) {
		total := len(b) + int(more)
		m := TxMeta{CsumBlank: blank, GSOType: netif.GSOType(typ), GSOSize: size}
		h, _ := Parse(b, total)
		p, err := PlanTx(m, h, total)
		if err != nil {
			return
		}
		v := p.Header
		if m.Plain() {
			if v != (tap.VnetHdr{}) || p.WritePseudo {
				t.Errorf("nothing asked for, planned %+v", p)
			}
			return
		}
		if v.Flags != tap.VnetNeedsCsum {
			t.Errorf("flags are %d", v.Flags)
		}
		if int(v.CsumStart)+int(v.CsumOffset)+2 > int(v.HdrLen) || int(v.HdrLen) > total {
			t.Errorf("offsets beyond each other: %+v", p)
		}
		if v.GSOType != tap.VnetGSONone {
			if v.GSOSize < MinGSOSize || v.GSOSize == 0xffff || v.CsumOffset != tcpCheck ||
				total-int(v.HdrLen) <= int(v.GSOSize) {
				t.Errorf("kernel would refuse %+v", p)
			}
		} else if v.GSOSize != 0 {
			t.Errorf("a GSO size without a type: %+v", p)
		}
		WritePseudo(b, h, total)
		if more != 0 {
			return
		}
		if err := Complete(v.CsumStart, v.CsumOffset, b); err != nil {
			t.Errorf("checksum cannot be finished: %v", err)
		}
		if sum := add16(checksum(b[h.L4:]), pseudoSum(b, h, total-int(h.L4))); sum != 0xffff {
			t.Errorf("checksum does not verify: sum %#04x", sum)
		}
	})
}

// FuzzPlanRx: every plan for any header of a TAP can be carried out.
func FuzzPlanRx(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s, []byte{1, 0, 0, 0, 0, 0, 34, 0, 16, 0}, uint8(0xf))
		f.Add(s, []byte{1, 0x81, 0, 0, 20, 0, 34, 0, 16, 0}, uint8(3))
		f.Add(s, []byte{0, 4, 0, 0, 9, 0, 0, 0, 0, 0}, uint8(0))
		f.Add(s, []byte{1, 0, 0, 0, 0, 0, 34, 0, 8, 0}, uint8(0))
	}
	fuzzloop.Fuzz(f, func(t *testing.T, b, hdr []byte, guest uint8) {
		if len(hdr) < 10 {
			return
		}
		v := tap.VnetHdr{
			Flags:      hdr[0],
			GSOType:    hdr[1],
			HdrLen:     binary.LittleEndian.Uint16(hdr[2:]),
			GSOSize:    binary.LittleEndian.Uint16(hdr[4:]),
			CsumStart:  binary.LittleEndian.Uint16(hdr[6:]),
			CsumOffset: binary.LittleEndian.Uint16(hdr[8:]),
		}
		g := Guest{guest&1 != 0, guest&2 != 0, guest&4 != 0, guest&8 != 0}
		h, _ := Parse(b, len(b))
		p, err := PlanRx(v, h, len(b), g)
		if err != nil {
			return
		}
		if p.CsumBlank && (p.Action != ActPass || !p.DataValidated || !h.transport() || !g.takesCsum(&h)) {
			t.Errorf("left to a guest that cannot: %+v", p)
		}
		if p.GSOType != netif.GSONone && (!p.CsumBlank || !g.takesGSO(&h) || p.GSOSize < MinGSOSize) {
			t.Errorf("GSO to a guest that cannot: %+v", p)
		}
		if p.WritePseudo {
			WritePseudo(b, h, len(b))
		}
		switch p.Action {
		case ActComplete:
			if err := Complete(p.CsumStart, p.CsumOffset, b); err != nil {
				t.Errorf("%+v: %v", p, err)
			}
		case ActCompleteSCTP:
			if err := CompleteSCTP(p.CsumStart, b); err != nil {
				t.Errorf("%+v: %v", p, err)
			}
		case ActSegment:
			var s Segmenter
			if err := s.Init(b, int(p.GSOSize)); err != nil && err != ErrTooLong {
				t.Errorf("%+v: %v", p, err)
			}
			if s.Left() > 8192 {
				t.Errorf("%d segments", s.Left())
			}
		}
	})
}

func BenchmarkPlan(b *testing.B) {
	frame := packettest.Frame{IPv4: ip4, TCP: tcp, Payload: packettest.Pattern(60000)}.Bytes()
	v := tap.VnetHdr{Flags: tap.VnetNeedsCsum, GSOType: tap.VnetGSOTCPv4, GSOSize: 1448, CsumStart: 34, CsumOffset: 16}
	m := TxMeta{CsumBlank: true, GSOType: netif.GSOTCPv4, GSOSize: 1448}
	b.Run("tx", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			h, _ := Parse(frame[:128], len(frame))
			if _, err := PlanTx(m, h, len(frame)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("rx", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			h, _ := Parse(frame, len(frame))
			if _, err := PlanRx(v, h, len(frame), linux); err != nil {
				b.Fatal(err)
			}
		}
	})
}
