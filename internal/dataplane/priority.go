// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"sync/atomic"
	"time"
)

// Beside a program of this host that sends or receives, a worker on the same processor may
// be switched to and from for every packet: woken by a packet it takes the processor from
// the sender, and a receiver that its write wakes takes the processor from it in the
// middle of a batch. So the scheduling of a worker's thread follows its rates:
//
//	level   class, nice        while
//	normal  SCHED_OTHER, 0     rates are low
//	eager   SCHED_OTHER, -10   most slots are from the guest: a receiver does not interrupt
//	batch   SCHED_BATCH, -10   many slots are to the guest: also, no sender is interrupted
//
// (Where the monitor of Go's scheduler wakes up all the time, that takes the processor from
// the sender instead. Held waits keep it asleep.)
//
// Batch costs latency if a program computes on the same processor: a woken thread of that
// class waits for the next tick. So it is for wake-ups that bring several slots each, and
// that did not wait long. And a worker that a guest keeps busy must leave other programs, among
// them the receiver of its packets, their share, whatever pauses the guest makes: at these levels
// the thread may use three quarters of a processor, and must sleep for a tenth of the time. A
// worker whose wake-ups are others, as in an exchange of requests and answers, or that is busier,
// stays normal for a time that doubles with each attempt, until it has behaved for ten times as
// long.
//
//	         rate >= riseRate, and not barred
//	normal -----------------------------------> eager or batch <--> the other one
//	  ^                                               |
//	  |   rate < fallRate, or idle for idleWait       |
//	  +<----------------------------------------------+
//	  |   fewer than worthSlots per wake-up, or batch and waits of more than longWait per
//	  |   wake-up and longSlotWait per slot for the processor, or too busy in longRun:
//	  |   barred for 100 ms, then 200 ms, ... 10 s
//	  +<----------------------------------------------'
//
// Rates are computed each time a number of wake-ups or of slots is reached. Only then the
// clock is read: where the vDSO cannot read Xen's clock it is a system call.
const (
	normalWakes, normalSlots = 32, 64  // between two looks at the rate
	raisedWakes, raisedSlots = 16, 512 // the same at the other levels

	riseRate = 8000 // slots per second
	fallRate = 4000

	worthSlots = 4

	// longWait is less than the average wait for a tick of 4 ms. A wait for the sender is
	// as long at times, but has more slots.
	longWait     = 1500 * time.Microsecond
	longSlotWait = 20 * time.Microsecond

	// longRun is the time over which the thread's use of a processor is looked at.
	longRun = 100 * time.Millisecond

	// manyToGuest: so many slots to the guest, of all, in manyOf are many.
	manyToGuest, manyOf = 1, 4

	// idleWait is the time without events after which a worker is normal again. The rate
	// before a longer pause says nothing.
	idleWait = 10 * time.Millisecond
	mostWait = int(idleWait / time.Millisecond)

	// A worker that was barred behaves for goodTimes the time for which it was, until the
	// next bar is the first one again.
	firstBar, lastBar = 100 * time.Millisecond, 10 * time.Second
	goodTimes         = 10
)

// level is a level of scheduling.
type level uint32

const (
	levelNormal level = iota
	levelEager
	levelBatch
	levels
)

// urgency decides the level of one worker's thread, to which it belongs.
type urgency struct {
	set func(level) // changes the thread; nil: it stays as it is
	// times returns for how long the thread has run, and has waited for a processor, so far.
	times func() (ran, waited time.Duration)
	level atomic.Uint32 // written by the worker only

	wakes, tx, rx uint32        // since at; slots from and to the guest
	at            time.Time     // of the last look
	since         time.Time     // the last look at the use of a processor
	ran, ready    time.Duration // until then: run, run or waited
	delay         time.Duration // waited until the last look
	barred        time.Time     // normal until then
	bar           time.Duration
}

// woke counts a poll of the worker for up to timeout milliseconds, which brought events or
// not, and changes the level if it is due.
func (u *urgency) woke(some bool, timeout int, clock func() time.Time) {
	if u.set == nil {
		return
	}
	if timeout != 0 {
		u.wakes++
	}
	if u.now() == levelNormal {
		if u.wakes >= normalWakes || u.tx+u.rx >= normalSlots {
			u.look(clock())
		}
		return
	}
	switch {
	case !some && timeout >= mostWait:
		u.change(levelNormal)
		u.wakes, u.tx, u.rx = 0, 0, 0
	case u.wakes >= raisedWakes || u.tx+u.rx >= raisedSlots:
		u.look(clock())
	}
}

// now returns the present level.
func (u *urgency) now() level { return level(u.level.Load()) }

// look computes the rate of slots since the last look and changes the level accordingly.
func (u *urgency) look(now time.Time) {
	took, wakes, slots, to := now.Sub(u.at), u.wakes, u.tx+u.rx, levelEager
	if manyOf*u.rx >= manyToGuest*slots {
		to = levelBatch
	}
	u.at, u.wakes, u.tx, u.rx = now, 0, 0, 0
	if u.now() == levelNormal {
		if rate(slots, took) >= riseRate && !now.Before(u.barred) {
			u.note(now)
			u.change(to)
		}
		return
	}
	late := u.now() == levelBatch && tooLate(u.waited(), wakes, slots)
	switch {
	case late, slots < worthSlots*wakes, u.tooBusy(now):
		u.bar = min(max(2*u.bar, firstBar), lastBar)
		u.barred = now.Add(u.bar)
		u.change(levelNormal)
	case rate(slots, took) < fallRate:
		u.change(levelNormal)
	default:
		if now.Sub(u.barred) > goodTimes*u.bar {
			u.bar = 0
		}
		u.change(to)
	}
}

// tooLate reports whether wake-ups that brought slots slots waited for a program that
// computes.
func tooLate(waited time.Duration, wakes, slots uint32) bool {
	return wakes > 0 && waited > time.Duration(wakes)*longWait && waited > time.Duration(slots)*longSlotWait
}

// tooBusy reports whether the thread leaves other programs too little. It looks at what
// happened since the last look of this kind, or since the level was raised, if that is longer
// than longRun.
func (u *urgency) tooBusy(now time.Time) bool {
	took := now.Sub(u.since)
	if took < longRun {
		return false
	}
	ran, ready := u.ran, u.ready
	u.note(now)
	return u.ran-ran > took*3/4 || u.ready-ready > took*9/10
}

// note reads for how long the thread has run, and has been ready to run.
func (u *urgency) note(now time.Time) {
	ran, waited := u.times()
	u.since, u.ran, u.ready = now, ran, ran+waited
}

// rate returns n per second.
func rate(n uint32, in time.Duration) int64 {
	return int64(n) * int64(time.Second) / max(int64(in), 1)
}

// waited returns the time that the thread has waited for a processor since the last call.
func (u *urgency) waited() time.Duration {
	before := u.delay
	_, u.delay = u.times()
	return u.delay - before
}

// change gives the thread another level, if it is one.
func (u *urgency) change(to level) {
	if to == u.now() {
		return
	}
	if to == levelBatch {
		u.waited() // the next time counts from now
	}
	u.level.Store(uint32(to))
	u.set(to)
}

// patience returns the time for which the worker waits at most, in milliseconds, instead
// of timeout, which is negative for no limit: one that is not normal must notice that it
// is idle.
func (u *urgency) patience(timeout int) int {
	if u.now() != levelNormal && (timeout < 0 || timeout > mostWait) {
		return mostWait
	}
	return timeout
}
