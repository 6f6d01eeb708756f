// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// A large packet is read from the TAP straight into the guest's buffers, so that its data is
// copied once and not twice, as with static grants. How large it is is known only after the
// read: chains are taken for the largest one, and those that it does not use are returned to
// the ring. Its first rxHead bytes and the vnet header are read to private memory, where
// they are inspected, and copied from there.

// vrxMostPieces bounds the pieces of such a read; readv(2) takes no more than 1024.
const vrxMostPieces = 512

// readsToChains reports whether large packets may be read into the guest's buffers.
func (q *Queue) readsToChains() bool {
	return !q.virt.memory.copies && q.blocked.stale == 0 && q.vnetLen != 0
}

// vrxToChains reads large packets into the guest's buffers as long as there are any. It
// reports whether the pass must end. If not, the next packets are read to the arena.
func (w *worker) vrxToChains(q *Queue) (end bool, err error) {
	r, vb := &q.reader, w.virt.rx
	want := r.run.wantLarge()
	for i := range want {
		at, ok := w.reads.places.page()
		if !ok {
			r.run.read += i
			return true, nil
		}
		first := vb.Len()
		pieces, err := w.vrxAim(q, at)
		switch {
		case err != nil:
			return true, err
		case pieces == 0:
			r.run.read += i
			return i > 0, nil
		}
		w.tally[Syscalls]++
		w.tally[TapReadCalls]++
		got, _, e := unix.RawSyscall(unix.SYS_READV, uintptr(r.tap.FD()), w.uring.iov.At(0), uintptr(pieces))
		if e != 0 {
			q.virt.rx.giveBack(vb, first)
			if e == unix.EFAULT {
				// Linux's tun reports no such fault today. If it did, the packet would be lost,
				// and the next one is read to the arena: the copy from there breaks the ring.
				w.tally[DropRxGrant]++
				r.large.last = false
				return true, nil
			}
			q.tapIn.ready = r.run.note(i, false)
			return true, nil
		}
		n := int(got) - r.vnetLen
		r.large.last = n > smallPacket
		if err := w.vrxLarge(q, at, n, first); err != nil {
			return true, err
		}
		if w.virt.copies.n != 0 {
			w.reads.places.took(at + n) // its copy may still be due
		}
		if !r.large.last || !q.backlog.empty() {
			r.run.read += i + 1
			return true, nil
		}
	}
	q.tapIn.ready = r.run.note(want, true)
	return true, nil
}

// vrxAim takes chains for the largest packet and points the worker's iovecs at them: the
// vnet header and the first rxHead bytes at at of the arena, and behind them the buffers, as
// far as the packet's further bytes will be. It returns the number of iovecs, 0 if there
// are too few chains; then none is taken.
func (w *worker) vrxAim(q *Queue, at int) (n int, err error) {
	v, vb, iov := q.virt, w.virt.rx, w.uring.iov
	first := vb.Len()
	count, err := v.rx.takeFor(vb, uint32(v.hdrLen+maxFrame), v.mostChains())
	if err != nil || count == 0 {
		if errors.Is(err, virtqueue.ErrMax) {
			err = nil
		}
		return 0, err
	}
	iov.Set(0, w.rxMem.addr(at-q.vnetLen), uint32(q.vnetLen+rxHead))
	n = 1
	skip := v.hdrLen + rxHead
	var from, end uintptr // of the piece that is not listed yet
	for i := first; i < vb.Len(); i++ {
		pieces := vb.Writable(i)
		for k := range pieces {
			mem := pieces[k].Mem
			if len(mem) <= skip {
				skip -= len(mem)
				continue
			}
			start := memAddr(mem) + uintptr(skip)
			if start != end {
				if end != 0 {
					iov.Set(n, from, uint32(end-from))
					n++
				}
				from = start
			}
			end = start + uintptr(len(mem)-skip)
			skip = 0
			if n == vrxMostPieces {
				v.rx.giveBack(vb, first)
				return 0, nil
			}
		}
	}
	iov.Set(n, from, uint32(end-from))
	return n + 1, nil
}

// vrxLarge delivers a packet of n bytes that was read into the chains from number first on
// of the batch, with its start at at of the arena. A packet that cannot go to the guest as
// it is is copied back, and takes the usual way.
func (w *worker) vrxLarge(q *Queue, at, n, first int) error {
	v, vb, mem := q.virt, w.virt.rx, w.rxMem.mem
	if n > rxHead && v.takesAsItIs(mem[at-vrxHead:at]) {
		count, have := 0, 0
		for have < v.hdrLen+n {
			have += int(vb.Chain(first + count).WriteLen)
			count++
		}
		v.rx.giveBack(vb, first+count)
		w.vrxFillHead(q, at, n, count)
		return nil
	}
	if n > rxHead {
		w.vrxFetchBack(q, at, n, first)
	}
	v.rx.giveBack(vb, first)
	return w.vrxFrame(q, rxFrame{at, n + q.vnetLen})
}

// takesAsItIs reports whether a packet with this vnet header needs no work for the guest.
func (v *virtPair) takesAsItIs(hdr []byte) bool {
	var h tap.VnetHdr
	h.Decode(hdr)
	if !offload.NeedsParse(h.Flags, h.GSOType) {
		return h.Flags == 0 || v.takes.csum
	}
	return v.takes.passes(&h)
}

// vrxFillHead copies the vnet header and the first rxHead bytes of a packet to the last
// count chains of the batch, which have the rest already.
func (w *worker) vrxFillHead(q *Queue, at, n, count int) {
	vb := w.virt.rx
	first := vb.Len() - count
	w.vrxNote(q, &w.rxMem, at, n, count)
	from, left := at-q.virt.hdrLen, q.virt.hdrLen+rxHead
	for i := first; ; i++ {
		pieces := vb.Writable(i)
		for k := range pieces {
			part := copy(pieces[k].Mem[:min(left, len(pieces[k].Mem))], w.rxMem.mem[from:])
			from += part
			if left -= part; left == 0 {
				return
			}
		}
	}
}

// vrxFetchBack copies what is behind the first rxHead bytes of a packet of n bytes from the
// chains to the arena.
func (w *worker) vrxFetchBack(q *Queue, at, n, first int) {
	vb := w.virt.rx
	skip, to := q.virt.hdrLen+rxHead, w.rxMem.mem[at+rxHead:at+n]
	for i := first; len(to) > 0; i++ {
		pieces := vb.Writable(i)
		for k := range pieces {
			mem := pieces[k].Mem
			if len(mem) <= skip {
				skip -= len(mem)
				continue
			}
			to = to[copy(to, mem[skip:]):]
			skip = 0
		}
	}
}
