// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// Where things are in the frames of tcpFrame.
const (
	ethLen  = 14
	ipv4Len = 20
	ipv6Len = 40
	tcpLen  = 20 // without options
	tcpCsum = 16 // offset of the checksum in the TCP header

	tcp4At = ethLen + ipv4Len
	tcp6At = ethLen + ipv6Len
)

// tcpFrame builds a frame from one documentation address to another, with the given payload. The TCP checksum field has what
// VnetNeedsCsum wants there: the sum of the pseudo header.
func tcpFrame(ipv, payload int) []byte {
	at := tcp4At
	if ipv == 6 {
		at = tcp6At
	}
	f := make([]byte, at+tcpLen+payload)
	copy(f, []byte{0x00, 0x16, 0x3e, 0, 0, 2, 0x00, 0x16, 0x3e, 0, 0, 1})
	ip, tcp := f[ethLen:at], f[at:]
	be := binary.BigEndian
	var addrs []byte
	if ipv == 6 {
		be.PutUint16(f[12:], unix.ETH_P_IPV6)
		ip[0] = 6 << 4
		be.PutUint16(ip[4:], uint16(len(tcp)))
		ip[6], ip[7] = unix.IPPROTO_TCP, 64
		copy(ip[8:], []byte{0x20, 0x01, 0x0d, 0xb8, 15: 1})
		copy(ip[24:], []byte{0x20, 0x01, 0x0d, 0xb8, 15: 2})
		addrs = ip[8:40]
	} else {
		be.PutUint16(f[12:], unix.ETH_P_IP)
		ip[0] = 4<<4 | ipv4Len/4
		be.PutUint16(ip[2:], uint16(len(ip)+len(tcp)))
		ip[8], ip[9] = 64, unix.IPPROTO_TCP
		copy(ip[12:], []byte{192, 0, 2, 1, 192, 0, 2, 2})
		be.PutUint16(ip[10:], ^sum(0, ip))
		addrs = ip[12:20]
	}
	be.PutUint16(tcp, 1000)
	be.PutUint16(tcp[2:], 2000)
	be.PutUint32(tcp[4:], 1)
	tcp[12] = tcpLen / 4 << 4
	tcp[13] = 0x10 // ACK
	be.PutUint16(tcp[14:], 65535)
	for i := range payload {
		tcp[tcpLen+i] = byte(i * 7)
	}
	be.PutUint16(tcp[tcpCsum:], sum(uint32(unix.IPPROTO_TCP+len(tcp)), addrs))
	return f
}

// tcpSumOK tells whether a frame of tcpFrame has a complete checksum.
func tcpSumOK(f []byte) bool {
	at, addrs := tcp4At, f[ethLen+12:ethLen+20]
	if binary.BigEndian.Uint16(f[12:]) == unix.ETH_P_IPV6 {
		at, addrs = tcp6At, f[ethLen+8:ethLen+40]
	}
	pseudo := sum(uint32(unix.IPPROTO_TCP+len(f)-at), addrs)
	return sum(uint32(pseudo), f[at:]) == 0xffff
}

// sum returns the Internet sum, not inverted.
func sum(start uint32, b []byte) uint16 {
	s := start
	for i, c := range b {
		if i%2 == 0 {
			s += uint32(c) << 8
		} else {
			s += uint32(c)
		}
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// withHdr puts a vnet header before a frame.
func withHdr(h VnetHdr, frame []byte) []byte {
	b := make([]byte, VnetHdrLen, VnetHdrLen+len(frame))
	h.Encode(b)
	return append(b, frame...)
}

// csumHdr asks for the checksum of a tcpFrame.
func csumHdr(ipv int) VnetHdr {
	h := VnetHdr{Flags: VnetNeedsCsum, CsumStart: tcp4At, CsumOffset: tcpCsum}
	if ipv == 6 {
		h.CsumStart = tcp6At
	}
	return h
}

// gsoHdr asks for a tcpFrame to be segmented.
func gsoHdr(ipv int, size uint16) VnetHdr {
	h := csumHdr(ipv)
	h.GSOType, h.GSOSize, h.HdrLen = VnetGSOTCPv4, size, h.CsumStart+tcpLen
	if ipv == 6 {
		h.GSOType = VnetGSOTCPv6
	}
	return h
}

// packetSocket is an AF_PACKET socket bound to a device: the host's end of the
// cable. With vnet, frames have the 10 bytes of struct virtio_net_hdr before
// them.
type packetSocket int

const packetHdrLen = 10

func openPacket(t *testing.T, ifindex int, vnet bool) packetSocket {
	t.Helper()
	// Nothing is received before the socket is bound: protocol 0.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() {
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
	})
	if vnet {
		must(t, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1))
	}
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}))
	must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: ifindex}))
	return packetSocket(fd)
}

func (s packetSocket) send(t *testing.T, b []byte) {
	t.Helper()
	_, err := unix.Write(int(s), b)
	must(t, err)
}

func (s packetSocket) recv(t *testing.T) []byte {
	t.Helper()
	b := make([]byte, packetHdrLen+MaxFrame)
	n, _, err := unix.Recvfrom(int(s), b, 0)
	if err != nil {
		t.Fatalf("nothing received: %v", err)
	}
	return b[:n]
}

func htons(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}
