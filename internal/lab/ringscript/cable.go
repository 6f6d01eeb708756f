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

// cable is the host's end of a vif: what the guest sends comes out of it before
// any bridge has seen it, and what is sent goes to the guest.
type cable struct {
	fd     int
	ifname string
	buf    []byte
}

// vnetLen is the size of the header that an AF_PACKET socket puts before a frame: struct virtio_net_hdr,
// without the word that a TAP has at its end.
const vnetLen = tap.VnetHdrLen - 2

// testSrc is the Ethernet address that the frames of packettest come from.
var testSrc = [6]byte{2, 0, 0, 0, 0, 1}

// openCable opens an AF_PACKET socket that speaks vnet headers.
func openCable(ifname string) (*cable, error) {
	ifi, err := net.InterfaceByName(ifname)
	if err != nil {
		return nil, err
	}
	// Nothing is received before the socket is bound: protocol 0.
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
	return &cable{fd: fd, ifname: ifname, buf: make([]byte, vnetLen+1<<17)}, nil
}

func (c *cable) close() error { return unix.Close(c.fd) }

// drain returns the test frames that have come out: what they are, and what was
// left undone of them.
func (c *cable) drain() (frames []string, err error) {
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
		frames = append(frames, mark(frame)+undone(c.buf))
	}
}

// undone says what a vnet header leaves to the receiver.
func undone(b []byte) (s string) {
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
func (c *cable) send(ctx context.Context, f *frame) error {
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

// awaitCarrier waits until the kernel has taken notice of the vif's carrier:
// before that it drops what is sent.
func (c *cable) awaitCarrier(ctx context.Context) error {
	err := poll(ctx, glance, func() (bool, error) {
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
