// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/tap"
)

// The frames are sent between dom0 and a guest that has only a frontend and no network,
// so that the measurement includes little besides the back end. The kernel drops the
// guest's frames after the vif, since they are for another address. dom0 sends frames to
// the guest into the vif without a queueing discipline.
//
// Control frames have a type of their own. dom0 sends requests in the same format as over
// UDP, and the guest answers or acknowledges.
const (
	etherIPv4    = 0x0800
	etherControl = 0x88b5 // local experimental, of IEEE 802

	etherLen   = 14
	controlLen = 60 // the least size of an Ethernet frame

	opCount = 3 // answer with the counters of the kernel
)

// Sizes of frames: a small one, one of the usual MTU, and one of 45 segments, which
// takes 16 pages.
const (
	smallFrame = 64
	mtuFrame   = 1514
	gsoFrame   = tcpHeaders + 45*gsoSize

	gsoSize    = 1448
	tcpHeaders = etherLen + 20 + 32 // with the timestamp option
	csumStart  = etherLen + 20
	csumOffset = 16
)

// acksOf returns the number of frames of a size that the guest acknowledges at once. Twice
// as many are in flight, which fit into its ring.
func acksOf(size int) int {
	if size == gsoFrame {
		return 4
	}
	return ackEvery
}

// etherHeader writes the header of a frame for an address of neither dom0 nor the guest.
func etherHeader(b []byte, typ uint16) {
	copy(b, "\x02\x00\x00\x00\x00\x02\x02\x00\x00\x00\x00\x01")
	binary.BigEndian.PutUint16(b[12:], typ)
}

// controlFrame makes a request, or the answer to one.
func controlFrame(op, size, count int) []byte {
	b := make([]byte, controlLen)
	etherHeader(b, etherControl)
	putRequest(b[etherLen:], op, size, count)
	return b
}

// parseControl parses a control frame and reports whether the frame is one.
func parseControl(b []byte) (op, size, count int, ok bool) {
	if len(b) < controlLen || binary.BigEndian.Uint16(b[12:]) != etherControl {
		return 0, 0, 0, false
	}
	op, size, count = parseRequest(b[etherLen:])
	return op, size, count, true
}

// dataHead returns the headers of a frame of that size: UDP, or TCP with GSO and a partial
// checksum. The rest of the frame is zero.
func dataHead(size int) []byte {
	b := make([]byte, tcpHeaders)
	etherHeader(b, etherIPv4)
	ip := b[etherLen:]
	ip[0] = 0x45
	binary.BigEndian.PutUint16(ip[2:], uint16(size-etherLen))
	ip[8] = 64
	ip[9] = unix.IPPROTO_UDP
	copy(ip[12:], "\x0a\x00\x00\x02\x0a\x00\x00\x03")
	l4 := ip[20:]
	binary.BigEndian.PutUint16(l4[0:], port)
	binary.BigEndian.PutUint16(l4[2:], port)
	l4len := size - csumStart
	if size == gsoFrame {
		ip[9] = unix.IPPROTO_TCP
		l4[12] = 32 / 4 << 4
		l4[13] = 0x10 // ACK
		copy(l4[20:], "\x01\x01\x08\x0a")
		binary.BigEndian.PutUint16(l4[csumOffset:], onesSum(ip[12:20], uint32(ip[9])+uint32(l4len)))
	} else {
		binary.BigEndian.PutUint16(l4[4:], uint16(l4len)) // and no checksum
	}
	binary.BigEndian.PutUint16(ip[10:], ^onesSum(ip[:20], 0))
	return b[:min(size, len(b))]
}

func onesSum(b []byte, sum uint32) uint16 {
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// wire is dom0's side of a vif without a bridge. There is only one, since another would
// receive the same answers.
type wire struct {
	vif     string
	in, out int // control frames; any, with a vnet header before each
	buf     [128]byte
}

const wireHdr = 10 // struct virtio_net_hdr, as packet sockets have it

func openWire(vif string) (*wire, error) {
	index, err := os.ReadFile("/sys/class/net/" + vif + "/ifindex")
	if err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(index)))
	if err != nil {
		return nil, err
	}
	w := &wire{vif: vif}
	if w.in, err = packetSocket(n, etherControl); err != nil {
		return nil, err
	}
	if w.out, err = packetSocket(n, 0); err == nil {
		err = unix.SetsockoptInt(w.out, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)
	}
	if err == nil {
		err = unix.SetsockoptInt(w.out, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
	}
	return w, err
}

// packetSocket receives frames of a type, or none if it is 0.
func packetSocket(ifindex int, typ uint16) (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err = unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: ifindex, Protocol: typ<<8 | typ>>8}); err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("packet socket: %w", err)
	}
	return fd, nil
}

// ask sends a request.
func (w *wire) ask(op, size, count int) error {
	_, err := send(w.out, append(make([]byte, wireHdr), controlFrame(op, size, count)...))
	return err
}

// answer waits for a frame from the guest, and returns its payload.
func (w *wire) answer() ([]byte, error) {
	n, err := recv(w.in, w.buf[:])
	if err != nil {
		return nil, fmt.Errorf("no answer from the guest: %w", err)
	}
	if n < controlLen {
		return nil, fmt.Errorf("the guest answers %d bytes", n)
	}
	return w.buf[etherLen:n], nil
}

// counts asks for the counters of the guest's kernel.
func (w *wire) counts() (k kernelCounts, err error) {
	if err := w.ask(opCount, 0, 0); err != nil {
		return k, err
	}
	b, err := w.answer()
	if err != nil {
		return k, err
	}
	return parseKernel(b), nil
}

// came returns the number of packets that have come out of the vif.
func (w *wire) came() (uint64, error) {
	b, err := os.ReadFile("/sys/class/net/" + w.vif + "/statistics/rx_packets")
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
}

// frames is the work with frames of one size in one direction.
type frames struct {
	*wire
	op, size int
	msgs     *messages
}

func openFrames(op, size int) func(peer) (work, error) {
	return func(p peer) (work, error) {
		b := make([]byte, wireHdr+size)
		copy(b[wireHdr:], dataHead(size))
		if size == gsoFrame {
			b[0], b[1] = tap.VnetNeedsCsum, tap.VnetGSOTCPv4
			for i, v := range []uint16{tcpHeaders, gsoSize, csumStart, csumOffset} {
				binary.NativeEndian.PutUint16(b[2+2*i:], v)
			}
		}
		return &frames{wire: p.wire, op: op, size: size, msgs: newMessages(b, acksOf(size))}, nil
	}
}

func (f *frames) close() {} // the wire belongs to the phase

func (f *frames) do(n int) error {
	if f.op == opSend {
		return f.take(n)
	}
	if err := f.ask(opSink, f.size, n); err != nil {
		return err
	}
	every := acksOf(f.size)
	for sent := 0; sent < n; sent += every {
		if sent >= 2*every {
			if _, err := f.answer(); err != nil {
				return fmt.Errorf("after %d of %d frames: %w", sent, n, err)
			}
		}
		if err := f.msgs.send(f.out); err != nil {
			return fmt.Errorf("after %d of %d frames: %w", sent, n, err)
		}
	}
	for range min(n/every, 2) {
		if _, err := f.answer(); err != nil {
			return fmt.Errorf("after the last frame: %w", err)
		}
	}
	return nil
}

// take has the guest send n frames, and counts the arriving ones.
func (f *frames) take(n int) error {
	before, err := f.came()
	if err != nil {
		return err
	}
	if err := f.ask(opSend, f.size, n); err != nil {
		return err
	}
	if _, err := f.answer(); err != nil {
		return err
	}
	after, err := f.came()
	if err != nil {
		return err
	}
	// The answer is one more frame, though it may be read before it is counted.
	if got := after - before; got < uint64(n) || got > uint64(n)+1 {
		return fmt.Errorf("%d frames have come, not %d", got, n)
	}
	return nil
}
