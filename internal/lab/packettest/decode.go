// SPDX-License-Identifier: Apache-2.0

package packettest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Packet is a frame taken apart. Fields that the frame does not have are zero.
type Packet struct {
	DstMAC, SrcMAC [6]byte
	Tags           []Tag
	EtherType      uint16

	L3, L4, End int // offsets: IP header, transport header, payload

	Src, Dst netip.Addr
	ID       uint16 // of IPv4
	Proto    uint8  // final protocol
	Fragment bool   // one of several; its payload is what follows IP

	SrcPort, DstPort uint16
	Seq, Ack         uint32
	Flags            uint8

	Payload []byte // without padding of the frame
}

// Decode takes a frame apart. It fails if a length in it is not true.
func Decode(b []byte) (Packet, error) {
	var p Packet
	if len(b) < etherLen {
		return p, errors.New("shorter than an Ethernet header")
	}
	copy(p.DstMAC[:], b)
	copy(p.SrcMAC[:], b[6:])
	off := 12
	for {
		p.EtherType = binary.BigEndian.Uint16(b[off:])
		off += 2
		if p.EtherType != TypeVLAN && p.EtherType != TypeQinQ {
			break
		}
		if len(b) < off+4 {
			return p, errors.New("cut off in a VLAN tag")
		}
		p.Tags = append(p.Tags, Tag{p.EtherType, binary.BigEndian.Uint16(b[off:])})
		off += 2
	}
	p.L3 = off
	var err error
	switch p.EtherType {
	case TypeIPv4:
		err = p.decodeIPv4(b)
	case TypeIPv6:
		err = p.decodeIPv6(b)
	default:
		p.L3 = 0
		p.Payload = b[off:]
	}
	return p, err
}

func (p *Packet) decodeIPv4(b []byte) error {
	ip := b[p.L3:]
	if len(ip) < 20 || ip[0]>>4 != 4 {
		return errors.New("no IPv4 header")
	}
	n, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if n < 20 || total < n || total > len(ip) {
		return fmt.Errorf("IPv4 header of %d octets says %d, frame holds %d", n, total, len(ip))
	}
	p.ID = binary.BigEndian.Uint16(ip[4:])
	p.Fragment = binary.BigEndian.Uint16(ip[6:])&0x3fff != 0
	p.Proto = ip[9]
	p.Src, _ = netip.AddrFromSlice(ip[12:16])
	p.Dst, _ = netip.AddrFromSlice(ip[16:20])
	return p.decodeTransport(b[:p.L3+total], p.L3+n)
}

func (p *Packet) decodeIPv6(b []byte) error {
	ip := b[p.L3:]
	if len(ip) < ipv6Len || ip[0]>>4 != 6 {
		return errors.New("no IPv6 header")
	}
	total := ipv6Len + int(binary.BigEndian.Uint16(ip[4:]))
	if total > len(ip) {
		return fmt.Errorf("IPv6 packet says %d octets, frame holds %d", total, len(ip))
	}
	p.Src, _ = netip.AddrFromSlice(ip[8:24])
	p.Dst, _ = netip.AddrFromSlice(ip[24:40])
	b = b[:p.L3+total]
	off := p.L3 + ipv6Len
	p.Proto = ip[6]
	for {
		size := 0
		switch p.Proto {
		case ProtoHopByHop, ProtoRouting, ProtoDest, ProtoFragment, ProtoAuth:
			if len(b) < off+8 {
				return errors.New("cut off in an extension header")
			}
			switch p.Proto {
			case ProtoFragment:
				size = 8
				if binary.BigEndian.Uint16(b[off+2:])&^6 != 0 {
					p.Fragment = true
				}
			case ProtoAuth:
				size = (int(b[off+1]) + 2) * 4
			default:
				size = (int(b[off+1]) + 1) * 8
			}
		}
		if size == 0 {
			break
		}
		if len(b) < off+size {
			return errors.New("extension header beyond the packet")
		}
		p.Proto = b[off]
		off += size
		if p.Fragment {
			break
		}
	}
	return p.decodeTransport(b, off)
}

// decodeTransport takes the packet without padding.
func (p *Packet) decodeTransport(b []byte, off int) error {
	if p.Fragment {
		p.End = off
		p.Payload = b[off:]
		return nil
	}
	p.L4 = off
	h := b[off:]
	n := 0
	switch p.Proto {
	case ProtoTCP:
		if len(h) < 20 {
			return errors.New("cut off in the TCP header")
		}
		if n = int(h[12]>>4) * 4; n < 20 || n > len(h) {
			return fmt.Errorf("TCP header says %d octets", n)
		}
		p.Seq, p.Ack = binary.BigEndian.Uint32(h[4:]), binary.BigEndian.Uint32(h[8:])
		p.Flags = h[13]
	case ProtoUDP:
		if n = 8; len(h) < n || int(binary.BigEndian.Uint16(h[4:])) != len(h) {
			return errors.New("bad UDP length")
		}
	case ProtoSCTP:
		if n = 12; len(h) < n {
			return errors.New("cut off in the SCTP header")
		}
	case ProtoICMP, ProtoICMPv6:
		if n = 8; len(h) < n {
			return errors.New("cut off in the ICMP header")
		}
	}
	if n >= 8 && p.Proto != ProtoICMP && p.Proto != ProtoICMPv6 {
		p.SrcPort, p.DstPort = binary.BigEndian.Uint16(h), binary.BigEndian.Uint16(h[2:])
	}
	p.End = off + n
	p.Payload = h[n:]
	return nil
}

// Verify takes a frame apart and checks the checksums of IPv4, TCP, UDP, SCTP
// and ICMP in it. Those of a fragmented transport cannot be checked.
func Verify(b []byte) (Packet, error) {
	p, err := Decode(b)
	if err != nil {
		return p, err
	}
	if p.EtherType == TypeIPv4 {
		n := int(b[p.L3]&15) * 4
		if s := naiveSum(b[p.L3 : p.L3+n]); s != 0xffff {
			return p, fmt.Errorf("IPv4 header checksum is wrong: sum %#04x", s)
		}
	}
	if p.L4 == 0 {
		return p, nil
	}
	t := b[p.L4 : p.End+len(p.Payload)]
	head := pseudo{p.Src.AsSlice(), p.Dst.AsSlice(), p.Proto}.bytes(len(t))
	switch p.Proto {
	case ProtoSCTP:
		c := append([]byte{}, t...)
		clear(c[8:12])
		if got, want := binary.LittleEndian.Uint32(t[8:]), naiveCRC32c(c); got != want {
			return p, fmt.Errorf("SCTP checksum is %#08x, should be %#08x", got, want)
		}
		return p, nil
	case ProtoICMP:
		head = nil
	case ProtoUDP:
		if t[6] == 0 && t[7] == 0 {
			if p.EtherType == TypeIPv6 {
				return p, errors.New("UDP over IPv6 without a checksum")
			}
			return p, nil
		}
	case ProtoTCP, ProtoICMPv6:
	default:
		return p, nil
	}
	if s := naiveSum(append(head, t...)); s != 0xffff {
		return p, fmt.Errorf("checksum of protocol %d is wrong: sum %#04x", p.Proto, s)
	}
	return p, nil
}
