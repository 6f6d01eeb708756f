// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A packet has a header of 24 bytes: magic and kind, stream, sequence number. The rest is
// the pattern of the stream at an offset computed from the number.
const (
	udpMagic = 0x6e625544
	// MinUDP and MaxUDP are the least and the largest UDP payload.
	MinUDP = 24
	MaxUDP = 65507

	// maxCount bounds the packets of one stream, and with it the receiver's bitmap
	// of received packets.
	maxCount = 1 << 24
	maxFlows = 64
)

// Kinds of packets.
const (
	udpData = iota
	udpEnd  // asks for a report
	udpReport
)

// UDPResult holds the outcome of a stream of packets.
type UDPResult struct {
	Sent       uint64        `json:"sent"`       // as the sender told the receiver; 0 before that
	Received   uint64        `json:"received"`   // without duplicates
	Lost       uint64        `json:"lost"`       // Sent - Received
	Duplicated uint64        `json:"duplicated"` // received again
	Reordered  uint64        `json:"reordered"`  // received after a later one
	Corrupt    uint64        `json:"corrupt"`    // with a wrong byte
	Bytes      uint64        `json:"bytes"`      // of UDP payload, duplicates not counted
	Duration   time.Duration `json:"duration_ns"`
}

// UDPSend holds the parameters of a stream of packets.
type UDPSend struct {
	Count int `json:"count"`
	// Size is the UDP payload of each packet, MinUDP to MaxUDP.
	Size int `json:"size"`
	// Rate limits the packets, in packets per second. 0 means no limit, so that
	// short queues drop packets.
	Rate int `json:"rate,omitempty"`
	// Window bounds the packets in flight: after this many, the sender asks the
	// receiver for a report before it sends more. If every queue on the path can
	// hold a window, a lost packet is a fault of the path even on a busy machine.
	// 0 means no bound.
	Window int `json:"window,omitempty"`
	// NoReport sends without asking for a report, for traffic with several or no
	// receivers. The result then has only the number of sent packets.
	NoReport bool `json:"no_report,omitempty"`
	// Stream names the stream; 0 means a new name.
	Stream uint64 `json:"stream,omitempty"`
}

// DialUDP opens a socket for an address like "192.0.2.1:7000" or that of a multicast
// group. device, if not empty, sends multicast.
func DialUDP(ctx context.Context, addr, device string) (net.Conn, error) {
	d := net.Dialer{Control: func(network, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = multicastVia(int(fd), network, device) }); cerr != nil {
			return cerr
		}
		return err
	}}
	return d.DialContext(ctx, "udp", addr)
}

// multicastVia sets the device that sends multicast, and a TTL beyond the first router.
func multicastVia(fd int, network, device string) error {
	index := 0
	if device != "" {
		ifi, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		index = ifi.Index
	}
	if network == "udp6" {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, index)
	}
	return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(index)})
}

// SendUDP sends packets, closes the socket and returns the receiver's report. Lost
// packets are no error; a missing report is one.
func SendUDP(ctx context.Context, c net.Conn, s UDPSend) (UDPResult, error) {
	defer func() { _ = c.Close() }()
	if s.Size < MinUDP || s.Size > MaxUDP || s.Count < 0 || s.Count > maxCount {
		return UDPResult{}, fmt.Errorf("up to %d packets of %d to %d bytes can be sent", maxCount, MinUDP, MaxUDP)
	}
	for s.Stream == 0 {
		s.Stream = rand.Uint64()
	}
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	r := UDPResult{}
	buf := make([]byte, s.Size)
	start := time.Now()
	for i := range s.Count {
		if s.Rate > 0 {
			due := start.Add(time.Duration(float64(i) / float64(s.Rate) * float64(time.Second)))
			if err := sleepUntil(ctx, due); err != nil {
				return r, err
			}
		} else if err := ctx.Err(); err != nil {
			return r, err
		}
		putUDP(buf, udpData, s.Stream, uint64(i))
		Fill(buf[MinUDP:], s.Stream, patternAt(uint64(i)))
		if _, err := c.Write(buf); err != nil && !transient(err) {
			return r, orContext(ctx, err)
		}
		r.Sent++
		r.Bytes += uint64(s.Size)
		if s.Window > 0 && r.Sent%uint64(s.Window) == 0 && i+1 < s.Count {
			if _, err := askReport(ctx, c, s.Stream, r.Sent); err != nil {
				return r, err
			}
		}
	}
	r.Duration = time.Since(start)
	if s.NoReport {
		return r, nil
	}
	return askReport(ctx, c, s.Stream, r.Sent)
}

// transient reports whether an error concerns one packet and not the socket: a full device
// queue, or the ICMP error for an earlier packet.
func transient(err error) bool {
	return errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ECONNREFUSED) ||
		errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EAGAIN)
}

// patternAt spreads the packets over the stream's pattern, so that no packet continues
// another.
func patternAt(seq uint64) uint64 { return seq << 20 }

func putUDP(b []byte, kind uint32, stream, seq uint64) {
	binary.BigEndian.PutUint32(b[0:], udpMagic)
	binary.BigEndian.PutUint32(b[4:], kind)
	binary.BigEndian.PutUint64(b[8:], stream)
	binary.BigEndian.PutUint64(b[16:], seq)
}

// reportFields returns the numbers of a report, in their order on the wire.
func (r *UDPResult) reportFields() []*uint64 {
	return []*uint64{&r.Sent, &r.Received, &r.Lost, &r.Duplicated, &r.Reordered, &r.Corrupt, &r.Bytes}
}

// settle is the time for which packets may still be in flight after the sender announced
// the end of a stream.
const settle = 200 * time.Millisecond

// askReport asks for the report until it arrives: question and answer may be lost like
// any packet. While packets are missing it asks again, until no more arrive: the question
// may have overtaken packets on another queue.
func askReport(ctx context.Context, c net.Conn, stream, sent uint64) (UDPResult, error) {
	ask := make([]byte, MinUDP)
	putUDP(ask, udpEnd, stream, sent)
	last, have := UDPResult{Sent: sent}, false
	for {
		if err := ctx.Err(); err != nil {
			return last, fmt.Errorf("report on %d packets: %w", sent, err)
		}
		if _, err := c.Write(ask); err != nil && !transient(err) {
			return last, orContext(ctx, err)
		}
		deadline := time.Now().Add(settle)
		if r, ok := readReport(c, stream, sent, deadline); ok {
			if r.Lost == 0 || have && r.Received == last.Received {
				return r, nil
			}
			last, have = r, true
		}
		// A refusal or a report arrives at once. The loop reports the end of
		// the context.
		_ = sleepUntil(ctx, deadline)
	}
}

// readReport waits until the deadline for a report on sent packets. A report on fewer
// answers an earlier question.
func readReport(c net.Conn, stream, sent uint64, deadline time.Time) (UDPResult, bool) {
	_ = c.SetReadDeadline(deadline)
	b := make([]byte, 2048)
	for {
		n, err := c.Read(b)
		if err != nil {
			return UDPResult{}, false
		}
		if r, ok := parseReport(b[:n], stream); ok && r.Sent == sent {
			return r, true
		}
	}
}

func parseReport(b []byte, stream uint64) (r UDPResult, ok bool) {
	f := r.reportFields()
	if len(b) != MinUDP+8*(len(f)+1) || binary.BigEndian.Uint32(b) != udpMagic ||
		binary.BigEndian.Uint32(b[4:]) != udpReport || binary.BigEndian.Uint64(b[8:]) != stream {
		return r, false
	}
	b = b[MinUDP:]
	for i, p := range f {
		*p = binary.BigEndian.Uint64(b[8*i:])
	}
	r.Duration = time.Duration(binary.BigEndian.Uint64(b[8*len(f):]))
	return r, true
}

// UDPServer receives packets.
type UDPServer struct {
	c *net.UDPConn

	mu    sync.Mutex
	flows map[uint64]*flow // guarded by mu
	order []uint64         // of their arrival; guarded by mu
}

// flow is a stream that is being received.
type flow struct {
	r           UDPResult
	seen        []uint64 // a bit for each packet
	next        uint64   // one more than the latest seen
	start, last time.Time
}

// ListenUDP opens a server at an address like ":7000".
func ListenUDP(addr string) (*UDPServer, error) {
	a, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, err
	}
	c, err := net.ListenUDP("udp", a)
	return newUDPServer(c, err)
}

// ListenMulticast opens a server for a multicast group, like "239.1.2.3:7000",
// that device is to join.
func ListenMulticast(addr, device string) (*UDPServer, error) {
	a, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	ifi, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	network := "udp4"
	if a.Addr().Is6() {
		network = "udp6"
	}
	c, err := net.ListenMulticastUDP(network, ifi, net.UDPAddrFromAddrPort(a))
	return newUDPServer(c, err)
}

func newUDPServer(c *net.UDPConn, err error) (*UDPServer, error) {
	if err != nil {
		return nil, err
	}
	// A burst must not be lost in the socket. As root the limit is not the
	// sysctl's.
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20) != nil {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 16<<20)
			}
		})
	}
	return &UDPServer{c: c, flows: map[uint64]*flow{}}, nil
}

// Addr returns the server's address.
func (s *UDPServer) Addr() net.Addr { return s.c.LocalAddr() }

// Results returns the results of the last 64 streams, oldest first.
func (s *UDPServer) Results() []UDPResult {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]UDPResult, 0, len(s.order))
	for _, id := range s.order {
		out = append(out, s.flows[id].result())
	}
	return out
}

// Result returns the result of one stream.
func (s *UDPServer) Result(stream uint64) (UDPResult, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.flows[stream]
	if !ok {
		return UDPResult{}, false
	}
	return f.result(), true
}

// Close ends a server that was never served.
func (s *UDPServer) Close() error { return s.c.Close() }

// Serve receives packets until ctx ends; it returns nil then.
func (s *UDPServer) Serve(ctx context.Context) error {
	defer func() { _ = s.c.Close() }()
	defer context.AfterFunc(ctx, func() { _ = s.c.SetReadDeadline(time.Unix(1, 0)) })()
	b := make([]byte, 1<<16)
	for {
		n, from, err := s.c.ReadFromUDPAddrPort(b)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if rsp := s.take(b[:n]); rsp != nil {
			_, _ = s.c.WriteToUDPAddrPort(rsp, from) // the sender asks again if it is lost
		}
	}
}

// take processes one packet and returns the reply.
func (s *UDPServer) take(b []byte) (reply []byte) {
	if len(b) < MinUDP || binary.BigEndian.Uint32(b) != udpMagic {
		return nil
	}
	kind, stream, seq := binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.flow(stream)
	switch kind {
	case udpData:
		f.add(b, stream, seq)
	case udpEnd:
		f.r.Sent = seq
		r := f.result()
		reply = make([]byte, MinUDP)
		putUDP(reply, udpReport, stream, 0)
		for _, p := range r.reportFields() {
			reply = binary.BigEndian.AppendUint64(reply, *p)
		}
		reply = binary.BigEndian.AppendUint64(reply, uint64(r.Duration))
	}
	return reply
}

// flow finds a stream or begins it. If there are too many it replaces the oldest. The
// caller holds mu.
func (s *UDPServer) flow(id uint64) *flow {
	if f := s.flows[id]; f != nil {
		return f
	}
	if len(s.order) == maxFlows {
		delete(s.flows, s.order[0])
		s.order = s.order[1:]
	}
	f := &flow{start: time.Now()}
	s.flows[id] = f
	s.order = append(s.order, id)
	return f
}

func (f *flow) add(b []byte, stream, seq uint64) {
	f.last = time.Now()
	if wrong, _ := Check(b[MinUDP:], stream, patternAt(seq)); wrong > 0 || seq >= maxCount {
		f.r.Corrupt++
		return
	}
	at, bit := seq/64, uint64(1)<<(seq%64)
	for uint64(len(f.seen)) <= at {
		f.seen = append(f.seen, 0)
	}
	if f.seen[at]&bit != 0 {
		f.r.Duplicated++
		return
	}
	f.seen[at] |= bit
	f.r.Received++
	f.r.Bytes += uint64(len(b))
	if seq+1 < f.next {
		f.r.Reordered++
	}
	f.next = max(f.next, seq+1)
}

func (f *flow) result() UDPResult {
	r := f.r
	if !f.last.IsZero() {
		r.Duration = f.last.Sub(f.start)
	}
	if r.Sent > r.Received {
		r.Lost = r.Sent - r.Received
	}
	return r
}
