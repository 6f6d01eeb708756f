// SPDX-License-Identifier: Apache-2.0

package dataplane

import "github.com/netbackd/netbackd/pkg/gntdev"

// grantCopy makes a grant copy for a queue and reports whether all segments were copied.
// With an error the call as a whole failed, and no segment's status is valid.
func (w *worker) grantCopy(q *Queue, segs []gntdev.Segment) (okay bool, err error) {
	w.tally[GrantOps] += uint32(len(segs))
	w.tally[GrantOwnOps] += ownSegments(segs)
	err = w.copyOnce(q, segs)
	if err == nil && allOkay(segs) {
		return true, nil
	}
	if w.hasOwn() {
		err = w.copyAgain(q, segs, err)
	}
	return err == nil && allOkay(segs), err
}

// copyOnce makes a call for a grant copy.
func (w *worker) copyOnce(q *Queue, segs []gntdev.Segment) error {
	w.tally[GrantCalls]++
	w.tally[Syscalls]++
	slow := w.watch.slow.Load()
	err := q.grants.Copy(segs)
	w.copied(slow)
	return err
}

// copied counts a copy during which the pool found the turn to be slow. slow is the slow turn
// that it had found last before.
func (w *worker) copied(slow uint64) {
	if w.watch.slow.Load() != slow {
		w.tally[SlowCopies]++
	}
}
