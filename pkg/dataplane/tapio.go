// SPDX-License-Identifier: Apache-2.0

package dataplane

import "golang.org/x/sys/unix"

// Buffers registered with the io_uring, by number.
const (
	bufTx = 0
	bufRx = 1
)

// tapOut writes one batch of packets to a TAP queue: with one call for all of
// them through io_uring, or one call each without. Results come back in the
// order of the packets, whatever the order of completion.
type tapOut struct {
	w      *worker
	q      *Queue
	queued uint32
}

func (o *tapOut) begin(q *Queue) {
	o.q, o.queued = q, 0
	o.w.pullAt = pullBase
}

// write sends the n octets at off of the tx arena as packet i.
func (o *tapOut) write(i, off, n int) {
	w := o.w
	if w.ring != nil {
		w.ring.WriteFixed(o.q.file, w.txMem.addr(off), uint32(n), bufTx, uint64(i))
		o.queued++
		return
	}
	w.tally[Syscalls]++
	w.tally[TapWriteCalls]++
	_, err := o.q.tap.Write(w.txMem.mem[off : off+n])
	o.done(&w.tx.pkts[i], err)
}

// writev sends the n pieces in w.iov from first on as packet i. They stay as
// they are until flush.
func (o *tapOut) writev(i, first, n int) {
	w := o.w
	if w.ring != nil {
		w.ring.Writev(o.q.file, w.iov.At(first), uint32(n), uint64(i))
		o.queued++
		return
	}
	w.tally[Syscalls]++
	w.tally[TapWriteCalls]++
	_, _, e := unix.RawSyscall(unix.SYS_WRITEV, uintptr(o.q.tap.FD()), w.iov.At(first), uintptr(n))
	if e != 0 {
		o.done(&w.tx.pkts[i], e)
		return
	}
	o.done(&w.tx.pkts[i], nil)
}

// writeNow sends a frame, or a segment, of packet p at once.
func (o *tapOut) writeNow(frame []byte, p *txPacket) {
	o.w.tally[Syscalls]++
	o.w.tally[TapWriteCalls]++
	_, err := o.q.tap.Write(frame)
	o.done(p, err)
}

// flush sends what is queued and waits until all of it is done.
func (o *tapOut) flush(b *txBatch) {
	w := o.w
	if o.queued == 0 {
		return
	}
	w.tally[TapWriteCalls]++
	w.tally[Syscalls]++
	if _, err := w.ring.Submit(); err != nil {
		w.ringFailed(err)
		return
	}
	n := w.ring.Completions(w.cqes[:])
	for _, c := range w.cqes[:n] {
		p := &b.pkts[c.User]
		if c.Res >= 0 {
			w.tally[TxPackets]++
			w.tally[TxBytes] += p.total
			continue
		}
		o.done(p, unix.Errno(-c.Res))
	}
}

// done counts a packet's way into the TAP.
func (o *tapOut) done(p *txPacket, err error) {
	t := &o.w.tally
	if err == nil {
		t[TxPackets]++
		t[TxBytes] += p.total
		return
	}
	e, _ := err.(unix.Errno)
	p.drop = tapErrno(e)
	t[p.drop]++
}
