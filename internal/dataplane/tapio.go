// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/rawio"
)

// Buffers registered with the io_uring, by number.
const (
	bufTx = 0
	bufRx = 1
)

// uringMin is the number of packets from which on io_uring is cheaper than a
// write for each.
const uringMin = 4

// tapOut writes one batch of packets to a TAP queue, in order: with one call for
// all of them through io_uring, or one call each without.
type tapOut struct {
	w      *worker
	oneCPU bool // is all there is
	q      *Queue
	uring  bool
	queued int

	// Without io_uring: what is queued, calls of one kind.
	trap  uintptr
	calls [batchPackets]rawio.Call
	pkt   [batchPackets]uint8 // whose call it is
}

// begin starts a batch.
//
// io_uring saves the system calls, and whoever waits for the packets runs once a
// batch and not once a packet: with a receiver on this host, small packets take a
// third less. With large ones that is little, unless he can only run where the worker
// does, and an operation on an array of pieces costs more than a call.
func (o *tapOut) begin(q *Queue, b *txBatch) {
	o.q, o.queued, o.trap = q, 0, unix.SYS_WRITE
	n := b.nPkts
	o.uring = o.w.ring != nil && n >= uringMin && (o.oneCPU || int(b.bytes) <= n*smallPacket)
}

// direct reports whether the next write is a system call in line with those that
// are queued.
func (o *tapOut) direct() bool { return !o.uring && o.trap == unix.SYS_WRITE }

// write sends the n octets at off of the tx arena as packet i.
func (o *tapOut) write(i, off, n int) {
	addr := o.w.txMem.addr(off)
	if o.uring {
		o.w.ring.WriteFixed(o.q.id, addr, uint32(n), bufTx, uint64(i))
		o.queued++
		return
	}
	if o.trap != unix.SYS_WRITE {
		o.others(unix.SYS_WRITE)
	}
	o.call(i, addr, n)
}

// writev sends the n pieces in w.iov from first on as packet i. They stay as
// they are until flush.
func (o *tapOut) writev(i, first, n int) {
	addr := o.w.iov.At(first)
	if o.uring {
		o.w.ring.Writev(o.q.id, addr, uint32(n), uint64(i))
		o.queued++
		return
	}
	if o.trap != unix.SYS_WRITEV {
		o.others(unix.SYS_WRITEV)
	}
	o.call(i, addr, n)
}

// call queues a system call.
func (o *tapOut) call(i int, addr uintptr, n int) {
	k := o.queued & (batchPackets - 1)
	o.calls[k] = rawio.Call{Addr: addr, Len: uint32(n)}
	o.pkt[k] = uint8(i)
	o.queued++
}

// others makes the calls that are queued, before those of another kind.
func (o *tapOut) others(trap uintptr) {
	o.flush(&o.w.tx)
	o.trap = trap
}

// put sends a frame at once, which must not overtake what is queued.
func (o *tapOut) put(frame []byte) unix.Errno {
	o.w.tally[Syscalls]++
	o.w.tally[TapWriteCalls]++
	_, err := o.q.tap.Write(frame)
	e, _ := err.(unix.Errno) //nolint:errorlint // a queue returns bare errnos
	return e
}

// flush sends what is queued and waits until all of it is done.
func (o *tapOut) flush(b *txBatch) {
	switch {
	case o.queued == 0:
	case o.uring:
		o.submit(b)
	default:
		o.callAll(b)
	}
	o.queued = 0
}

// callAll makes the system calls that are queued.
func (o *tapOut) callAll(b *txBatch) {
	w := o.w
	n := o.queued
	w.tally[Syscalls] += uint32(n)
	w.tally[TapWriteCalls] += uint32(n)
	rawio.All(o.trap, o.q.tap.FD(), o.calls[:n])
	packets, bytes := uint32(0), uint32(0)
	for k := range o.calls[:n] {
		p := &b.pkts[o.pkt[k]]
		if e := o.calls[k].Res; e < 0 {
			o.done(p, unix.Errno(-e))
			continue
		}
		packets++
		bytes += p.total
	}
	w.tally[TxPackets] += packets
	w.tally[TxBytes] += bytes
}

// submit has io_uring do what is queued.
func (o *tapOut) submit(b *txBatch) {
	w := o.w
	w.tally[TapWriteCalls]++
	w.tally[Syscalls]++
	_, err := w.ring.Submit()
	n := w.ring.Completions(w.cqes[:])
	for _, c := range w.cqes[:n] {
		o.done(&b.pkts[c.User], unix.Errno(max(-c.Res, 0)))
	}
	if lost := o.queued - n; lost > 0 {
		w.tally[DropTxTapFull] += uint32(lost)
	}
	if err != nil {
		w.ringFailed(err)
		o.uring = false
	}
}

// done counts a packet's way into the TAP.
func (o *tapOut) done(p *txPacket, e unix.Errno) {
	t := &o.w.tally
	if e == 0 {
		t[TxPackets]++
		t[TxBytes] += p.total
		return
	}
	p.drop = tapErrno(e)
	t[p.drop]++
}

// tapErrno is the reason to drop a packet that the TAP refused with e.
func tapErrno(e unix.Errno) Counter {
	switch e {
	case unix.EIO:
		return DropTxTapDown
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		return DropTxTapFull
	}
	return DropTxTapRefused
}
