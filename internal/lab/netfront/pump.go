// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
)

// ErrStopped is returned for a pump that does not run any more.
var ErrStopped = errors.New("netfront: the pump has stopped")

// batch is the number of packets that a pump moves in one direction before it publishes
// them and turns to the other direction.
const batch = 64

// pumpPages is the number of pages for one packet from the TAP. The longest frame takes
// 16; a byte in the last page shows that a frame was too long.
const pumpPages = netif.MaxTxSize/netif.PageSize + 2

// Pump moves packets between a queue and a queue of a TAP, whose host side is
// then the guest's eth0. Packets are read into granted pages and written from
// them; nothing is copied in between.
//
// It owns both queues while it runs.
type Pump struct {
	q    *Queue
	tap  *tap.Queue
	vnet bool

	epoll   int
	reading bool // the pump waits for the TAP to become readable

	pkt Packet
	in  [1 + pumpPages]unix.Iovec
	out [1 + maxFrags]unix.Iovec
	hdr [tap.VnetHdrLen]byte

	jobs chan func()
	done chan struct{}
}

// NewPump makes a pump. With vnet the TAP puts a vnet header before each frame; without
// it the device must not ask for segmentation offload.
func NewPump(q *Queue, t *tap.Queue, vnet bool) (*Pump, error) {
	p := &Pump{q: q, tap: t, vnet: vnet, jobs: make(chan func(), 1), done: make(chan struct{})}
	var err error
	if p.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("netfront: pump: %w", err)
	}
	p.in[0].Base, p.out[0].Base = &p.hdr[0], &p.hdr[0]
	if vnet {
		p.in[0].SetLen(len(p.hdr))
		p.out[0].SetLen(len(p.hdr))
	}
	for _, fd := range []int{q.events.FD(), q.wake.FD(), t.FD()} {
		ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
		if err := unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
			return nil, errors.Join(fmt.Errorf("netfront: pump: %w", err), unix.Close(p.epoll))
		}
	}
	p.reading = true
	return p, nil
}

// TapOffload returns the offloads of a TAP for the device's pumps: the work that the
// guest's stack may leave to the backend, by the backend's offers at the last connection.
func (d *Device) TapOffload() tap.Offload {
	o := d.offers
	return tap.Offload{
		Csum: true, // the pump completes checksums that the backend cannot
		TSO4: o.SG && o.GSOTCPv4 && !o.NoCsumOffload,
		TSO6: o.SG && o.GSOTCPv6 && o.IPv6CsumOffload,
	}
}

// Do runs f on the pump's thread, between two passes, and waits for it. It fails
// with ErrStopped if the pump ends before that.
func (p *Pump) Do(f func(*Queue)) error {
	ran := make(chan struct{})
	select {
	case p.jobs <- func() { f(p.q); close(ran) }:
	case <-p.done:
		return ErrStopped
	}
	p.q.wake.Wake()
	select {
	case <-ran:
		return nil
	case <-p.done:
		return ErrStopped
	}
}

// Queue returns the pump's queue. While the pump runs, callers may read only its index
// and its buffers, which do not change.
func (p *Pump) Queue() *Queue { return p.q }

// Done returns a channel that is closed when Run has ended.
func (p *Pump) Done() <-chan struct{} { return p.done }

// Run moves packets on a thread of its own until ctx ends, and returns nil then. After a
// fatal violation of the backend it moves no more packets, but still runs the functions of
// Do. The pump cannot be run again.
func (p *Pump) Run(ctx context.Context) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(p.done)
	defer func() { _ = unix.Close(p.epoll) }()
	defer context.AfterFunc(ctx, p.q.wake.Wake)()

	for ctx.Err() == nil {
		select {
		case f := <-p.jobs:
			f()
		default:
		}
		work, err := p.pass()
		if err != nil {
			return err
		}
		if work {
			continue
		}
		if err := p.setReading(p.canSend()); err != nil {
			return err
		}
		if p.q.dead == nil && p.q.arm() {
			continue
		}
		if err := p.sleep(); err != nil {
			return err
		}
	}
	return nil
}

// pass moves up to a batch in each direction and publishes it. It reports whether it
// moved any packet.
func (p *Pump) pass() (work bool, err error) {
	if p.q.dead != nil {
		return false, nil
	}
	n, err := p.q.Reap()
	if err == nil {
		var got, sent int
		if got, err = p.fromRing(); err != nil {
			return false, p.fatal(err)
		}
		if sent, err = p.fromTap(); err != nil {
			return false, err
		}
		n += got + sent
		p.q.Post()
		err = p.q.Flush()
	}
	if err != nil {
		return false, p.fatal(err)
	}
	return n > 0, nil
}

// fatal keeps the pump running after a fatal violation, so that Do still works.
func (p *Pump) fatal(err error) error {
	var v *Violation
	if errors.As(err, &v) {
		return nil
	}
	return err
}

// canSend reports whether a packet of any size fits.
func (p *Pump) canSend() bool {
	return p.q.dead == nil && p.q.tx.room(pumpPages, 1)
}

// setReading adds the TAP to the poll set or removes it, so that a full ring does not make
// the pump spin.
func (p *Pump) setReading(on bool) error {
	if p.reading == on {
		return nil
	}
	ev := unix.EpollEvent{Fd: int32(p.tap.FD())}
	if on {
		ev.Events = unix.EPOLLIN
	}
	if err := unix.EpollCtl(p.epoll, unix.EPOLL_CTL_MOD, p.tap.FD(), &ev); err != nil {
		return fmt.Errorf("netfront: pump: %w", err)
	}
	p.reading = on
	return nil
}

func (p *Pump) sleep() error {
	var evs [3]unix.EpollEvent
	n, err := unix.EpollWait(p.epoll, evs[:], -1)
	if err == unix.EINTR {
		return nil
	}
	if err != nil {
		return fmt.Errorf("netfront: pump: %w", err)
	}
	for _, ev := range evs[:n] {
		switch int(ev.Fd) {
		case p.q.wake.FD():
			p.q.wake.Drain()
		case p.tap.FD():
			if ev.Events&unix.EPOLLERR != 0 {
				return fmt.Errorf("netfront: pump: %w", tap.ErrGone)
			}
		default:
			if err := p.q.takeEvents(); err != nil {
				return fmt.Errorf("netfront: pump: %w", err)
			}
		}
	}
	return nil
}

// fromTap moves packets from the TAP to the tx ring.
func (p *Pump) fromTap() (n int, err error) {
	q := p.q
	for ; n < batch; n++ {
		if !p.canSend() {
			q.stats.TxFull++
			return n, nil
		}
		for i := range pumpPages {
			p.in[1+i].Base = &q.tx.page(q.tx.top(i))[0]
			p.in[1+i].SetLen(netif.PageSize)
		}
		iov := p.in[:]
		if !p.vnet {
			iov = iov[1:]
		}
		size, err := p.tap.Readv(iov)
		if err == unix.EAGAIN {
			return n, nil
		}
		if err == unix.EIO { // the device is down
			return n, nil
		}
		if err != nil {
			return n, fmt.Errorf("netfront: read from tap: %w", err)
		}
		m := Meta{}
		if p.vnet {
			size -= tap.VnetHdrLen
		}
		if !p.prepare(size, &m) {
			q.stats.TapDrops++
			continue
		}
		q.sendPages(size, m)
	}
	return n, nil
}

// prepare sets m by the vnet header of the frame in the top pages, and completes a
// checksum that the backend cannot. It reports false for a frame that netif cannot carry.
func (p *Pump) prepare(size int, m *Meta) bool {
	o := &p.q.rules.offers
	if size < ethHeader || size > netif.MaxTxSize || size > netif.PageSize && !o.SG {
		return false
	}
	if !p.vnet {
		return true
	}
	var h tap.VnetHdr
	h.Decode(p.hdr[:])
	switch {
	case h.Flags&tap.VnetNeedsCsum != 0:
		m.CsumBlank, m.DataValidated = true, true
	case h.Flags&tap.VnetDataValid != 0:
		m.DataValidated = true
	}
	switch h.GSOType {
	case tap.VnetGSONone:
	case tap.VnetGSOTCPv4:
		m.GSOType, m.GSOSize = netif.GSOTCPv4, h.GSOSize
	case tap.VnetGSOTCPv6:
		m.GSOType, m.GSOSize = netif.GSOTCPv6, h.GSOSize
	default:
		return false
	}
	if m.GSOType == netif.GSOTCPv4 && !o.GSOTCPv4 || m.GSOType == netif.GSOTCPv6 && !o.GSOTCPv6 {
		return false // read before the offload was disabled
	}
	if m.CsumBlank {
		hd := findHeaders(p.q.tx.page(p.q.tx.top(0))[:min(size, netif.PageSize)])
		if !hd.offloads(&h) || hd.tagged || hd.v4 && o.NoCsumOffload || hd.v6 && !o.IPv6CsumOffload {
			if m.GSOType != netif.GSONone {
				return false
			}
			m.CsumBlank = false
			return p.finishCsum(size, int(h.CsumStart), int(h.CsumOffset))
		}
	}
	return true
}

// finishCsum completes the checksum of a frame in the top pages.
func (p *Pump) finishCsum(size, start, offset int) bool {
	at := start + offset
	if start >= size || at+2 > min(size, netif.PageSize) {
		return false
	}
	t := &p.q.tx
	var s uint64
	for i, from := 0, start; i*netif.PageSize < size; i++ {
		b := t.page(t.top(i))[:min(size-i*netif.PageSize, netif.PageSize)]
		if from < len(b) {
			// A page has an even number of bytes, so if start is odd the
			// first piece is too, and every later one begins with the low
			// half of a word.
			part := fold(sum(b[from:]))
			if i > 0 && start%2 == 1 {
				part = part<<8 | part>>8
			}
			s += uint64(part)
		}
		from = max(from-len(b), 0)
	}
	c := ^fold(s)
	if c == 0 && offset == 6 {
		c = 0xffff // UDP: 0 would mean none
	}
	binary.BigEndian.PutUint16(t.page(t.top(0))[at:], c)
	return true
}

// fromRing moves packets from the rx ring to the TAP.
func (p *Pump) fromRing() (n int, err error) {
	for ; n < batch; n++ {
		ok, err := p.q.Recv(&p.pkt)
		if err != nil || !ok {
			return n, err
		}
		err = p.deliver()
		p.q.Release(&p.pkt)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// deliver writes the packet to the TAP.
func (p *Pump) deliver() error {
	k := &p.pkt
	var h tap.VnetHdr
	if k.Meta.CsumBlank {
		at := k.hdr.csumField()
		if at == 0 || at+2 > k.size {
			p.q.stats.TapDrops++ // the header was not found, so the checksum cannot be completed
			return nil
		}
		if !p.vnet {
			k.finishCsum(at)
		}
		h.Flags = tap.VnetNeedsCsum
		h.CsumStart, h.CsumOffset = uint16(k.hdr.l4), uint16(at-k.hdr.l4)
	}
	switch k.Meta.GSOType {
	case netif.GSONone:
	case netif.GSOTCPv4, netif.GSOTCPv6:
		if !p.vnet {
			p.q.stats.TapDrops++
			return nil
		}
		h.GSOType, h.GSOSize = tap.VnetGSOTCPv4, k.Meta.GSOSize
		if k.Meta.GSOType == netif.GSOTCPv6 {
			h.GSOType = tap.VnetGSOTCPv6
		}
		h.HdrLen = uint16(k.hdr.l4 + int(k.byteAt(k.hdr.l4+12)>>4)*4)
	}
	iov := p.out[:1+k.n]
	for i := range k.n {
		f := k.Frag(i)
		iov[1+i].Base = &f[0]
		iov[1+i].SetLen(len(f))
	}
	if p.vnet {
		h.Encode(p.hdr[:])
	} else {
		iov = iov[1:]
	}
	_, err := p.tap.Writev(iov)
	switch err {
	case nil:
	case unix.EAGAIN:
		p.q.stats.TapFull++
	case unix.EBADFD, unix.EBADF:
		return fmt.Errorf("netfront: write to tap: %w", err)
	default:
		p.q.stats.TapErrors++
	}
	return nil
}

// byteAt returns the packet's byte at i, or 0 beyond its end.
func (p *Packet) byteAt(i int) byte {
	for k := range p.n {
		b := p.Frag(k)
		if i < len(b) {
			return b[i]
		}
		i -= len(b)
	}
	return 0
}

// setByte overwrites the packet's byte at i.
func (p *Packet) setByte(i int, v byte) {
	for k := range p.n {
		b := p.Frag(k)
		if i < len(b) {
			b[i] = v
			return
		}
		i -= len(b)
	}
}

// finishCsum completes the packet's checksum in the field at offset at.
func (p *Packet) finishCsum(at int) {
	c := ^fold(p.sumFrom(p.hdr.l4))
	if c == 0 && p.hdr.proto == protoUDP {
		c = 0xffff
	}
	p.setByte(at, byte(c>>8))
	p.setByte(at+1, byte(c))
}
