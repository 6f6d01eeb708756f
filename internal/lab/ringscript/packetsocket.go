// SPDX-License-Identifier: Apache-2.0

package ringscript

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/tap"
)

// packetSocket is an AF_PACKET socket on a vif's interface. It receives the guest's
// frames, and sends frames to the guest.
type packetSocket struct {
	fd     int
	ifname string
	buf    []byte
}

// vnetLen is the size in bytes of the header that an AF_PACKET socket puts before a frame:
// struct virtio_net_hdr, without the 16-bit word that a TAP's header has at its end.
const vnetLen = tap.VnetHdrLen - 2

// testSrc is the Ethernet source address of the frames of packettest.
var testSrc = [6]byte{2, 0, 0, 0, 0, 1}

// openPacketSocket opens an AF_PACKET socket with vnet headers.
func openPacketSocket(ifname string) (*packetSocket, error) {
	ifi, err := net.InterfaceByName(ifname)
	if err != nil {
		return nil, err
	}
	// With protocol 0 the socket receives nothing before it is bound.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: ifi.Index}),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("packet socket on %s: %w", ifname, err), unix.Close(fd))
	}
	return &packetSocket{fd: fd, ifname: ifname, buf: make([]byte, vnetLen+1<<17)}, nil
}

func (c *packetSocket) close() error { return unix.Close(c.fd) }

// drain returns the test frames that the guest has sent: their names, and their offloads.
func (c *packetSocket) drain() (frames []string, err error) {
	for {
		n, from, err := unix.Recvfrom(c.fd, c.buf, 0)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return frames, nil
		case err == unix.ENETDOWN: // once, when the interface goes down
			continue
		case err != nil:
			return frames, fmt.Errorf("read the packet socket: %w", err)
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		if !ok || ll.Pkttype == unix.PACKET_OUTGOING || n < vnetLen+ethLen {
			continue
		}
		frame := c.buf[vnetLen:n]
		if [6]byte(frame[6:]) != testSrc {
			continue
		}
		frames = append(frames, mark(frame)+offloads(c.buf))
	}
}

// offloads describes the work that a vnet header leaves to the receiver.
func offloads(b []byte) (s string) {
	var h tap.VnetHdr
	h.Decode(b)
	if h.Flags&tap.VnetNeedsCsum != 0 {
		s = "+csum"
	}
	switch h.GSOType {
	case tap.VnetGSONone:
		return s
	case tap.VnetGSOTCPv4:
		return fmt.Sprintf("%s+tcpv4:%d", s, h.GSOSize)
	}
	return fmt.Sprintf("%s+gso-%d:%d", s, h.GSOType, h.GSOSize)
}

// send sends a frame to the guest. It waits for the carrier.
func (c *packetSocket) send(ctx context.Context, f *frame) error {
	b := make([]byte, tap.VnetHdrLen)
	h := tap.VnetHdr{}
	if f.blank() {
		h.Flags, h.CsumStart, h.CsumOffset, h.HdrLen = tap.VnetNeedsCsum, uint16(f.l4()), 16, uint16(f.header())
		if f.mss > 0 {
			h.GSOType, h.GSOSize = tap.VnetGSOTCPv4, f.mss
			if f.v6() {
				h.GSOType = tap.VnetGSOTCPv6
			}
		}
	}
	h.Encode(b)
	b = append(b[:vnetLen], f.bytes...)
	if err := c.awaitCarrier(ctx); err != nil {
		return err
	}
	for {
		_, err := unix.Write(c.fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("send %s to the guest: %w", f.name, err)
		}
		return nil
	}
}

// awaitCarrier waits until the kernel has processed the vif's carrier. Before that it
// drops the frames that are sent.
func (c *packetSocket) awaitCarrier(ctx context.Context) error {
	err := poll(ctx, pollInterval, func() (bool, error) {
		l, err := netlink.LinkByName(c.ifname)
		if err != nil {
			return false, fmt.Errorf("look for the carrier of %s: %w", c.ifname, err)
		}
		return l.Attrs().OperState == netlink.OperUp, nil
	})
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%s has no carrier: %w", c.ifname, ctx.Err())
	}
	return err
}
