// SPDX-License-Identifier: Apache-2.0

package packettest

import (
	"encoding/binary"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Frame describes an Ethernet frame. At most one of IPv4 and IPv6, and at most
// one of TCP, UDP, SCTP and ICMP, is set.
type Frame struct {
	Dst, Src [6]byte // zero: 02:00:00:00:00:02 and 02:00:00:00:00:01
	Tags     []Tag   // outermost first
	// EtherType is that of a frame without IP.
	EtherType uint16

	IPv4 *IPv4
	IPv6 *IPv6

	TCP  *TCP
	UDP  *UDP
	SCTP *SCTP
	ICMP *ICMP

	Payload []byte
	// Partial leaves the sum of the pseudo-header in the checksum field of
	// TCP and UDP, as a sender with checksum offload does.
	Partial bool
	// PadTo is the least length of the frame, filled up with zeros.
	PadTo int
}

// Tag is a VLAN tag.
type Tag struct {
	TPID uint16 // zero: 802.1Q
	TCI  uint16
}

// IPv4 describes an IPv4 header.
type IPv4 struct {
	Src, Dst netip.Addr // zero: 192.0.2.1 and 192.0.2.2
	TOS      uint8
	ID       uint16
	DF, MF   bool
	Offset   int    // of a fragment, in bytes; a multiple of 8
	Options  []byte // padded to a multiple of 4 with zeros
	Proto    uint8  // zero: that of the transport
}

// IPv6 describes an IPv6 header.
type IPv6 struct {
	Src, Dst     netip.Addr // zero: 2001:db8::1 and 2001:db8::2
	TrafficClass uint8
	FlowLabel    uint32
	Ext          []Ext
}

// Ext is an IPv6 extension header. Body is the whole header with its length field. Its
// first byte is replaced by the number of the next header.
type Ext struct {
	Type uint8
	Body []byte
}

// TCP flags.
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
)

// TCP describes a TCP header.
type TCP struct {
	SrcPort, DstPort uint16 // zero: 40000 and 443
	Seq, Ack         uint32
	Flags            uint8
	Window, Urgent   uint16
	Options          []byte // padded to a multiple of 4 with zeros
}

// UDP describes a UDP header.
type UDP struct {
	SrcPort, DstPort uint16 // zero: 40000 and 53
	NoChecksum       bool
}

// SCTP describes an SCTP common header.
type SCTP struct {
	SrcPort, DstPort uint16 // zero: 40000 and 2905
	Tag              uint32
}

// ICMP describes an ICMP header, of either version.
type ICMP struct {
	Type, Code uint8
	Rest       uint32
}

// Numbers of protocols and extension headers.
const (
	ProtoHopByHop = 0
	ProtoICMP     = 1
	ProtoTCP      = 6
	ProtoUDP      = 17
	ProtoRouting  = 43
	ProtoFragment = 44
	ProtoESP      = 50
	ProtoAuth     = 51
	ProtoICMPv6   = 58
	ProtoNone     = 59
	ProtoDest     = 60
	ProtoSCTP     = 132
)

// EtherTypes.
const (
	TypeIPv4 = 0x0800
	TypeARP  = 0x0806
	TypeVLAN = 0x8100
	TypeIPv6 = 0x86dd
	TypeQinQ = 0x88a8
)

// Options returns an extension header of n bytes, a multiple of 8, that holds
// nothing but padding: hop-by-hop options, a routing header with no segments left,
// or destination options.
func Options(typ uint8, n int) Ext {
	body := make([]byte, n)
	body[1] = byte(n/8 - 1)
	if typ != ProtoRouting {
		// One PadN; beyond its 257 bytes the zeros are Pad1 options.
		body[2] = 1
		body[3] = byte(min(n-4, 255))
	}
	return Ext{typ, body}
}

// Fragment returns a fragment header. The offset is in bytes, a multiple of 8.
func Fragment(offset int, more bool, id uint32) Ext {
	body := make([]byte, 8)
	binary.BigEndian.PutUint16(body[2:], uint16(offset))
	if more {
		body[3] |= 1
	}
	binary.BigEndian.PutUint32(body[4:], id)
	return Ext{ProtoFragment, body}
}

// Auth returns an authentication header of n bytes, a multiple of 4.
func Auth(n int) Ext {
	body := make([]byte, n)
	body[1] = byte(n/4 - 2)
	return Ext{ProtoAuth, body}
}

// Pattern returns n bytes of a sequence with a long period, so that a test detects
// swapped parts.
func Pattern(n int) []byte {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

// Bytes returns the frame. It panics if gopacket cannot build it.
func (f Frame) Bytes() []byte {
	dst, src := or(f.Dst, [6]byte{2, 0, 0, 0, 0, 2}), or(f.Src, [6]byte{2, 0, 0, 0, 0, 1})
	b := append(dst[:], src[:]...)
	for _, t := range f.Tags {
		b = binary.BigEndian.AppendUint16(b, or(t.TPID, TypeVLAN))
		b = binary.BigEndian.AppendUint16(b, t.TCI)
	}
	switch {
	case f.IPv4 != nil:
		b = binary.BigEndian.AppendUint16(b, TypeIPv4)
		b = append(b, f.ipv4()...)
	case f.IPv6 != nil:
		b = binary.BigEndian.AppendUint16(b, TypeIPv6)
		b = append(b, f.ipv6()...)
	default:
		b = binary.BigEndian.AppendUint16(b, f.EtherType)
		b = append(b, f.Payload...)
	}
	return append(b, make([]byte, max(f.PadTo-len(b), 0))...)
}

func (f Frame) proto() uint8 {
	switch {
	case f.TCP != nil:
		return ProtoTCP
	case f.UDP != nil:
		return ProtoUDP
	case f.SCTP != nil:
		return ProtoSCTP
	case f.ICMP != nil && f.IPv4 != nil:
		return ProtoICMP
	case f.ICMP != nil:
		return ProtoICMPv6
	}
	return ProtoNone
}

func (f Frame) ipv4() []byte {
	ip := &layers.IPv4{
		Version: 4, TOS: f.IPv4.TOS, TTL: 64, Id: f.IPv4.ID,
		FragOffset: uint16(f.IPv4.Offset / 8),
		Protocol:   layers.IPProtocol(or(f.IPv4.Proto, f.proto())),
		SrcIP:      addr(f.IPv4.Src, "192.0.2.1"), DstIP: addr(f.IPv4.Dst, "192.0.2.2"),
		Padding: f.IPv4.Options,
	}
	if f.IPv4.DF {
		ip.Flags |= layers.IPv4DontFragment
	}
	if f.IPv4.MF {
		ip.Flags |= layers.IPv4MoreFragments
	}
	return serialize(ip, gopacket.Payload(f.transport(ip)))
}

func (f Frame) ipv6() []byte {
	next := f.proto()
	var ext []byte
	for i := len(f.IPv6.Ext) - 1; i >= 0; i-- {
		e := append([]byte{}, f.IPv6.Ext[i].Body...)
		e[0] = next
		next = f.IPv6.Ext[i].Type
		ext = append(e, ext...)
	}
	ip := &layers.IPv6{
		Version: 6, TrafficClass: f.IPv6.TrafficClass, FlowLabel: f.IPv6.FlowLabel & 0xfffff,
		HopLimit: 64, NextHeader: layers.IPProtocol(next),
		SrcIP: addr(f.IPv6.Src, "2001:db8::1"), DstIP: addr(f.IPv6.Dst, "2001:db8::2"),
	}
	return serialize(ip, gopacket.Payload(ext), gopacket.Payload(f.transport(ip)))
}

// transport returns the transport header and the payload behind ip.
func (f Frame) transport(ip gopacket.NetworkLayer) []byte {
	payload := gopacket.Payload(f.Payload)
	var b []byte
	var check int // offset of the checksum of TCP and UDP
	switch {
	case f.TCP != nil:
		t := &layers.TCP{
			SrcPort: layers.TCPPort(or(f.TCP.SrcPort, 40000)), DstPort: layers.TCPPort(or(f.TCP.DstPort, 443)),
			Seq: f.TCP.Seq, Ack: f.TCP.Ack, Window: f.TCP.Window, Urgent: f.TCP.Urgent,
			// gopacket writes padding as it is, and so options that are not valid.
			Padding: pad4(f.TCP.Options),
		}
		setFlags(t, f.TCP.Flags)
		_ = t.SetNetworkLayerForChecksum(ip)
		b, check = serialize(t, payload), 16
	case f.UDP != nil:
		u := &layers.UDP{SrcPort: layers.UDPPort(or(f.UDP.SrcPort, 40000)), DstPort: layers.UDPPort(or(f.UDP.DstPort, 53))}
		_ = u.SetNetworkLayerForChecksum(ip)
		b, check = serialize(u, payload), 6
	case f.SCTP != nil:
		return serialize(&layers.SCTP{
			SrcPort: layers.SCTPPort(or(f.SCTP.SrcPort, 40000)), DstPort: layers.SCTPPort(or(f.SCTP.DstPort, 2905)),
			VerificationTag: f.SCTP.Tag,
		}, payload)
	case f.ICMP != nil:
		rest := gopacket.Payload(binary.BigEndian.AppendUint32(nil, f.ICMP.Rest))
		if f.IPv6 == nil {
			return serialize(&layers.ICMPv4{
				TypeCode: layers.CreateICMPv4TypeCode(f.ICMP.Type, f.ICMP.Code),
				Id:       uint16(f.ICMP.Rest >> 16), Seq: uint16(f.ICMP.Rest),
			}, payload)
		}
		i := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(f.ICMP.Type, f.ICMP.Code)}
		_ = i.SetNetworkLayerForChecksum(ip)
		return serialize(i, rest, payload)
	default:
		return f.Payload
	}
	switch {
	case f.UDP != nil && f.UDP.NoChecksum:
		binary.BigEndian.PutUint16(b[check:], 0)
	case f.Partial:
		binary.BigEndian.PutUint16(b[check:], pseudoSum(ip, f.proto(), len(b)))
	}
	return b
}

// setFlags sets the flags of t from the flags byte of a TCP header.
func setFlags(t *layers.TCP, flags uint8) {
	for bit, to := range []*bool{&t.FIN, &t.SYN, &t.RST, &t.PSH, &t.ACK, &t.URG, &t.ECE, &t.CWR} {
		*to = flags>>bit&1 != 0
	}
}

// pseudoSum returns the sum of the pseudo-header for n bytes of TCP or UDP. That of
// IPv6 (RFC 8200, section 8.1) sums up to the same as that of IPv4.
func pseudoSum(ip gopacket.NetworkLayer, proto uint8, n int) uint16 {
	src, dst := ip.NetworkFlow().Endpoints()
	b := append(src.Raw(), dst.Raw()...)
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	b = append(b, 0, 0, 0, proto)
	return ^gopacket.FoldChecksum(gopacket.ComputeChecksum(b, 0))
}

// serialize has gopacket write layers, with their lengths and checksums.
func serialize(l ...gopacket.SerializableLayer) []byte {
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, l...); err != nil {
		panic(err)
	}
	return buf.Bytes()
}

func addr(a netip.Addr, other string) []byte {
	if !a.IsValid() {
		a = netip.MustParseAddr(other)
	}
	return a.AsSlice()
}

func pad4(b []byte) []byte {
	return append(append([]byte{}, b...), make([]byte, -len(b)&3)...)
}

func or[T comparable](v, other T) T {
	var zero T
	if v == zero {
		return other
	}
	return v
}
