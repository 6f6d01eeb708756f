// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// The guest's end. Over TCP and over UDP it gets requests of requestLen bytes: an
// operation, a size, a count.
const (
	port     = 7000
	statPort = 7001 // UDP: answers each datagram with the counters of its kernel

	opSend = 1 // count bytes (TCP) or datagrams of size bytes (UDP) to dom0
	opSink = 2 // take as many
	opCut  = 3 // as opSend over TCP, from an interface that cannot segment

	requestLen = 16
)

// A UDP receiver acknowledges each ackEvery datagrams, and at most twice as many are in
// flight: few enough for every queue on the path, and at least as many as a ring holds. So
// no datagram is lost, even if one end is faster.
const (
	ackEvery = 128
	ackLen   = 1
)

const tcpChunk = 128 << 10

// patience limits the wait for data that should arrive at once.
var patience = unix.Timeval{Sec: 60}

func putRequest(b []byte, op, size, count int) []byte {
	b = b[:requestLen]
	clear(b)
	b[0] = byte(op)
	binary.NativeEndian.PutUint32(b[4:], uint32(size))
	binary.NativeEndian.PutUint64(b[8:], uint64(count))
	return b
}

func parseRequest(b []byte) (op, size, count int) {
	return int(b[0]), int(binary.NativeEndian.Uint32(b[4:])), int(binary.NativeEndian.Uint64(b[8:]))
}

// quiet keeps Go's runtime from background work.
func quiet() {
	runtime.LockOSThread()
	debug.SetGCPercent(-1)
}

func socket(kind, proto int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return -1, err
	}
	if kind == unix.SOCK_DGRAM {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
	}
	if kind == unix.SOCK_STREAM {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	return fd, err
}

func serve() error {
	runtime.GOMAXPROCS(4) // a thread that waits in recv keeps its P
	fail := make(chan error, 3)
	go func() { quiet(); fail <- serveUDP() }()
	go func() { quiet(); fail <- serveTCP() }()
	go func() { fail <- serveStat() }()
	return <-fail
}

func serveStat() error {
	fd, err := socket(unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: statPort}); err != nil {
		return err
	}
	buf := make([]byte, requestLen)
	for {
		_, from, err := unix.Recvfrom(fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		k, err := readKernel()
		if err != nil {
			return err
		}
		_ = unix.Sendto(fd, k.append(nil), 0, from)
	}
}

func serveUDP() error {
	fd, err := socket(unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: port}); err != nil {
		return err
	}
	buf := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if err == unix.EINTR || err == nil && n != requestLen {
			continue // left over from a request that failed
		}
		if err != nil {
			return err
		}
		if err := serveDatagrams(fd, buf, from); err != nil {
			fmt.Println("bench:", err)
		}
	}
}

// serveDatagrams carries out one request. The socket is connected meanwhile.
func serveDatagrams(fd int, buf []byte, from unix.Sockaddr) error {
	op, size, count := parseRequest(buf)
	if err := unix.Connect(fd, from); err != nil {
		return err
	}
	defer disconnect(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		return err
	}
	defer func() { _ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{}) }()
	switch op {
	case opSend:
		return sendDatagrams(fd, size, count)
	case opSink:
		if _, err := send(fd, buf[:ackLen]); err != nil {
			return err
		}
		return sinkDatagrams(fd, size, count)
	}
	return fmt.Errorf("unknown operation %d", op)
}

func sendDatagrams(fd, size, count int) error {
	buf := make([]byte, size)
	var ack [ackLen]byte
	for sent := 0; sent < count; {
		if sent >= 2*ackEvery && sent%ackEvery == 0 {
			if _, err := recv(fd, ack[:]); err != nil {
				return fmt.Errorf("no answer after %d of %d datagrams: %w", sent, count, err)
			}
		}
		n, err := send(fd, buf)
		if err != nil || n != size {
			return fmt.Errorf("datagram %d: %w", sent, err)
		}
		sent++
	}
	for range min(count/ackEvery, 2) {
		if _, err := recv(fd, ack[:]); err != nil {
			return fmt.Errorf("no answer to the last datagrams: %w", err)
		}
	}
	return nil
}

func sinkDatagrams(fd, size, count int) error {
	buf := make([]byte, size+1)
	for got := 0; got < count; {
		n, err := recv(fd, buf)
		if err != nil {
			return fmt.Errorf("%d of %d datagrams came: %w", got, count, err)
		}
		if n != size {
			continue // of a request before
		}
		if got++; got%ackEvery == 0 {
			if _, err := send(fd, buf[:ackLen]); err != nil {
				return err
			}
		}
	}
	return nil
}

func serveTCP() error {
	listener, err := socket(unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(listener, &unix.SockaddrInet4{Port: port}); err != nil {
		return err
	}
	if err := unix.Listen(listener, 1); err != nil {
		return err
	}
	for {
		fd, _, err := unix.Accept(listener)
		if err == unix.EINTR || err == unix.ECONNABORTED {
			continue
		}
		if err != nil {
			return err
		}
		if err := serveStream(fd); err != nil {
			fmt.Println("bench:", err)
		}
		_ = unix.Close(fd)
	}
}

// serveStream carries out requests until dom0 closes the connection.
func serveStream(fd int) error {
	buf := make([]byte, tcpChunk)
	for {
		n, err := recv(fd, buf[:requestLen])
		if err != nil || n == 0 {
			return err
		}
		if n != requestLen {
			return errors.New("half a request")
		}
		switch op, _, count := parseRequest(buf); op {
		case opSend:
			err = sendStream(fd, buf, count)
		case opCut:
			err = sendSegments(fd, buf, count)
		case opSink:
			if err = sinkStream(fd, buf, count); err == nil {
				_, err = send(fd, buf[:ackLen])
			}
		default:
			err = fmt.Errorf("unknown operation %d", op)
		}
		if err != nil {
			return err
		}
	}
}

func sendStream(fd int, buf []byte, count int) error {
	for count > 0 {
		n, err := send(fd, buf[:min(count, len(buf))])
		if err != nil {
			return err
		}
		count -= n
	}
	return nil
}

// sendSegments is sendStream while the interface takes only packets of the MTU. The kernel
// segments before.
func sendSegments(fd int, buf []byte, count int) error {
	err := setTSO(guestInterface, false)
	if err == nil {
		err = sendStream(fd, buf, count)
	}
	return errors.Join(err, setTSO(guestInterface, true))
}

// guestInterface is the guest's only interface.
const guestInterface = "eth0"

func sinkStream(fd int, buf []byte, count int) error {
	for count > 0 {
		n, err := recv(fd, buf[:min(count, len(buf))])
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("%d bytes did not come", count)
		}
		count -= n
	}
	return nil
}

// work is dom0's end of one item.
type work interface {
	do(n int) error // n units
	close()
}

// peer is the guest: its address, or its vif if it has no network.
type peer struct {
	addr netip.Addr
	wire *wire
}

// item is one row of the table.
type item struct {
	Name  string
	Unit  string
	count int // units of the standard work
	whole int // the count is a multiple of this, and at least twice this
	open  func(peer) (work, error)
}

// units returns the number of units of scale times the standard work.
func (it *item) units(scale float64) int {
	n := int(float64(it.count) * scale)
	return max(n-n%it.whole, 2*it.whole)
}

// networkItems need a guest with a network.
var networkItems = []item{
	{"tcp guest to dom0", "MiB", 12, 1, openStream(opSend)},
	{"tcp dom0 to guest", "MiB", 12, 1, openStream(opSink)},
	{"tcp without TSO guest to dom0", "MiB", 12, 1, openStream(opCut)},
	{"udp 64 guest to dom0", "packet", 4608, ackEvery, openDatagrams(opSend, 64)},
	{"udp 1472 guest to dom0", "packet", 4608, ackEvery, openDatagrams(opSend, 1472)},
	{"udp 64 dom0 to guest", "packet", 4608, ackEvery, openDatagrams(opSink, 64)},
	{"udp 1472 dom0 to guest", "packet", 4608, ackEvery, openDatagrams(opSink, 1472)},
	{"ping", "ping", 384, 1, openPing},
}

// frameItems need a guest with the command front.
var frameItems = []item{
	{"64 B guest to dom0", "packet", 4608, ackEvery, openFrames(opSend, smallFrame)},
	{"1500 B guest to dom0", "packet", 4608, ackEvery, openFrames(opSend, mtuFrame)},
	{"64 KiB guest to dom0", "packet", 384, 4, openFrames(opSend, gsoFrame)},
	{"64 B dom0 to guest", "packet", 4608, ackEvery, openFrames(opSink, smallFrame)},
	{"1500 B dom0 to guest", "packet", 4608, ackEvery, openFrames(opSink, mtuFrame)},
	{"64 KiB dom0 to guest", "packet", 384, 4, openFrames(opSink, gsoFrame)},
}

func connect(kind int, to netip.Addr, port int) (int, error) {
	fd, err := socket(kind, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: to.As4()}); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("connect: %w", err)
	}
	return fd, nil
}

type stream struct {
	fd, op int
	buf    []byte
}

func openStream(op int) func(peer) (work, error) {
	return func(p peer) (work, error) {
		fd, err := connect(unix.SOCK_STREAM, p.addr, port)
		return &stream{fd, op, make([]byte, tcpChunk)}, err
	}
}

func (s *stream) do(mib int) error {
	if _, err := send(s.fd, putRequest(s.buf, s.op, 0, mib<<20)); err != nil {
		return err
	}
	if s.op != opSink {
		return sinkStream(s.fd, s.buf, mib<<20)
	}
	if err := sendStream(s.fd, s.buf, mib<<20); err != nil {
		return err
	}
	return sinkStream(s.fd, s.buf, ackLen)
}

func (s *stream) close() { _ = unix.Close(s.fd) }

type datagrams struct {
	fd, op, size int
}

func openDatagrams(op, size int) func(peer) (work, error) {
	return func(p peer) (work, error) {
		fd, err := connect(unix.SOCK_DGRAM, p.addr, port)
		return &datagrams{fd, op, size}, err
	}
}

func (d *datagrams) do(n int) error {
	var buf [64]byte
	if _, err := send(d.fd, putRequest(buf[:], d.op, d.size, n)); err != nil {
		return err
	}
	if d.op == opSend {
		return sinkDatagrams(d.fd, d.size, n)
	}
	if _, err := recv(d.fd, buf[:]); err != nil {
		return fmt.Errorf("the guest is not ready: %w", err)
	}
	return sendDatagrams(d.fd, d.size, n)
}

func (d *datagrams) close() { _ = unix.Close(d.fd) }

// pinger sends echo requests, one at a time.
type pinger struct {
	fd  int
	seq uint16
	rtt []time.Duration // of the last do
}

func openPing(to peer) (work, error) {
	fd, err := socket(unix.SOCK_RAW, unix.IPPROTO_ICMP)
	if err != nil {
		return nil, err
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		return nil, err
	}
	return &pinger{fd: fd}, unix.Connect(fd, &unix.SockaddrInet4{Addr: to.addr.As4()})
}

func (p *pinger) do(n int) error {
	p.rtt = slices.Grow(p.rtt[:0], n)
	for range n {
		if err := p.one(); err != nil {
			return err
		}
	}
	return nil
}

// one sends a request and waits for the reply to it.
func (p *pinger) one() error {
	var req [8 + 56]byte
	var reply [256]byte
	p.seq++
	req[0], req[1] = 8, 0 // echo request
	binary.BigEndian.PutUint32(req[4:], uint32(p.seq))
	sum := 8<<8 + uint32(p.seq) // all else is zero
	binary.BigEndian.PutUint16(req[2:], ^uint16(sum+sum>>16))
	began := time.Now()
	if _, err := send(p.fd, req[:]); err != nil {
		return err
	}
	for {
		n, err := recv(p.fd, reply[:])
		if err != nil {
			return fmt.Errorf("no reply to ping %d: %w", p.seq, err)
		}
		if n == 20+len(req) && reply[20] == 0 && binary.BigEndian.Uint32(reply[24:]) == uint32(p.seq) {
			break
		}
	}
	p.rtt = append(p.rtt, time.Since(began))
	return nil
}

func (p *pinger) close() { _ = unix.Close(p.fd) }
