// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/rawio"
)

// Numbers of the buffers that are registered with the io_uring.
const (
	bufTx = 0
	bufRx = 1
)

// uringMin is the minimum of packets for which io_uring is cheaper than a system call
// each.
const uringMin = 4

// tapWriter writes one batch of packets to a TAP queue, in order: with one call for all
// of them through io_uring, or with one call each.
type tapWriter struct {
	w      *worker
	oneCPU bool // the host has one CPU
	q      *Queue
	uring  bool
	queued int
	joined int // packets that are queued as a part of another one

	// Without io_uring: the queued calls, all of one kind.
	trap  uintptr
	calls [batchPackets]rawio.Call
	pkt   [batchPackets]uint8 // index in txBatch.pkts of each call's packet
}

// begin starts a batch, which takes a number of writes.
//
// io_uring saves system calls, and wakes a receiver once per batch instead of once per
// packet: small packets to a receiver on this host take a third less time. For large
// packets the gain is small, unless the receiver shares the worker's CPU, and a write of
// several pieces costs more than a system call.
func (o *tapWriter) begin(q *Queue, b *txBatch, n int) {
	o.q, o.queued, o.joined, o.trap = q, 0, 0, unix.SYS_WRITE
	o.uring = o.w.uring.ring != nil && (o.w.exchange.queued || n >= uringMin && (o.oneCPU || int(b.bytes) <= n*smallPacket))
}

// direct reports whether the next write is a system call of the kind that is queued.
func (o *tapWriter) direct() bool { return !o.uring && o.trap == unix.SYS_WRITE }

// write sends the n bytes at off of the tx arena as packet i.
func (o *tapWriter) write(i, off, n int) {
	addr := o.w.txMem.addr(off)
	if o.uring {
		if u := &o.w.uring; u.fixed {
			u.ring.WriteFixed(o.q.id, addr, uint32(n), bufTx, uint64(i))
		} else {
			u.ring.Write(o.q.id, addr, uint32(n), uint64(i))
		}
		o.queued++
		return
	}
	if o.trap != unix.SYS_WRITE {
		o.switchTo(unix.SYS_WRITE)
	}
	o.call(i, addr, n)
}

// writev sends the n pieces in w.uring.iov from first on as packet i. They must not change
// until flush.
func (o *tapWriter) writev(i, first, n int) {
	addr := o.w.uring.iov.At(first)
	if o.uring {
		o.w.uring.ring.Writev(o.q.id, addr, uint32(n), uint64(i))
		o.queued++
		return
	}
	if o.trap != unix.SYS_WRITEV {
		o.switchTo(unix.SYS_WRITEV)
	}
	o.call(i, addr, n)
}

// call queues a system call.
func (o *tapWriter) call(i int, addr uintptr, n int) {
	k := o.queued & (batchPackets - 1)
	o.calls[k] = rawio.Call{Addr: addr, Len: uint32(n)}
	o.pkt[k] = uint8(i)
	o.queued++
}

// switchTo makes the queued calls and then queues calls of another kind.
func (o *tapWriter) switchTo(trap uintptr) {
	o.flush(&o.w.tx)
	o.trap = trap
}

// put sends a frame at once. Nothing may be queued before it.
func (o *tapWriter) put(frame []byte) unix.Errno {
	o.w.tally[Syscalls]++
	o.w.tally[TapWriteCalls]++
	_, err := o.q.tap.Write(frame)
	e, _ := err.(unix.Errno) //nolint:errorlint // a queue returns bare errnos
	return e
}

// flush sends the queued packets and waits until all are written.
func (o *tapWriter) flush(b *txBatch) {
	switch {
	case o.queued == 0:
	case o.uring:
		o.submit(b)
	default:
		o.callAll(b)
	}
	o.queued, o.joined = 0, 0
}

// callAll makes the queued system calls.
func (o *tapWriter) callAll(b *txBatch) {
	w := o.w
	n := o.queued
	w.tally[Syscalls] += uint32(n)
	w.tally[TapWriteCalls] += uint32(n)
	rawio.All(o.trap, o.q.tap.FD(), o.calls[:n])
	packets, bytes := uint32(0), uint32(0)
	for k := range o.calls[:n] {
		p := &b.pkts[o.pkt[k]]
		if e := o.calls[k].Res; e < 0 || p.more != 0 {
			o.doneMerged(b, int(o.pkt[k]), unix.Errno(max(-e, 0)))
			continue
		}
		packets++
		bytes += p.total
	}
	w.tally[TxPackets] += packets
	w.tally[TxBytes] += bytes
}

// submit makes the queued writes with io_uring.
func (o *tapWriter) submit(b *txBatch) {
	w := o.w
	w.tally[TapWriteCalls]++
	w.tally[Syscalls]++
	exchange := w.exchange.queued
	if exchange {
		w.exchange.queued = false
		w.queueExchange(o.q)
	}
	_, err := w.uring.ring.Submit()
	all := w.uring.ring.Completions(w.uring.cqes[:])
	n, joined, packets, bytes := all, 0, uint32(0), uint32(0)
	for i := range w.uring.cqes[:all] {
		c := &w.uring.cqes[i]
		if c.User >= batchPackets {
			n--
			w.exchanged(o.q, c.User, c.Res)
			continue
		}
		p := &b.pkts[c.User]
		if c.Res < 0 || p.more != 0 {
			joined += int(p.more)
			o.doneMerged(b, int(c.User), unix.Errno(max(-c.Res, 0)))
			continue
		}
		packets++
		bytes += p.total
	}
	w.tally[TxPackets] += packets
	w.tally[TxBytes] += bytes
	if lost := o.queued + o.joined - n - joined; lost > 0 {
		w.tally[DropTxTapFull] += uint32(lost)
	}
	if err != nil {
		w.ringFailed(err)
		o.uring = false
		if exchange {
			o.q.ev.maskAll(o.q)
		}
	}
}

// done counts a packet that was written, or dropped with errno e.
func (o *tapWriter) done(p *txPacket, e unix.Errno) {
	t := &o.w.tally
	if e == 0 {
		t[TxPackets]++
		t[TxBytes] += p.total
		return
	}
	p.drop = tapErrno(e)
	t[p.drop]++
}

// tapErrno returns the reason to drop a packet that the TAP refused with e.
func tapErrno(e unix.Errno) Counter {
	switch e {
	case unix.EIO:
		return DropTxTapDown
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		return DropTxTapFull
	}
	return DropTxTapRefused
}
