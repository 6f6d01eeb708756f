// SPDX-License-Identifier: Apache-2.0

package packettest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Packet holds the fields of a decoded frame. Fields that the frame does not have
// are zero.
type Packet struct {
	DstMAC, SrcMAC [6]byte
	Tags           []Tag
	EtherType      uint16

	L3, L4, End int // offsets: IP header, transport header, payload

	Src, Dst netip.Addr
	ID       uint16 // of IPv4
	Proto    uint8  // final protocol
	Fragment bool   // one of several; its payload follows the IP headers

	SrcPort, DstPort uint16
	Seq, Ack         uint32
	Flags            uint8

	Payload []byte // without padding of the frame
}

// decoder decodes one frame.
type decoder struct {
	Packet
	end       int // offset behind the IP packet
	ip        gopacket.NetworkLayer
	transport gopacket.DecodingLayer // nil if not decoded
	truncated bool
}

// SetTruncated implements [gopacket.DecodeFeedback]: a header announces more bytes than
// the frame has.
func (p *decoder) SetTruncated() { p.truncated = true }

// Decode has gopacket decode a frame up to its transport header. It fails if a
// length in the frame is wrong.
func Decode(b []byte) (Packet, error) {
	var p decoder
	err := p.decode(b)
	return p.Packet, err
}

func (p *decoder) decode(b []byte) error {
	at := 12
	for ; ; at += 4 {
		if len(b) < at+2 {
			return errors.New("the Ethernet header is cut off")
		}
		p.EtherType = binary.BigEndian.Uint16(b[at:])
		if p.EtherType != TypeVLAN && p.EtherType != TypeQinQ {
			break
		}
		if len(b) < at+4 {
			return errors.New("VLAN tag cut off")
		}
		p.Tags = append(p.Tags, Tag{p.EtherType, binary.BigEndian.Uint16(b[at+2:])})
	}
	p.DstMAC, p.SrcMAC, p.Payload = [6]byte(b), [6]byte(b[6:]), b[at+2:]
	if p.EtherType != TypeIPv4 && p.EtherType != TypeIPv6 {
		return nil
	}
	p.L3 = at + 2
	next := layers.EthernetType(p.EtherType).LayerType()
	for l := p.layer(next); l != nil; l = p.layer(next) {
		if err := l.DecodeFromBytes(p.Payload, p); err != nil {
			return err
		}
		if err := p.note(l); err != nil {
			return err
		}
		next, p.Payload = l.NextLayerType(), l.LayerPayload()
	}
	if p.truncated {
		return errors.New("a header promises more bytes than the frame has")
	}
	if p.transport != nil && p.Proto == ProtoICMPv6 {
		if len(p.Payload) < 4 {
			return errors.New("ICMPv6 header cut off")
		}
		p.Payload = p.Payload[4:] // gopacket counts these bytes as part of the message
	}
	p.End = p.end - len(p.Payload)
	if p.transport == nil && !p.Fragment {
		p.L4 = p.End
	}
	return nil
}

// layer returns the decoder for the next header, nil if the payload comes next.
func (p *decoder) layer(next gopacket.LayerType) gopacket.DecodingLayer {
	switch {
	case p.ip == nil && next == layers.LayerTypeIPv4:
		return &layers.IPv4{}
	case p.ip == nil:
		return &layers.IPv6{}
	case p.transport != nil:
		return nil
	case next == layers.LayerTypeIPv6Fragment:
		return &layers.IPv6Fragment{}
	case layers.LayerClassIPv6Extension.Contains(next):
		return &layers.IPv6ExtensionSkipper{}
	}
	switch next {
	case layers.LayerTypeTCP:
		p.transport = &layers.TCP{}
	case layers.LayerTypeUDP:
		p.transport = &layers.UDP{}
	case layers.LayerTypeSCTP:
		p.transport = &layers.SCTP{}
	case layers.LayerTypeICMPv4:
		p.transport = &layers.ICMPv4{}
	case layers.LayerTypeICMPv6:
		p.transport = &layers.ICMPv6{}
	case layers.LayerTypeIPSecAH:
		if p.EtherType == TypeIPv6 {
			return &layers.IPSecAH{}
		}
	}
	return p.transport
}

// note copies the fields of l, which was decoded from p.Payload.
func (p *decoder) note(l gopacket.DecodingLayer) error {
	if l == p.transport {
		p.L4 = p.end - len(p.Payload)
	}
	switch l := l.(type) {
	case *layers.IPv4:
		total := binary.BigEndian.Uint16(l.Contents[2:]) // gopacket replaces 0
		if l.Version != 4 || total == 0 {
			return errors.New("no IPv4 header")
		}
		p.ip, p.end = l, p.L3+int(total)
		p.ID, p.Proto = l.Id, uint8(l.Protocol)
		p.Fragment = l.NextLayerType() == gopacket.LayerTypeFragment
		p.Src, p.Dst = netip.AddrFrom4([4]byte(l.SrcIP)), netip.AddrFrom4([4]byte(l.DstIP))
	case *layers.IPv6:
		if l.Version != 6 || l.Length == 0 {
			return errors.New("no IPv6 header")
		}
		p.ip, p.end, p.Proto = l, p.L3+len(l.Contents)+int(l.Length), uint8(l.NextHeader)
		if l.HopByHop != nil { // which gopacket decodes together with the IPv6 header
			p.Proto = uint8(l.HopByHop.NextHeader)
		}
		p.Src, p.Dst = netip.AddrFrom16([16]byte(l.SrcIP)), netip.AddrFrom16([16]byte(l.DstIP))
	case *layers.IPv6ExtensionSkipper:
		p.Proto = uint8(l.NextHeader)
	case *layers.IPSecAH:
		p.Proto = uint8(l.NextHeader)
	case *layers.IPv6Fragment:
		p.Proto, p.Fragment = uint8(l.NextHeader), l.NextLayerType() == gopacket.LayerTypeFragment
	case *layers.TCP:
		p.SrcPort, p.DstPort, p.Seq, p.Ack, p.Flags = uint16(l.SrcPort), uint16(l.DstPort), l.Seq, l.Ack, l.Contents[13]
	case *layers.UDP:
		p.SrcPort, p.DstPort = uint16(l.SrcPort), uint16(l.DstPort)
		if int(l.Length) != len(p.Payload) {
			return fmt.Errorf("UDP length is %d, IP has %d bytes", l.Length, len(p.Payload))
		}
	case *layers.SCTP:
		p.SrcPort, p.DstPort = uint16(l.SrcPort), uint16(l.DstPort)
	}
	return nil
}

// Verify decodes a frame and has gopacket verify the checksums of IPv4, TCP, UDP and
// ICMP in it, and verifies that of SCTP. That of a fragmented transport cannot be
// verified.
func Verify(b []byte) (Packet, error) {
	var p decoder
	if err := p.decode(b); err != nil {
		return p.Packet, err
	}
	if s, ok := p.transport.(interface {
		SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
	}); ok {
		if err := s.SetNetworkLayerForChecksum(p.ip); err != nil {
			return p.Packet, err
		}
	}
	for _, l := range []any{p.ip, p.transport} {
		switch l := l.(type) {
		case *layers.SCTP:
			sum := append(append([]byte{}, l.Contents...), l.Payload...)
			clear(sum[8:12])
			if want := crc32.Checksum(sum, crc32.MakeTable(crc32.Castagnoli)); binary.LittleEndian.Uint32(l.Contents[8:]) != want {
				return p.Packet, fmt.Errorf("SCTP checksum is %#08x, want %#08x", l.Contents[8:], want)
			}
		case gopacket.LayerWithChecksum:
			err, got := l.VerifyChecksum()
			if err != nil {
				return p.Packet, err
			}
			if u, ok := l.(*layers.UDP); ok && u.Checksum == 0 && p.EtherType == TypeIPv6 {
				return p.Packet, errors.New("UDP over IPv6 without a checksum")
			}
			if !got.Valid {
				return p.Packet, fmt.Errorf("%T checksum is %#04x, want %#04x", l, got.Actual, got.Correct)
			}
		}
	}
	return p.Packet, nil
}
