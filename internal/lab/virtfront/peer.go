// SPDX-License-Identifier: Apache-2.0

package virtfront

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// PeerConfig configures the host's end.
type PeerConfig struct {
	// Device is the network interface, normally a TAP.
	Device string
	// Count is the number of frames, and Window how many of them may be under way.
	Count, Window uint64
	// Loss is the number of frames that may get no answer.
	Loss uint64
	// MaxFrame bounds the frames, in bytes.
	MaxFrame int
}

// RunPeer sends frames through a network interface to a guest, which sends an answer to
// each, and checks the answers, which come in order.
func RunPeer(ctx context.Context, c PeerConfig, out io.Writer) (err error) {
	fd, err := packetSocket(c.Device)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	var sent, back, own, lost uint64
	frame, buf := make([]byte, maxFrame), make([]byte, 1<<16)
	began := time.Now()
	last := began
	for back < c.Count {
		for sent < c.Count && sent-back < c.Window {
			b := frame[:frameSize(sent, c.MaxFrame)]
			putFrame(b, fromHost, sent)
			if _, err := unix.Write(fd, b); err != nil {
				return fmt.Errorf("send frame %d: %w", sent, err)
			}
			sent++
		}
		n, from, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case (err == unix.EINTR || err == unix.EAGAIN) && time.Since(last) < patience:
			continue
		case err != nil:
			return fmt.Errorf("no answer to frame %d of %d: %w", back, sent, err)
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); !ok || ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		seq, err := checkFrame(buf[:n], fromGuest, c.MaxFrame)
		switch {
		case errors.Is(err, errOther):
		case err != nil:
			return err
		case seq >= ownSeq:
			own++
		case seq < back || seq-back > c.Loss-lost:
			return fmt.Errorf("frame %d came, want %d", seq, back)
		default:
			lost += seq - back
			back, last = seq+1, time.Now()
		}
	}
	took := time.Since(began)
	fmt.Fprintf(out, "%d frames each way in %d ms: %.0f/s, %d lost, %d of the guest's own\n", back-lost, took.Milliseconds(), float64(back)/took.Seconds(), lost, own)
	return nil
}

// packetSocket opens a socket for test frames, whose reads wait for a short time.
func packetSocket(ifname string) (int, error) {
	ifi, err := net.InterfaceByName(ifname)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("packet socket: %w", err)
	}
	proto := binary.NativeEndian.Uint16([]byte{etherType >> 8, etherType & 0xff})
	wait := unix.NsecToTimeval(int64(100 * time.Millisecond))
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: ifi.Index}),
	)
	if err != nil {
		return -1, errors.Join(fmt.Errorf("packet socket on %s: %w", ifname, err), unix.Close(fd))
	}
	return fd, nil
}

// patience bounds the wait of a peer for a frame, also on an emulated machine.
const patience = time.Minute
