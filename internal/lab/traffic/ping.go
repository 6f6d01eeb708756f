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
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// PingOptions are the settings of Ping. The comments have the values for zero fields.
type PingOptions struct {
	Count    int           `json:"count,omitempty"`       // 1
	Size     int           `json:"size,omitempty"`        // ICMP payload: 56
	Interval time.Duration `json:"interval_ns,omitempty"` // from one request to the next; 0: send the next after the reply
	Timeout  time.Duration `json:"timeout_ns,omitempty"`  // for each reply: 1 s
}

// PingResult holds the outcome of the pings.
type PingResult struct {
	Sent     int             `json:"sent"`
	Received int             `json:"received"`
	Late     int             `json:"late"`    // late or duplicate replies
	Corrupt  int             `json:"corrupt"` // replies with another payload
	RTT      []time.Duration `json:"rtt_ns"`  // of each reply, in order
}

// Median returns the middle round-trip time, 0 if there is none.
func (r PingResult) Median() time.Duration {
	if len(r.RTT) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(r.RTT))
	return s[len(s)/2]
}

// maxPings and maxPingSize bound one call of Ping.
const (
	maxPings    = 100_000
	maxPingSize = 65000
)

// Pinger is a socket for pings to one address.
type Pinger struct {
	c    net.PacketConn
	to   net.Addr
	v6   bool
	raw  bool // or else a ping socket, where the kernel chooses the id
	id   uint16
	next uint16
}

const (
	icmpHeader     = 8
	icmpEcho       = 8
	icmpEchoReply  = 0
	icmp6Echo      = 128
	icmp6EchoReply = 129
	icmpProto      = 1
	icmp6Proto     = 58
)

// DialPing opens a socket for pings: a raw one, or, if that is not allowed, a ping socket,
// which net.ipv4.ping_group_range allows.
func DialPing(addr netip.Addr) (*Pinger, error) {
	p := &Pinger{v6: addr.Is6() && !addr.Is4In6(), id: uint16(rand.Uint32())}
	network, any4 := "ip4:icmp", "0.0.0.0"
	if p.v6 {
		network, any4 = "ip6:ipv6-icmp", "::"
	}
	ip := &net.IPAddr{IP: addr.AsSlice(), Zone: addr.Zone()}
	var err error
	if p.c, err = net.ListenPacket(network, any4); err == nil {
		p.raw, p.to = true, ip
		return p, nil
	}
	if !errors.Is(err, os.ErrPermission) {
		return nil, err
	}
	domain, proto := unix.AF_INET, icmpProto
	if p.v6 {
		domain, proto = unix.AF_INET6, icmp6Proto
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, fmt.Errorf("ping needs CAP_NET_RAW or a wider net.ipv4.ping_group_range: %w", err)
	}
	f := os.NewFile(uintptr(fd), "ping")
	defer func() { _ = f.Close() }() // FilePacketConn has a descriptor of its own
	if p.c, err = net.FilePacketConn(f); err != nil {
		return nil, err
	}
	p.to = &net.UDPAddr{IP: ip.IP, Zone: ip.Zone}
	return p, nil
}

// Close closes the socket.
func (p *Pinger) Close() error { return p.c.Close() }

// Ping sends echo requests, and waits for each reply before the next request. Missing
// replies are no error.
func (p *Pinger) Ping(ctx context.Context, o PingOptions) (PingResult, error) {
	if o.Count == 0 {
		o.Count = 1
	}
	if o.Size == 0 {
		o.Size = 56
	}
	if o.Timeout == 0 {
		o.Timeout = time.Second
	}
	if o.Count < 0 || o.Count > maxPings || o.Size < 0 || o.Size > maxPingSize {
		return PingResult{}, fmt.Errorf("up to %d pings of up to %d bytes can be sent", maxPings, maxPingSize)
	}
	defer context.AfterFunc(ctx, func() { _ = p.c.SetDeadline(time.Unix(1, 0)) })()
	var r PingResult
	buf := make([]byte, 1<<16)
	for range o.Count {
		start := time.Now()
		if err := p.one(ctx, o, buf, &r); err != nil {
			return r, err
		}
		if err := sleepUntil(ctx, start.Add(o.Interval)); err != nil {
			return r, err
		}
	}
	return r, nil
}

// one sends one request and waits for its reply.
func (p *Pinger) one(ctx context.Context, o PingOptions, buf []byte, r *PingResult) error {
	p.next++
	start := time.Now()
	_, err := p.c.WriteTo(p.request(p.next, o.Size), p.to)
	r.Sent++
	if err != nil && !transient(err) {
		return orContext(ctx, err)
	}
	for {
		_ = p.c.SetReadDeadline(start.Add(o.Timeout))
		if err := ctx.Err(); err != nil {
			return err // the deadline just set may have replaced the context's
		}
		n, _, err := p.c.ReadFrom(buf)
		now := time.Now()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return ctx.Err()
		case err != nil && transient(err):
			continue
		case err != nil:
			return err
		}
		seq, data, ok := p.reply(buf[:n])
		if !ok {
			continue
		}
		if seq != p.next {
			r.Late++
			continue
		}
		if wrong, _ := Check(data, uint64(seq), 0); wrong > 0 || len(data) != o.Size {
			r.Corrupt++
			return nil
		}
		r.Received++
		r.RTT = append(r.RTT, now.Sub(start))
		return nil
	}
}

func (p *Pinger) request(seq uint16, size int) []byte {
	b := make([]byte, icmpHeader+size)
	b[0] = icmpEcho
	if p.v6 {
		b[0] = icmp6Echo
	}
	binary.BigEndian.PutUint16(b[4:], p.id)
	binary.BigEndian.PutUint16(b[6:], seq)
	Fill(b[icmpHeader:], uint64(seq), 0)
	if !p.v6 { // the kernel does it for IPv6
		binary.BigEndian.PutUint16(b[2:], onesComplement(b))
	}
	return b
}

// reply parses an echo reply to this socket.
func (p *Pinger) reply(b []byte) (seq uint16, data []byte, ok bool) {
	want := byte(icmpEchoReply)
	if p.v6 {
		want = icmp6EchoReply
	}
	if len(b) < icmpHeader || b[0] != want || p.raw && binary.BigEndian.Uint16(b[4:]) != p.id {
		return 0, nil, false
	}
	return binary.BigEndian.Uint16(b[6:]), b[icmpHeader:], true
}

// onesComplement returns the Internet checksum of b.
func onesComplement(b []byte) uint16 {
	var s uint32
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
		s = s>>16 + s&0xffff
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}
