// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/packettest"
	"github.com/netbackd/netbackd/internal/lab/traffic"
)

// Frames is a packet socket on an interface. It sends frames of UDP whose payload is a
// number and the pattern of package traffic for that number, and checks those that come
// back from a front end that reflects them.
type Frames struct {
	fd        int
	buf       []byte
	templates [flows][]byte
	window    int
}

// flows is the number of UDP flows, so that a device with several queues uses all.
const flows = 16

// Offsets in a frame: Ethernet, IPv4 and UDP without options.
const (
	ipLength   = 14 + 2
	udpPort    = 14 + 20
	udpLength  = 14 + 20 + 4
	udpPayload = 14 + 20 + 8
	// MinFrame is the size in bytes of the shortest frame, which holds a number.
	MinFrame = udpPayload + 8
)

// firstPort is the UDP source port of the first flow.
const firstPort = 20000

// quiet is the time that frames may be under way. It is long, so that a busy machine loses none.
const quiet = 5 * time.Second

// OpenFrames opens a socket on an interface. At most window frames are under way at a time.
func OpenFrames(ifname string, window int) (*Frames, error) {
	ifi, err := net.InterfaceByName(ifname)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	ip := binary.NativeEndian.Uint16([]byte{unix.ETH_P_IP >> 8, unix.ETH_P_IP & 0xff})
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: ip, Ifindex: ifi.Index}),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("packet socket on %s: %w", ifname, err), unix.Close(fd))
	}
	f := &Frames{fd: fd, buf: make([]byte, 1<<16), window: window}
	for i := range f.templates {
		f.templates[i] = packettest.Frame{
			IPv4: &packettest.IPv4{},
			UDP:  &packettest.UDP{SrcPort: uint16(firstPort + i), DstPort: 9},
		}.Bytes()[:udpPayload]
	}
	return f, nil
}

// Close closes the socket.
func (f *Frames) Close() error { return unix.Close(f.fd) }

// Reflected counts frames by their fate.
type Reflected struct {
	Sent, Returned     int
	Corrupt, Reordered int // Reordered: within a flow
}

// Lost is the number of frames that did not come back.
func (r Reflected) Lost() int { return r.Sent - r.Returned }

// Reflect sends n frames, of the sizes in turn, and receives them again. Lost frames are no
// error.
func (f *Frames) Reflect(ctx context.Context, n int, sizes ...int) (r Reflected, err error) {
	var next [flows]uint64 // number of the next frame of each flow, and of the next expected
	var want [flows]uint64
	last := time.Now()
	for r.Returned < n && ctx.Err() == nil {
		for r.Sent < n && r.Sent-r.Returned < f.window {
			flow := r.Sent % flows
			if err := f.send(flow, next[flow], sizes[r.Sent%len(sizes)]); err != nil {
				return r, err
			}
			next[flow]++
			r.Sent++
		}
		got, err := f.receive(&want, &r)
		if err != nil {
			return r, err
		}
		switch {
		case got:
			last = time.Now()
		case time.Since(last) > quiet:
			return r, nil
		}
	}
	return r, ctx.Err()
}

// send sends a frame of a flow.
func (f *Frames) send(flow int, number uint64, size int) error {
	b := f.buf[:size]
	copy(b, f.templates[flow])
	binary.BigEndian.PutUint16(b[ipLength:], uint16(size-14))
	binary.BigEndian.PutUint16(b[udpLength:], uint16(size-udpPort))
	binary.BigEndian.PutUint16(b[udpLength+2:], 0) // no checksum
	binary.BigEndian.PutUint64(b[udpPayload:], number)
	traffic.Fill(b[MinFrame:], number, uint64(flow))
	for began := time.Now(); ; {
		_, err := unix.Write(f.fd, b)
		switch err {
		case nil:
			return nil
		case unix.EINTR:
		case unix.EAGAIN, unix.ENOBUFS:
			// The queue of the interface is full. Its reader is a process that may wait
			// for this one's processor.
			if time.Since(began) > quiet {
				return fmt.Errorf("send a frame: %w", err)
			}
			time.Sleep(time.Millisecond)
		default:
			return fmt.Errorf("send a frame: %w", err)
		}
	}
}

// receive takes one frame that came back and counts it, or returns false after a while.
func (f *Frames) receive(want *[flows]uint64, r *Reflected) (got bool, err error) {
	n, from, err := unix.Recvfrom(f.fd, f.buf, 0)
	switch {
	case err == unix.EINTR || err == unix.ENETDOWN:
		return false, nil
	case err == unix.EAGAIN:
		_, err := f.poll(unix.POLLIN)
		return false, err
	case err != nil:
		return false, fmt.Errorf("receive a frame: %w", err)
	}
	ll, ok := from.(*unix.SockaddrLinklayer)
	if !ok || ll.Pkttype == unix.PACKET_OUTGOING || n < MinFrame {
		return false, nil
	}
	b := f.buf[:n]
	flow := int(binary.BigEndian.Uint16(b[udpPort:])) - firstPort
	if flow < 0 || flow >= flows {
		return false, nil
	}
	b = b[:min(n, 14+int(binary.BigEndian.Uint16(b[ipLength:])))]
	r.Returned++
	number := binary.BigEndian.Uint64(b[udpPayload:])
	if number != want[flow] {
		r.Reordered++
	}
	want[flow] = number + 1
	if wrong, _ := traffic.Check(b[MinFrame:], number, uint64(flow)); wrong > 0 {
		r.Corrupt++
	}
	return true, nil
}

// poll waits for the socket, for a tenth of a second at most.
func (f *Frames) poll(events int16) (int, error) {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(f.fd), Events: events}}, 100)
	if err == unix.EINTR {
		err = nil
	}
	return n, err
}
