// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"sync/atomic"
	"time"
)

// Beside a program of this host that sends or receives, a worker on the same processor may
// be switched to and from for every packet: woken by a packet it takes the processor from
// the sender, and a receiver that its write wakes takes the processor from it in the
// middle of a batch. So while its rates are high a worker's thread is in the class
// SCHED_BATCH, from which a wake-up takes the processor from no other program, and has a
// low nice value, so that none is taken from it soon. (Where the monitor of Go's scheduler
// wakes up all the time, that takes the processor from the sender instead. Held waits keep
// it asleep.)
//
// That costs latency if a program computes on the same processor: a woken thread of that
// class waits for the next tick. So it is for high rates only, and for wake-ups that bring
// several slots each. A worker whose wake-ups do not, as in an exchange of requests and
// answers, is barred from it for a time that doubles with each attempt.
//
//	          rate >= riseRate, and not barred
//	normal ------------------------------------> raised
//	  ^                                            |
//	  |   rate < fallRate, or idle for idleWait    |
//	  +<-------------------------------------------+
//	  |   fewer than worthSlots per wake-up: barred for 100 ms, then 200 ms, ... 10 s
//	  +<-------------------------------------------'
//
// Rates are computed each time a number of wake-ups or of slots is reached. Only then the
// clock is read: where the vDSO cannot read Xen's clock it is a system call.
const (
	normalWakes, normalSlots = 32, 64  // between two looks at the rate
	raisedWakes, raisedSlots = 16, 512 // the same while raised

	riseRate = 8000 // slots per second
	fallRate = 4000

	worthSlots = 4

	// idleWait is the time without events after which a raised worker is normal again.
	// The rate before a longer pause says nothing.
	idleWait = 10 * time.Millisecond
	mostWait = int(idleWait / time.Millisecond)

	firstBar, lastBar = 100 * time.Millisecond, 10 * time.Second
)

// urgency decides the scheduling class of one worker's thread, to which it belongs.
type urgency struct {
	set    func(raised bool) // changes the class; nil: it stays as it is
	raised atomic.Bool       // written by the worker only

	wakes, slots uint32    // since at
	at           time.Time // of the last look
	barred       time.Time // not raised before
	bar          time.Duration
}

// woke counts a poll of the worker for up to timeout milliseconds, which brought events or
// not, and changes the class if it is due.
func (u *urgency) woke(some bool, timeout int, clock func() time.Time) {
	if u.set == nil {
		return
	}
	if timeout != 0 {
		u.wakes++
	}
	if u.raised.Load() {
		switch {
		case !some && timeout >= mostWait:
			u.change(false)
			u.wakes, u.slots = 0, 0
		case u.wakes >= raisedWakes || u.slots >= raisedSlots:
			u.look(clock())
		}
	} else if u.wakes >= normalWakes || u.slots >= normalSlots {
		u.look(clock())
	}
}

// look computes the rate of slots since the last look and changes the class accordingly.
func (u *urgency) look(now time.Time) {
	took := now.Sub(u.at)
	wakes, slots := u.wakes, u.slots
	u.at, u.wakes, u.slots = now, 0, 0
	if u.raised.Load() {
		switch {
		case slots < worthSlots*wakes:
			u.bar = min(max(2*u.bar, firstBar), lastBar)
			u.barred = now.Add(u.bar)
			u.change(false)
		case rate(slots, took) < fallRate:
			u.change(false)
		default:
			u.bar = 0
		}
		return
	}
	if rate(slots, took) >= riseRate && !now.Before(u.barred) {
		u.change(true)
	}
}

// rate returns n per second.
func rate(n uint32, in time.Duration) int64 {
	return int64(n) * int64(time.Second) / max(int64(in), 1)
}

// change makes the thread raised or normal.
func (u *urgency) change(raised bool) {
	u.raised.Store(raised)
	u.set(raised)
}

// patience returns the time for which the worker waits at most, in milliseconds, instead
// of timeout, which is negative for no limit: a raised worker must notice that it is idle.
func (u *urgency) patience(timeout int) int {
	if u.raised.Load() && (timeout < 0 || timeout > mostWait) {
		return mostWait
	}
	return timeout
}
