// SPDX-License-Identifier: Apache-2.0

package packettest

import (
	"encoding/binary"
	"net/netip"
)

// Frame describes an Ethernet frame. At most one of IPv4 and IPv6, and at most
// one of TCP, UDP, SCTP and ICMP, is set.
type Frame struct {
	Dst, Src [6]byte // zero: 02:00:00:00:00:02 and 02:00:00:00:00:01
	Tags     []Tag   // outermost first
	// EtherType is for frames without IP; with it, it is known.
	EtherType uint16

	IPv4 *IPv4
	IPv6 *IPv6

	TCP  *TCP
	UDP  *UDP
	SCTP *SCTP
	ICMP *ICMP

	Payload []byte
	// Partial leaves the sum of the pseudo-header in the checksum field of
	// TCP and UDP, for somebody else to finish.
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
	TOS, TTL uint8      // TTL zero: 64
	ID       uint16
	DF, MF   bool
	Offset   int    // of a fragment, in octets; a multiple of 8
	Options  []byte // padded to a multiple of 4 with zeros
	Proto    uint8  // zero: that of the transport
}

// IPv6 describes an IPv6 header.
type IPv6 struct {
	Src, Dst     netip.Addr // zero: 2001:db8::1 and 2001:db8::2
	TrafficClass uint8
	FlowLabel    uint32
	HopLimit     uint8 // zero: 64
	Ext          []Ext
	NextHeader   uint8 // what follows Ext; zero: that of the transport
}

// Ext is an IPv6 extension header. Body is all of it, with its length field; the
// first octet is replaced by the number of what follows.
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

const (
	etherLen = 14
	ipv6Len  = 40
)

// Options is an extension header of n octets, a multiple of 8, that holds
// nothing but padding: hop-by-hop options, a routing header without segments
// left or destination options.
func Options(typ uint8, n int) Ext {
	body := make([]byte, n)
	body[1] = byte(n/8 - 1)
	if typ != ProtoRouting {
		// PadN over all that is left; of more than 257 octets the rest
		// is Pad1, which is zero.
		body[2] = 1
		body[3] = byte(min(n-4, 255))
	}
	return Ext{typ, body}
}

// Fragment is a fragment header. The offset is in octets, a multiple of 8.
func Fragment(offset int, more bool, id uint32) Ext {
	body := make([]byte, 8)
	binary.BigEndian.PutUint16(body[2:], uint16(offset))
	if more {
		body[3] |= 1
	}
	binary.BigEndian.PutUint32(body[4:], id)
	return Ext{ProtoFragment, body}
}

// Auth is an authentication header of n octets, a multiple of 4.
func Auth(n int) Ext {
	body := make([]byte, n)
	body[1] = byte(n/4 - 2)
	return Ext{ProtoAuth, body}
}

// Pattern is n octets that repeat only after a long while, so that no two parts
// of it are easily mixed up.
func Pattern(n int) []byte {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

// Bytes builds the frame.
func (f Frame) Bytes() []byte {
	dst, src := f.Dst, f.Src
	if dst == ([6]byte{}) {
		dst = [6]byte{2, 0, 0, 0, 0, 2}
	}
	if src == ([6]byte{}) {
		src = [6]byte{2, 0, 0, 0, 0, 1}
	}
	b := append(append([]byte{}, dst[:]...), src[:]...)
	for _, t := range f.Tags {
		b = binary.BigEndian.AppendUint16(b, or(t.TPID, TypeVLAN))
		b = binary.BigEndian.AppendUint16(b, t.TCI)
	}
	switch {
	case f.IPv4 != nil:
		b = binary.BigEndian.AppendUint16(b, TypeIPv4)
		b = f.ipv4(b)
	case f.IPv6 != nil:
		b = binary.BigEndian.AppendUint16(b, TypeIPv6)
		b = f.ipv6(b)
	default:
		b = binary.BigEndian.AppendUint16(b, f.EtherType)
		b = append(b, f.Payload...)
	}
	for len(b) < f.PadTo {
		b = append(b, 0)
	}
	return b
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

func (f Frame) ipv4(b []byte) []byte {
	ip := f.IPv4
	src := addr(ip.Src, "192.0.2.1")
	dst := addr(ip.Dst, "192.0.2.2")
	proto := or(ip.Proto, f.proto())
	body := f.transport(pseudo{src, dst, f.proto()})

	opts := pad4(ip.Options)
	frag := uint16(ip.Offset / 8)
	if ip.DF {
		frag |= 0x4000
	}
	if ip.MF {
		frag |= 0x2000
	}
	h := []byte{0x45 + byte(len(opts)/4), ip.TOS}
	h = binary.BigEndian.AppendUint16(h, uint16(20+len(opts)+len(body)))
	h = binary.BigEndian.AppendUint16(h, ip.ID)
	h = binary.BigEndian.AppendUint16(h, frag)
	h = append(h, or(ip.TTL, 64), proto, 0, 0)
	h = append(append(append(h, src...), dst...), opts...)
	binary.BigEndian.PutUint16(h[10:], ^naiveSum(h))
	return append(append(b, h...), body...)
}

func (f Frame) ipv6(b []byte) []byte {
	ip := f.IPv6
	src := addr(ip.Src, "2001:db8::1")
	dst := addr(ip.Dst, "2001:db8::2")
	body := f.transport(pseudo{src, dst, f.proto()})

	next := or(ip.NextHeader, f.proto())
	var ext []byte
	for i := len(ip.Ext) - 1; i >= 0; i-- {
		e := append([]byte{}, ip.Ext[i].Body...)
		e[0] = next
		next = ip.Ext[i].Type
		ext = append(e, ext...)
	}
	b = binary.BigEndian.AppendUint32(b, 6<<28|uint32(ip.TrafficClass)<<20|ip.FlowLabel&0xfffff)
	b = binary.BigEndian.AppendUint16(b, uint16(len(ext)+len(body)))
	b = append(b, next, or(ip.HopLimit, 64))
	b = append(append(b, src...), dst...)
	return append(append(b, ext...), body...)
}

// transport builds the transport header and the payload.
func (f Frame) transport(p pseudo) []byte {
	var h []byte
	check := -1
	switch {
	case f.TCP != nil:
		t := f.TCP
		opts := pad4(t.Options)
		h = binary.BigEndian.AppendUint16(h, or(t.SrcPort, 40000))
		h = binary.BigEndian.AppendUint16(h, or(t.DstPort, 443))
		h = binary.BigEndian.AppendUint32(h, t.Seq)
		h = binary.BigEndian.AppendUint32(h, t.Ack)
		h = append(h, byte(20+len(opts))<<2, t.Flags)
		h = binary.BigEndian.AppendUint16(h, t.Window)
		h = append(h, 0, 0)
		h = binary.BigEndian.AppendUint16(h, t.Urgent)
		h = append(h, opts...)
		check = 16
	case f.UDP != nil:
		u := f.UDP
		h = binary.BigEndian.AppendUint16(h, or(u.SrcPort, 40000))
		h = binary.BigEndian.AppendUint16(h, or(u.DstPort, 53))
		h = binary.BigEndian.AppendUint16(h, uint16(8+len(f.Payload)))
		h = append(h, 0, 0)
		if !u.NoChecksum {
			check = 6
		}
	case f.SCTP != nil:
		s := f.SCTP
		h = binary.BigEndian.AppendUint16(h, or(s.SrcPort, 40000))
		h = binary.BigEndian.AppendUint16(h, or(s.DstPort, 2905))
		h = binary.BigEndian.AppendUint32(h, s.Tag)
		h = append(h, 0, 0, 0, 0)
	case f.ICMP != nil:
		h = append(h, f.ICMP.Type, f.ICMP.Code, 0, 0)
		h = binary.BigEndian.AppendUint32(h, f.ICMP.Rest)
		check = 2
	}
	b := append(h, f.Payload...)
	switch {
	case f.SCTP != nil:
		binary.LittleEndian.PutUint32(b[8:], naiveCRC32c(b))
	case check < 0:
	case f.Partial && f.ICMP == nil:
		binary.BigEndian.PutUint16(b[check:], naiveSum(p.bytes(len(b))))
	default:
		var head []byte
		if p.proto != ProtoICMP {
			head = p.bytes(len(b))
		}
		c := ^naiveSum(append(head, b...))
		if c == 0 && f.UDP != nil {
			c = 0xffff
		}
		binary.BigEndian.PutUint16(b[check:], c)
	}
	return b
}

// pseudo is what the checksums of TCP, UDP and ICMPv6 cover of IP.
type pseudo struct {
	src, dst []byte
	proto    uint8
}

// bytes is the pseudo-header of IPv6, which sums up to the same as that of IPv4.
func (p pseudo) bytes(n int) []byte {
	b := append(append([]byte{}, p.src...), p.dst...)
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	return append(b, 0, 0, 0, p.proto)
}

// naiveSum is RFC 1071 read aloud.
func naiveSum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		w := uint32(b[i]) << 8
		if i+1 < len(b) {
			w |= uint32(b[i+1])
		}
		s += w
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// naiveCRC32c is RFC 3309's polynomial, bit by bit.
func naiveCRC32c(b []byte) uint32 {
	c := ^uint32(0)
	for _, x := range b {
		c ^= uint32(x)
		for range 8 {
			if c&1 != 0 {
				c = c>>1 ^ 0x82f63b78
			} else {
				c >>= 1
			}
		}
	}
	return ^c
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
