// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"

	"github.com/netbackd/netbackd/pkg/vhostuser"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// These functions carry out what a front end asks for. They run on the worker's thread,
// between two turns, so no batch is open.

// Errors of rings.
var (
	ErrRingStarted = errors.New("dataplane: the ring is started already")
	ErrRingStopped = errors.New("dataplane: the ring is not started")
)

// startRing serves a ring from its first kick on, or, if it has chains, from now on.
func (w *worker) startRing(q *Queue, set vhostuser.Ring, m *virtMemory, log *virtqueue.Log) error {
	v := q.virt
	r := v.ring(set.Index)
	if r.started() {
		return ErrRingStarted
	}
	if err := r.attach(q, set, set.Base, m); err != nil {
		return err
	}
	v.memory, v.log = m, log
	v.setFeatures(set.Features)
	r.log(log)
	if err := w.watchKick(q, r); err != nil {
		r.detach()
		return err
	}
	w.resume(r)
	q.tapIn.ready = !q.tapIn.gone
	return nil
}

// updateRing changes the descriptors and settings of a ring.
func (w *worker) updateRing(q *Queue, set vhostuser.Ring) error {
	v := q.virt
	r := v.ring(set.Index)
	if !r.started() {
		return ErrRingStopped
	}
	kick := set.Kick != r.set.Kick
	if kick {
		w.unwatchKick(r)
	}
	r.set = set
	v.setFeatures(set.Features)
	r.log(v.log)
	if !set.Enabled {
		w.settleRing(q, r)
	}
	q.tapIn.ready = !q.tapIn.gone
	if kick && r.broken == nil {
		if err := w.watchKick(q, r); err != nil {
			return err
		}
	}
	w.resume(r)
	return nil
}

// moveRing makes a ring go on in other memory, at the same position.
func (w *worker) moveRing(q *Queue, set vhostuser.Ring) {
	r := q.virt.ring(set.Index)
	switch {
	case !r.started():
		return
	case r.broken != nil:
		r.set = set
		return
	}
	if err := r.attach(q, set, r.base(), q.virt.memory); err != nil {
		w.breakRing(q, r, err)
		return
	}
	r.log(q.virt.log)
}

// stopRing ends the use of a ring and returns its base.
func (w *worker) stopRing(q *Queue, r *virtRing) (base uint32, err error) {
	if !r.started() {
		return 0, ErrRingStopped
	}
	base = r.base()
	w.unwatchKick(r)
	r.detach()
	w.settleRing(q, r)
	return base, nil
}

// state returns a snapshot of the ring.
func (r *virtRing) state() VirtRingState {
	if !r.started() {
		return VirtRingState{}
	}
	s := VirtRingState{
		Started: true, Live: r.live, Enabled: r.set.Enabled, Packed: r.set.Packed,
		Size: r.set.Size, Base: r.base(), Err: r.broken,
	}
	if r.broken == nil {
		s.Available = r.available()
	}
	return s
}
