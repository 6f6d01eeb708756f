// SPDX-License-Identifier: Apache-2.0

package dataplane

import "golang.org/x/sys/unix"

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
	q      *Queue
	uring  bool
	queued int
}

// begin starts a batch of n packets.
func (o *tapOut) begin(q *Queue, n int) {
	o.q, o.queued = q, 0
	o.uring = o.w.ring != nil && n >= uringMin
}

// write sends the n octets at off of the tx arena as packet i.
func (o *tapOut) write(i, off, n int) {
	w := o.w
	if o.uring {
		w.ring.WriteFixed(o.q.id, w.txMem.addr(off), uint32(n), bufTx, uint64(i))
		o.queued++
		return
	}
	w.tally[Syscalls]++
	w.tally[TapWriteCalls]++
	// Called from here, not through the queue: each return after a system call
	// is one that the processor has not foreseen.
	_, _, e := unix.RawSyscall(unix.SYS_WRITE, uintptr(o.q.tap.FD()), w.txMem.addr(off), uintptr(n))
	o.done(&w.tx.pkts[i], e)
}

// writev sends the n pieces in w.iov from first on as packet i. They stay as
// they are until flush.
func (o *tapOut) writev(i, first, n int) {
	w := o.w
	if o.uring {
		w.ring.Writev(o.q.id, w.iov.At(first), uint32(n), uint64(i))
		o.queued++
		return
	}
	w.tally[Syscalls]++
	w.tally[TapWriteCalls]++
	_, _, e := unix.RawSyscall(unix.SYS_WRITEV, uintptr(o.q.tap.FD()), w.iov.At(first), uintptr(n))
	o.done(&w.tx.pkts[i], e)
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
	if o.queued == 0 {
		return
	}
	w := o.w
	w.tally[TapWriteCalls]++
	w.tally[Syscalls]++
	_, err := w.ring.Submit()
	n := w.ring.Completions(w.cqes[:])
	for _, c := range w.cqes[:n] {
		p := &b.pkts[c.User]
		if c.Res >= 0 {
			o.done(p, 0)
		} else {
			o.done(p, unix.Errno(-c.Res))
		}
	}
	if lost := o.queued - n; lost > 0 {
		w.tally[DropTxTapFull] += uint32(lost)
	}
	o.queued = 0
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
