// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/vhostuser"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// virtRing is one ring of a pair. It belongs to the queue's worker.
//
// Its format is one of two fields, and a method chooses by which of them is set: that is
// one branch that the processor predicts, where an interface would cost an indirect call.
type virtRing struct {
	split   *virtqueue.Split // one of the two is set while the ring is started
	packed  *virtqueue.Packed
	set     vhostuser.Ring // as the front end describes it
	fetcher *virtFetcher

	live   bool  // it was kicked since it was started
	broken error // why it is not served any more; nil: it is
	kind   int32 // of its kicks in epoll

	kick    int  // descriptor in epoll; -1: none
	fired   bool // the descriptor is readable
	resting bool // epoll does not watch it for a while
}

// started reports whether the front end has started the ring.
func (r *virtRing) started() bool { return r.split != nil || r.packed != nil }

// runs reports whether the ring may be read and written.
func (r *virtRing) runs() bool { return r.live && r.broken == nil }

// attach begins to use the ring that set describes, from base on.
func (r *virtRing) attach(q *Queue, set vhostuser.Ring, base uint32, m *virtMemory) (err error) {
	c := virtqueue.Config{
		Size: set.Size, Memory: m.memory, Base: base, Inflight: set.Inflight,
		EventIdx: set.Features&virtEventIdx != 0,
		Indirect: set.Features&virtIndirect != 0,
		InOrder:  set.Features&virtInOrder != 0,
	}
	fetcher := r.fetcher
	if m.copies && c.Indirect {
		if fetcher == nil {
			f, err := vhostuser.NewFetcher(m.table)
			if err != nil {
				return err
			}
			fetcher = &virtFetcher{f, q}
		}
		c.Fetcher = fetcher
	}
	var split *virtqueue.Split
	var packed *virtqueue.Packed
	if set.Packed {
		packed, err = virtqueue.NewPacked(c, set.PackedRings())
	} else {
		split, err = virtqueue.NewSplit(c, set.SplitRings())
	}
	if err != nil {
		if fetcher != r.fetcher {
			err = errors.Join(err, fetcher.Close())
		}
		return err
	}
	if fetcher != nil {
		fetcher.SetTable(m.table)
	}
	r.split, r.packed, r.set, r.fetcher = split, packed, set, fetcher
	return nil
}

// detach ends the use of the ring.
func (r *virtRing) detach() {
	if r.fetcher != nil {
		_ = r.fetcher.Close()
	}
	*r = virtRing{kind: r.kind, kick: -1, set: vhostuser.Ring{Kick: -1, Call: -1, Err: -1}}
}

// base returns the position as GET_VRING_BASE has it.
func (r *virtRing) base() uint32 {
	if r.split != nil {
		return r.split.Base()
	}
	return r.packed.Base()
}

// log records writes in l, which may be nil.
func (r *virtRing) log(l *virtqueue.Log) {
	if r.split != nil {
		r.split.SetLogging(r.set.Logging(l))
		return
	}
	r.packed.SetLogging(r.set.Logging(l))
}

func (r *virtRing) take(b *virtqueue.Batch, most int) (int, error) {
	if r.split != nil {
		return r.split.Take(b, most)
	}
	return r.packed.Take(b, most)
}

func (r *virtRing) takeFor(b *virtqueue.Batch, n uint32, most int) (int, error) {
	if r.split != nil {
		return r.split.TakeFor(b, n, most)
	}
	return r.packed.TakeFor(b, n, most)
}

// giveBack returns the chains of b from number keep on.
func (r *virtRing) giveBack(b *virtqueue.Batch, keep int) {
	if r.split != nil {
		r.split.Return(b, keep)
		return
	}
	r.packed.Return(b, keep)
}

func (r *virtRing) publish(b *virtqueue.Batch) (notify bool) {
	if r.split != nil {
		return r.split.Publish(b)
	}
	return r.packed.Publish(b)
}

func (r *virtRing) available() int {
	if r.split != nil {
		return r.split.Available()
	}
	return r.packed.Available()
}

func (r *virtRing) availableUpTo(n int) (int, error) {
	if r.split != nil {
		return r.split.AvailableUpTo(n)
	}
	return r.packed.AvailableUpTo(n)
}

func (r *virtRing) armFor(n int) (more bool, err error) {
	if r.split != nil {
		return r.split.ArmFor(n)
	}
	return r.packed.ArmFor(n)
}

func (r *virtRing) disarm() {
	if r.split != nil {
		r.split.Disarm()
		return
	}
	r.packed.Disarm()
}

// signal notifies the driver of what was published.
func (w *worker) signal(r *virtRing) {
	if r.set.Call < 0 {
		return
	}
	w.tally[Notifies]++
	w.tally[Syscalls]++
	_ = vhostuser.Signal(r.set.Call) // a front end that is gone is noticed elsewhere
}

// watchKick makes epoll watch the descriptor of a ring's kicks. A ring without one is
// live at once, and polled.
func (w *worker) watchKick(q *Queue, r *virtRing) error {
	if r.set.Kick < 0 {
		w.goLive(r)
		return nil
	}
	if err := w.epoll.watch(unix.EPOLL_CTL_ADD, r.set.Kick, q.id, r.kind, unix.EPOLLIN); err != nil {
		return err
	}
	r.kick, r.resting = r.set.Kick, false
	return nil
}

// goLive begins to serve a ring. It notifies the driver: a predecessor may have died before
// it did so, and the driver waits for that.
func (w *worker) goLive(r *virtRing) {
	if r.live {
		return
	}
	r.live = true
	w.signal(r)
	if r.kind == onKickRx {
		r.disarm() // buffers are of interest only to packets that wait
	}
}

// resume makes a ring live that is enabled and has chains already, without a kick: a
// predecessor may have taken it, and DPDK's virtio-user sends none to a successor.
func (w *worker) resume(r *virtRing) {
	if r.live || !r.set.Enabled || r.broken != nil {
		return
	}
	if n, err := r.availableUpTo(1); n > 0 || err != nil { // an error shows when it is served
		w.goLive(r)
	}
}

// unwatchKick undoes watchKick.
func (w *worker) unwatchKick(r *virtRing) {
	if r.kick >= 0 {
		_ = w.epoll.watch(unix.EPOLL_CTL_DEL, r.kick, 0, r.kind, 0)
	}
	r.kick, r.fired, r.resting = -1, false, false
}

// takeKick reads the descriptor of a ring's kicks, which is readable. The front end chose
// it: it may be closed at its other end, or be no eventfd.
func (w *worker) takeKick(r *virtRing) {
	if !r.fired || r.kick < 0 {
		r.fired = false
		return
	}
	r.fired = false
	w.goLive(r)
	w.tally[Syscalls]++
	w.tally[EventCalls]++
	w.tally[Wakes]++
	n, err := w.readKick(r.kick)
	if n <= 0 && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
		w.unwatchKick(r)
	}
}

// readKick reads a descriptor of kicks. The front end may have read it since epoll reported
// it, and have made it blocking, so the read is one that never blocks. Kernels before 5.8 do
// not have that for eventfds.
func (w *worker) readKick(fd int) (int, error) {
	n, err := unix.Preadv2(fd, w.virt.kick[:], -1, unix.RWF_NOWAIT)
	if err == unix.EOPNOTSUPP {
		return unix.Read(fd, w.virt.kick[0])
	}
	return n, err
}

// restKick makes epoll watch a ring's kicks no more, or again.
func (w *worker) restKick(q *Queue, r *virtRing, rest bool) {
	if r.kick < 0 || r.resting == rest {
		return
	}
	events := uint32(unix.EPOLLIN)
	if rest {
		events = 0
	}
	w.tally[Syscalls]++
	if w.epoll.watch(unix.EPOLL_CTL_MOD, r.kick, q.id, r.kind, events) == nil {
		r.resting = rest
	}
}
