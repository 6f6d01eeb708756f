// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"time"

	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/vhostuser"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// VirtConfig configures a device of vhost-user.
type VirtConfig struct {
	Name     string   // of the device, for messages
	VnetHdr  bool     // the TAP has vnet headers of tap.VnetHdrLen bytes
	Coalesce Coalesce // of packets from the guest
	Paused   bool     // coalescing is paused from the start
	Limiter  *Limiter // rate limit from guest to host; nil: none

	Drain time.Duration // 0: DefaultDrain
	Stall time.Duration // 0: DefaultStall

	// Notice is called from a worker for events that the owner of the device must act
	// on. It must not block. Queue is the number of the pair.
	Notice func(Notice)

	// Pairs are the pairs of rings that the device can have. Ring 2*i is for packets to
	// the guest, ring 2*i+1 for packets from it.
	Pairs []VirtPair
}

// VirtPair is one pair of rings.
type VirtPair struct {
	Tap *tap.Queue
}

// VirtConn is a device of vhost-user. Its methods carry out what [vhostuser.Handler] asks
// for: each waits until the workers have done it. They belong to one goroutine at a time,
// except for Stats, State, Queues and PauseCoalescing, which any may call.
//
// Packets go to the TAP queue of their pair. The host chooses among the queues that are
// attached to the TAP, so its owner attaches those of enabled pairs only.
type VirtConn struct {
	c      *Conn
	memory *virtMemory // as last set
}

// VirtState is a snapshot of a pair.
type VirtState struct {
	Rx, Tx       VirtRingState // to the guest, from the guest
	Backlog      int           // packets that wait for buffers
	BacklogBytes int           // bytes of memory that they take
	Stalled      bool
	RateWaiting  bool
	Uring        bool // TAP batches go through io_uring
	Worker       int
}

// VirtRingState is a snapshot of a ring.
type VirtRingState struct {
	Started   bool // the front end has started it
	Live      bool // it was kicked since then
	Enabled   bool
	Packed    bool
	Size      int    // descriptors
	Base      uint32 // as GET_VRING_BASE returns it
	Available int    // chains, or descriptors of a packed ring, that were seen and not used
	Err       error  // the rule that the driver broke; nil: none
}

// OpenVirt makes a device without memory, whose rings are all stopped. It serves nothing
// until StartRing.
func (p *Pool) OpenVirt(cfg VirtConfig) (*VirtConn, error) {
	c := newVirtConn(cfg)
	if err := p.serve(c); err != nil {
		return nil, err
	}
	return &VirtConn{c: c, memory: newVirtMemory(nil)}, nil
}

// Close stops serving the device. When it returns no worker uses its memory, its
// descriptors or its TAP queues. It may be called again.
func (v *VirtConn) Close() { v.c.Close() }

// PauseCoalescing is that of [Conn].
func (v *VirtConn) PauseCoalescing(on bool) error { return v.c.PauseCoalescing(on) }

// Queues returns the number of pairs.
func (v *VirtConn) Queues() int { return v.c.Queues() }

// Stats returns the counters of a pair. They stay readable after Close.
func (v *VirtConn) Stats(pair int) *Stats { return v.c.Stats(pair) }

// SetFeatures sets the virtio features that the front end accepted.
func (v *VirtConn) SetFeatures(features uint64) error {
	return v.each(func(w *worker, q *Queue) error {
		q.virt.setFeatures(features)
		for _, r := range q.virt.rings() {
			if r.started() {
				r.set.Features = features
				r.log(q.virt.log)
			}
		}
		return nil
	})
}

// SetMemory replaces the memory of the device and the parts of the rings that are started.
// When it returns the old memory is not used. A ring whose parts do not fit is broken. With
// an error no ring is served any more.
func (v *VirtConn) SetMemory(t *vhostuser.Table, rings []vhostuser.Ring) error {
	v.memory = newVirtMemory(t)
	err := v.each(func(w *worker, q *Queue) error {
		q.virt.memory = v.memory
		for i := range rings {
			if rings[i].Index/2 == q.index {
				w.moveRing(q, rings[i])
			}
		}
		return nil
	})
	if err == nil {
		return nil
	}
	_ = v.each(func(w *worker, q *Queue) error { // a worker that has ended serves nothing
		w.breakPair(q, err)
		return nil
	})
	return err
}

// StartRing serves a ring from its first kick on.
func (v *VirtConn) StartRing(r vhostuser.Ring, t *vhostuser.Table, log *virtqueue.Log) error {
	if v.memory.table != t {
		v.memory = newVirtMemory(t)
	}
	return v.ring(r.Index, func(w *worker, q *Queue) error { return w.startRing(q, r, v.memory, log) })
}

// UpdateRing changes the descriptors of a ring that is started, whether it is enabled, and
// what it records in the log. When it returns the old descriptors are not used.
func (v *VirtConn) UpdateRing(r vhostuser.Ring) error {
	return v.ring(r.Index, func(w *worker, q *Queue) error { return w.updateRing(q, r) })
}

// StopRing ends the use of a ring and returns its base.
func (v *VirtConn) StopRing(index int) (base uint32, err error) {
	err = v.ring(index, func(w *worker, q *Queue) error {
		base, err = w.stopRing(q, q.virt.ring(index))
		return err
	})
	return base, err
}

// SetLog replaces the log of dirty pages; nil ends it. When it returns the old one is not
// used.
func (v *VirtConn) SetLog(l *virtqueue.Log) error {
	return v.each(func(w *worker, q *Queue) error {
		q.virt.log = l
		for _, r := range q.virt.rings() {
			if r.started() {
				r.log(l)
			}
		}
		return nil
	})
}

// SendRARP writes a frame to the first TAP queue, as if the guest had sent it: the
// announcement of a guest that has moved. frame has no vnet header.
func (v *VirtConn) SendRARP(frame []byte) error {
	return v.ring(0, func(w *worker, q *Queue) error {
		_, err := q.tap.Write(append(make([]byte, q.vnetLen), frame...))
		return err
	})
}

// State returns a snapshot of a pair, taken by its worker; after Close, the zero value.
func (v *VirtConn) State(pair int) (s VirtState) {
	err := v.ring(2*pair, func(w *worker, q *Queue) error {
		s = VirtState{
			Rx: q.virt.rx.state(), Tx: q.virt.tx.state(),
			Backlog: q.waiting(), BacklogBytes: q.waitingBytes(),
			Stalled: q.blocked.stalled, RateWaiting: !q.rate.until.IsZero(),
			Uring: w.uring.ring != nil, Worker: w.index,
		}
		return nil
	})
	if err != nil {
		return VirtState{}
	}
	return s
}

// ErrRingIndex: there is no ring of that index.
var ErrRingIndex = errors.New("dataplane: the device has no such ring")

// ring makes the worker of a ring's pair run f.
func (v *VirtConn) ring(index int, f func(*worker, *Queue) error) error {
	if index < 0 || index/2 >= len(v.c.queues) {
		return ErrRingIndex
	}
	return v.on(v.c.queues[index/2], f)
}

// each makes the worker of each pair run f, and returns the first error.
func (v *VirtConn) each(f func(*worker, *Queue) error) (err error) {
	for _, q := range v.c.queues {
		if e := v.on(q, f); err == nil {
			err = e
		}
	}
	return err
}

// on makes the worker of a pair run f, and look at the pair after that.
func (v *VirtConn) on(q *Queue, f func(*worker, *Queue) error) error {
	return q.call(func() error {
		if !q.attached {
			return ErrClosed
		}
		w := q.worker.Load()
		err := f(w, q)
		q.stats.flush(&w.tally)
		w.sched.schedule(q)
		return err
	})
}
