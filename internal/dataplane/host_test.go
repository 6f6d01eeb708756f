// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/tap"
)

// host is the host's end of a TAP: an AF_PACKET socket whose frames have a
// struct virtio_net_hdr before them.
type host struct {
	tb  testing.TB
	fd  int
	buf []byte
	oob [64]byte
}

const packetHdrLen = 10

func newHost(tb testing.TB, ifindex int) *host {
	tb.Helper()
	// Nothing is received before the socket is bound: protocol 0.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	must(tb, err)
	must(tb, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1))
	must(tb, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1))
	must(tb, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20))
	must(tb, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 64<<20))
	proto := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
	must(tb, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: ifindex}))
	return &host{tb: tb, fd: fd, buf: make([]byte, packetHdrLen+maxFrame+100)}
}

func (h *host) close() { unix.Close(h.fd) }

// hostFrame is a frame at the host, with the vnet header of its pending offloads.
type hostFrame struct {
	Vnet  tap.VnetHdr
	Frame []byte
}

// send sends frames from the host to the guest.
func (h *host) send(frames ...hostFrame) {
	h.tb.Helper()
	for _, f := range frames {
		var hdr [tap.VnetHdrLen]byte
		f.Vnet.Encode(hdr[:])
		if _, err := unix.Write(h.fd, append(hdr[:packetHdrLen:packetHdrLen], f.Frame...)); err != nil {
			h.tb.Fatalf("send %d bytes, %+v: %v", len(f.Frame), f.Vnet, err)
		}
	}
}

// sendPlain sends finished frames from the host to the guest.
func (h *host) sendPlain(frames ...[]byte) {
	h.tb.Helper()
	for _, f := range frames {
		h.send(hostFrame{Frame: f})
	}
}

// received takes all frames that came from the guest.
func (h *host) received() (got []hostFrame) {
	h.tb.Helper()
	for {
		n, oobn, _, _, err := unix.Recvmsg(h.fd, h.buf, h.oob[:], 0)
		if err == unix.EAGAIN {
			return got
		}
		must(h.tb, err)
		var v tap.VnetHdr
		v.Decode(append(h.buf[:packetHdrLen:packetHdrLen], 0, 0))
		f := hostFrame{v, append([]byte{}, h.buf[packetHdrLen:n]...)}
		if tag := outerTag(h.oob[:oobn]); tag != nil {
			f.Frame = slices.Insert(f.Frame, 12, tag...)
			if f.Vnet.CsumStart != 0 {
				f.Vnet.CsumStart += 4
			}
		}
		got = append(got, f)
	}
}

// outerTag returns the VLAN tag that the kernel has removed from a frame, from its struct
// tpacket_auxdata, or nil.
func outerTag(oob []byte) []byte {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) != 1 || len(msgs[0].Data) < 20 {
		return nil
	}
	aux := msgs[0].Data
	ne, be := binary.NativeEndian, binary.BigEndian
	if ne.Uint32(aux)&unix.TP_STATUS_VLAN_VALID == 0 {
		return nil
	}
	tag := be.AppendUint16(nil, ne.Uint16(aux[18:]))
	return be.AppendUint16(tag, ne.Uint16(aux[16:]))
}

// frames takes all frames that came from the guest, without headers.
func (h *host) frames() (got [][]byte) {
	h.tb.Helper()
	for _, f := range h.received() {
		got = append(got, f.Frame)
	}
	return got
}

// drain discards all frames that came from the guest and returns their number.
func (h *host) drain() (n int) {
	for {
		if _, _, err := unix.Recvfrom(h.fd, h.buf[:packetHdrLen], unix.MSG_TRUNC); err != nil {
			return n
		}
		n++
	}
}
