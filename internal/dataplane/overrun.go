// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// A costly guest rests beside others, and so takes an eighth of the worker's time. But each of
// its turns delays the others by its whole length. So a guest that is costly again and again
// gets a thread of its own: a slow lane, without a slow turn before it. There it rests as before:
// what it sends costs those who receive it as well, on the workers and on other processors. The
// thread's nice value is higher, so it takes little where processors are scarce. If there are maxLanes
// lanes already, the guest goes to one of these. After the time of probation without a costly
// turn it shares a worker with others again.
//
//	               manyOverruns costly turns
//	worker 3 ------------------------------------> slow lane, nice +10
//	    ^                                              |
//	    '---------- not costly for probation ----------'

const (
	// manyOverruns is the number of costly turns of a guest, with few others between them,
	// after which it leaves its worker.
	manyOverruns = 16

	// laneNice is added to the nice value of a thread for a guest that overruns.
	laneNice = 10
)

// overrun is a guest that leaves its worker.
type overrun struct {
	worker *worker
	guest  guestID
}

// noteOverrun counts a costly turn of a guest beside others.
func (w *worker) noteOverrun(a *account) {
	if a.overruns++; a.overruns%manyOverruns != 0 || w.watch.spare {
		return
	}
	select {
	case w.pool.overruns <- overrun{w, a.guest}:
	default: // later
	}
}

// moveOverruns starts the move of guests that overrun.
func (p *Pool) moveOverruns() {
	for {
		select {
		case o := <-p.overruns:
			if err := p.giveOwnThread(o); err != nil {
				p.warn(fmt.Errorf("%s is held up by %s: %w", o.worker, o.guest, err))
			}
		default:
			return
		}
	}
}

// giveOwnThread makes a guest's worker move it to a slow lane.
func (p *Pool) giveOwnThread(o overrun) error {
	p.mu.Lock()
	lane, full := p.lane(), len(p.spares) >= MaxSpares
	p.mu.Unlock()
	isNew := lane == nil
	if isNew {
		if full {
			return errNoSpare
		}
		var err error
		if lane, err = p.heir(o.worker); err != nil {
			return err
		}
		lane.watch.spare, lane.watch.lane, lane.low = true, true, true
	}
	if !o.worker.post(nil, func(w *worker) { w.sendTo(lane, o.guest) }) && isNew {
		lane.release()
	}
	return nil
}

// sendTo moves a guest to a slow lane, which is started if it is new. It does nothing if the
// guest is not here any more.
func (w *worker) sendTo(lane *worker, g guestID) {
	p := w.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	a, old := w.sched.find(g), slices.Contains(p.spares, lane)
	isNew := !old && !lane.started
	if a == nil || w.watch.spare || !old && !isNew {
		if isNew {
			lane.release()
		}
		return
	}
	if isNew {
		lane.started = true
		lane.mail.heir = w
		p.spares = append(p.spares, lane)
	}
	a.homeAt = w.time().Add(probation)
	w.giveLane(a, lane)
	if isNew {
		p.threads.Go(func() { lane.run(make(chan struct{})) })
	}
	p.note(fmt.Sprintf("%s delays others on %s again and again: it moves to a thread of its own", g, w))
}

// lower gives the calling thread, that of a guest which overruns, a higher nice value.
func (w *worker) lower() {
	w.urge.set = nil
	if w.pool.opts.NoPriority {
		return
	}
	if now, err := threadClass(); err == nil && now.policy == unix.SCHED_NORMAL {
		now.nice = min(now.nice+laneNice, 19)
		_ = now.apply() // the guest takes more than it should
	}
}

// String names a guest.
func (g guestID) String() string {
	if g.device != nil {
		return "the guest of " + g.device.cfg.Name
	}
	return fmt.Sprintf("domain %d", g.domid)
}
