// SPDX-License-Identifier: Apache-2.0

package ringscript

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/netbackd/netbackd/internal/lab/packettest"
)

// Frames have a source address that no machine has, and the EtherType for local
// experiments (IEEE 802), so that no kernel answers them.
const (
	typeTest = 0x88b5
	minFrame = 1
	ethLen   = 14
	vlanLen  = 4
	ipv4Len  = 20
	ipv6Len  = 40
	tcpLen   = 20
	udpLen   = 8
)

// frameSpec describes a frame. The same spec gives the same bytes, in the
// guest and on the host.
type frameSpec struct {
	name     string
	length   int
	dst      [6]byte        // zero: an address that no machine has
	proto    string         // "", tcp or udp
	from, to netip.AddrPort // zero: some of IPv4; with proto
	mss      uint16         // to be segmented, with tcp
	vlan     uint16         // with proto; 0: no tag
	fragment bool           // the first of a packet, with IPv4
}

// l4 returns the offset of the transport header.
func (s *frameSpec) l4() int {
	n := ethLen
	if s.vlan != 0 {
		n += vlanLen
	}
	if s.v6() {
		return n + ipv6Len
	}
	return n + ipv4Len
}

// header returns the number of bytes before the payload.
func (s *frameSpec) header() int {
	switch s.proto {
	case "tcp":
		return s.l4() + tcpLen
	case "udp":
		return s.l4() + udpLen
	}
	return ethLen
}

func (s *frameSpec) v6() bool { return s.from.Addr().Is6() }

// lowest returns the least length of such a frame in bytes.
func (s *frameSpec) lowest() int {
	if s.proto == "" {
		return minFrame
	}
	return s.header()
}

// blank reports whether the checksum is left to the receiver.
func (s *frameSpec) blank() bool { return s.proto == "tcp" && s.vlan == 0 && !s.fragment }

// check returns an error if parts of the spec contradict each other.
func (s *frameSpec) check() error {
	switch {
	case s.length < s.lowest() || s.length > 0xffff:
		return fmt.Errorf("length is %d, want %d to 65535", s.length, s.lowest())
	case s.from.IsValid() != s.to.IsValid() || s.from.Addr().Is4() != s.to.Addr().Is4():
		return fmt.Errorf("from %v to %v: want two addresses of one family", s.from, s.to)
	case s.fragment && s.v6():
		return fmt.Errorf("a fragment is of IPv4")
	case s.mss > 0 && !s.blank():
		return fmt.Errorf("a fragment or tagged frame is not to be segmented")
	}
	return nil
}

// frame is a frame.
type frame struct {
	frameSpec
	bytes []byte
}

// make makes the frame. Its payload depends on the name, so that frames differ.
func (s frameSpec) make() *frame {
	f := packettest.Frame{EtherType: typeTest, Dst: s.dst, Partial: s.blank()}
	if s.proto != "" {
		f.EtherType = 0 // that of the IP header
		if s.v6() {
			f.IPv6 = &packettest.IPv6{Src: s.from.Addr(), Dst: s.to.Addr()}
		} else {
			f.IPv4 = &packettest.IPv4{Src: s.from.Addr(), Dst: s.to.Addr(), MF: s.fragment}
		}
		if s.vlan != 0 {
			f.Tags = []packettest.Tag{{TCI: s.vlan}}
		}
	}
	switch s.proto {
	case "tcp":
		f.TCP = &packettest.TCP{SrcPort: s.from.Port(), DstPort: s.to.Port(), Flags: packettest.ACK}
	case "udp":
		f.UDP = &packettest.UDP{SrcPort: s.from.Port(), DstPort: s.to.Port()}
	}
	f.Payload = packettest.Pattern(max(s.length-s.header(), 0))
	for i := range f.Payload {
		if i < len(s.name) {
			f.Payload[i] = s.name[i]
		}
	}
	return &frame{s, f.Bytes()[:s.length]}
}

// words formats the spec as part of a question to the umpire.
func (s frameSpec) words() string {
	return fmt.Sprintf("%s %d %x %q %q %q %d %d %t", strconv.Quote(s.name), s.length, s.dst, s.proto, address(s.from), address(s.to), s.mss, s.vlan, s.fragment)
}

func address(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// readAddress inverts address.
func readAddress(s string) (a netip.AddrPort, err error) {
	if s == "" {
		return a, nil
	}
	return netip.ParseAddrPort(s)
}

// readSpec inverts words.
func readSpec(w []string) (s frameSpec, err error) {
	if len(w) != 9 {
		return s, fmt.Errorf("%q is no frame", w)
	}
	s.name, s.proto = w[0], w[3]
	var dst []byte
	number := func(w string) (uint16, error) {
		n, err := strconv.ParseUint(w, 10, 16)
		return uint16(n), err
	}
	for _, f := range []func() error{
		func() (err error) { s.length, err = strconv.Atoi(w[1]); return err },
		func() (err error) { _, err = fmt.Sscanf(w[2], "%x", &dst); return err },
		func() (err error) { s.from, err = readAddress(w[4]); return err },
		func() (err error) { s.to, err = readAddress(w[5]); return err },
		func() (err error) { s.mss, err = number(w[6]); return err },
		func() (err error) { s.vlan, err = number(w[7]); return err },
		func() (err error) { s.fragment, err = strconv.ParseBool(w[8]); return err },
		s.check,
	} {
		if err := f(); err != nil {
			return s, fmt.Errorf("frame %q: %w", w, err)
		}
	}
	if len(dst) != len(s.dst) || s.proto != "" && s.proto != "tcp" && s.proto != "udp" {
		return s, fmt.Errorf("%q is no frame", w)
	}
	copy(s.dst[:], dst)
	return s, nil
}

// mark identifies a frame's bytes: their number and the beginning of their hash.
func mark(b []byte) string {
	sum := sha256.Sum256(b)
	return fmt.Sprintf("%d/%x", len(b), sum[:8])
}
