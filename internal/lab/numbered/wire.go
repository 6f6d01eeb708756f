// SPDX-License-Identifier: Apache-2.0

package numbered

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/ledger"
	"github.com/netbackd/netbackd/pkg/tap"
)

// vnetLen is the size of the header that a packet socket puts before a frame.
const vnetLen = tap.VnetHdrLen - 2

// socketBuffer is the memory of a packet socket in bytes: more than all windows together.
const socketBuffer = 256 << 20

// Wire is an end of a vif at an interface: the host's end, or a guest's whose card is one.
type Wire struct {
	in, out int // sockets
	Vif     uint16
	guest   bool
	traffic atomic.Pointer[Traffic]
	faults  *Faults

	after atomic.Int64 // the time from which on First looks for a packet, in ns of the real time
	first atomic.Int64 // 0 if none came
}

// OpenGuestWire opens the guest's end at its card. The caller is in the guest's network.
func OpenGuestWire(ifname string, vif uint16, f *Faults) (*Wire, error) {
	w, err := OpenWire(ifname, vif, f)
	if err == nil {
		w.guest = true
	}
	return w, err
}

// OpenWire opens the host's end at an interface.
func OpenWire(ifname string, vif uint16, f *Faults) (*Wire, error) {
	ifi, err := net.InterfaceByName(ifname)
	if err != nil {
		return nil, err
	}
	w := &Wire{Vif: vif, faults: f, in: -1, out: -1}
	all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
	if w.in, err = packetSocket(ifi.Index, all); err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	if w.out, err = packetSocket(ifi.Index, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("packet socket: %w", err), unix.Close(w.in))
	}
	return w, nil
}

// packetSocket opens a packet socket on an interface with vnet headers. With protocol 0 it
// receives nothing.
func packetSocket(ifindex int, protocol uint16) (fd int, err error) {
	if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, err
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20000}),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: ifindex}),
	)
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Close closes the sockets. Receive and Send must have ended.
func (w *Wire) Close() error { return errors.Join(unix.Close(w.in), unix.Close(w.out)) }

// Use makes the packets that arrive from now on those of t.
func (w *Wire) Use(t *Traffic) { w.traffic.Store(t) }

// Look looks for the first packet from the guest after a time.
func (w *Wire) Look(after time.Time) {
	w.first.Store(0)
	w.after.Store(after.UnixNano())
}

// First returns the time of that packet; ok is false if none has come yet.
func (w *Wire) First() (at time.Time, ok bool) {
	n := w.first.Load()
	return time.Unix(0, n), n != 0
}

// Receive takes the packets that arrive until ctx ends.
func (w *Wire) Receive(ctx context.Context) error {
	b, oob := make([]byte, vnetLen+1<<17), make([]byte, 128)
	var packets []ledger.Packet
	for ctx.Err() == nil {
		n, m, _, _, err := unix.Recvmsg(w.in, b, oob, 0)
		if err == unix.EAGAIN || err == unix.EINTR || err == unix.ENETDOWN {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		var v tap.VnetHdr
		v.Decode(b)
		packets, err = ledger.Read(packets[:0], b[vnetLen:n], v.Flags&tap.VnetNeedsCsum != 0)
		if errors.Is(err, ledger.ErrForeign) {
			continue
		}
		w.stamp(oob[:m])
		if err != nil {
			w.faults.Add("vif %d, %s: %v", w.Vif, w.to(), err)
			continue
		}
		if v.GSOType != 0 && v.GSOSize > ledger.Segment {
			w.faults.Add("vif %d, %s: segments of %d bytes", w.Vif, w.to(), v.GSOSize)
		}
		w.enter(packets)
	}
	return w.overrun()
}

// overrun returns an error if the socket lost packets: then the books are worth nothing.
func (w *Wire) overrun() error {
	s, err := unix.GetsockoptTpacketStats(w.in, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err == nil && s.Drops > 0 {
		err = fmt.Errorf("the socket of vif %d lost %d packets", w.Vif, s.Drops)
	}
	return err
}

// enter enters packets into the books.
func (w *Wire) enter(packets []ledger.Packet) {
	t := w.traffic.Load()
	for _, p := range packets {
		if !t.mine(p.Flow, w.guest) {
			if p.Flow.Vif != w.Vif || p.Flow.Run >= t.opts.Run {
				w.faults.Add("vif %d, %s: packet %d of %+v", w.Vif, w.to(), p.Seq, p.Flow)
			}
			continue // sent before a reconnect
		}
		if err := t.arrived(p); err != nil {
			w.faults.Add("vif %d, flow %d, %s: %v", w.Vif, p.Flow.Number, w.to(), err)
		}
	}
}

// to names the direction of the packets that arrive.
func (w *Wire) to() string {
	if w.guest {
		return "to the guest"
	}
	return "to the host"
}

// stamp notes the time of the first packet after the time of Look.
func (w *Wire) stamp(oob []byte) {
	after := w.after.Load()
	if after == 0 || w.first.Load() != 0 {
		return
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for _, m := range msgs {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_TIMESTAMPNS || len(m.Data) < 16 {
			continue
		}
		at := int64(binary.NativeEndian.Uint64(m.Data))*1e9 + int64(binary.NativeEndian.Uint64(m.Data[8:]))
		if at > after {
			w.first.Store(at)
		}
	}
}

// probeAfter is the pause after which a sender sends one packet of each flow beyond its window:
// all that are in it may be lost. The next pause is twice as long.
const probeAfter = 20 * time.Millisecond

// Send sends packets to the other end until ctx ends. It counts what the interface did not take
// as sent.
func (w *Wire) Send(ctx context.Context, t *Traffic) error {
	sources := make([]*ledger.Source, len(t.toGuest))
	for i := range sources {
		sources[i] = t.source(i, !w.guest)
	}
	window := uint64(max(wireAll/len(sources), 1))
	b := make([]byte, vnetLen+ledger.MaxFrame)
	tick := time.NewTicker(200 * time.Microsecond)
	defer tick.Stop()
	moved, pause := time.Now(), probeAfter
	for ctx.Err() == nil {
		if t.pause.Load() {
			<-tick.C
			continue
		}
		sent := false
		for i, s := range sources {
			at, high := t.progress(i, !w.guest)
			for range 8 {
				if s.Sent()-min(high.Load(), s.Sent()) >= window {
					break
				}
				if err := w.put(b, s); err != nil {
					return err
				}
				at.Store(s.Sent())
				sent = true
			}
		}
		if sent {
			moved, pause = time.Now(), probeAfter
		}
		<-tick.C
		if time.Since(moved) > pause {
			moved, pause = time.Now(), 2*pause
			for i, s := range sources {
				if err := w.put(b, s); err != nil {
					return err
				}
				at, _ := t.progress(i, !w.guest)
				at.Store(s.Sent())
			}
		}
	}
	return nil
}

// put sends the next packet of a source.
func (w *Wire) put(b []byte, s *ledger.Source) error {
	frame := s.Next()
	var v tap.VnetHdr
	if s.Partial {
		v.Flags = tap.VnetNeedsCsum
		v.CsumStart, v.CsumOffset = 34, 16
		if s.Kind == ledger.Small {
			v.CsumOffset = 6
		}
	}
	if size := s.GSOSize(frame); size > 0 {
		v.GSOType, v.GSOSize, v.HdrLen = tap.VnetGSOTCPv4, size, 54
	}
	v.Encode(b)
	n := vnetLen + copy(b[vnetLen:], frame)
	switch _, err := unix.Write(w.out, b[:n]); err {
	case nil, unix.ENOBUFS, unix.ENETDOWN, unix.EAGAIN, unix.EINTR:
		return nil
	default:
		return fmt.Errorf("send to vif %d: %w", w.Vif, err)
	}
}
