// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"math"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// A worker serves vifs in rounds, by deficit round robin. In a round each vif that has
// work gets the same part of the thread's time, regardless of its number of queues there.
// The time of a turn is measured. It includes the host's work within the TAP's system
// calls, such as segmenting a packet for an interface that takes no large ones. A vif
// that took more than its part waits for as many rounds as make up for that, while others
// have work.
//
// One vif alone on a worker is not measured: there is no other to be fair to.
const (
	// roundPart is the time that a vif has in a round: about that of a full tx ring
	// of large packets.
	roundPart = 250 * time.Microsecond

	// turnsPerRound bounds the turns of a vif in a round.
	turnsPerRound = 16

	// turnLimit is the time that a turn should take at most. After a longer one the
	// next turn of the queue takes fewer packets.
	turnLimit = 500 * time.Microsecond

	// turnSegments bounds the segments that the host may have to send for one turn.
	// A ring full of packets of 64 KiB has fewer with the MSS of an Ethernet. One
	// packet is taken in any case.
	turnSegments = 1024

	// A vif is costly if each of its packets takes the processor for longer than
	// costlyPacket. Its turns cannot be shorter than one packet. After a turn it rests
	// for restTimes the length of that turn, for maxRest at most, if a vif that is not
	// costly was served within restFor before. So it gets an eighth of the time.
	// This also limits the time that other guests take to receive its packets, which
	// is about as long again. Rounds alone do not protect the other vifs: these often
	// wait for an answer, and a costly vif would have a turn during each of these
	// waits.
	costlyPacket = turnLimit
	restTimes    = 7
	restFor      = 100 * time.Millisecond
	maxRest      = 100 * time.Millisecond

	// suspectTurns is the number of turns after a long one for which the thread's
	// processor time is read as well, with two system calls. A turn can take long
	// without using the processor: the thread waited for one, or in a grant copy.
	suspectTurns = 16
)

// account is the scheduling state of one vif with one worker: the queues that the vif has
// there, and the time that they may take. It belongs to the worker.
type account struct {
	conn   *Conn
	queues int      // number of attached queues
	ready  []*Queue // queues that have work

	listed  bool          // has its turns in this round or the next
	left    time.Duration // remaining part of the round; less than 0: it took more
	suspect int           // number of turns for which the processor time is still read
	costly  bool          // its packets took longer than costlyPacket lately
	rest    time.Time     // end of its rest; zero: it does not rest

	homeAt time.Time // when a slow vif may go back to the others; see slowcopy.go
}

// open returns the account of a connection with one more queue.
func (w *worker) open(c *Conn) *account {
	for _, a := range w.accounts {
		if a.conn == c {
			a.queues++
			return a
		}
	}
	a := &account{conn: c, queues: 1}
	w.accounts = append(w.accounts, a)
	return a
}

// leave takes a queue out of its account, and removes the account with the last one.
func (w *worker) leave(q *Queue) {
	a := q.account
	a.ready = without(a.ready, q)
	if a.queues--; a.queues > 0 {
		return
	}
	w.accounts = without(w.accounts, a)
	w.ready = without(w.ready, a)
	w.resting = without(w.resting, a)
	if i := slices.Index(w.turns, a); i >= 0 {
		w.turns[i] = nil // round iterates over the list
	}
	if w.last == a {
		w.last = nil
	}
}

// without removes x from list, in place.
func without[T comparable](list []T, x T) []T {
	if i := slices.Index(list, x); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}

// schedule gives a queue a turn, unless it has one coming or is in breach.
func (w *worker) schedule(q *Queue) {
	if q.ready || q.breached {
		return
	}
	q.ready = true
	q.account.ready = append(q.account.ready, q)
	w.list(q.account)
}

// list adds a vif to the next round if it has work and does not rest.
func (w *worker) list(a *account) {
	if len(a.ready) > 0 && !a.listed && a.rest.IsZero() {
		a.listed = true
		w.ready = append(w.ready, a)
	}
}

// round gives every vif that has work its turns. Mail is read between any two turns, so
// that it does not wait for the whole round.
func (w *worker) round() {
	w.turns, w.ready = w.ready, w.turns[:0]
	for i := range w.turns {
		if a := w.turns[i]; a != nil && w.failed == nil {
			w.serveVif(a)
		}
	}
	w.turns = w.turns[:0]
}

// serveVif gives a vif its turns of a round: one for each queue that has work, or as
// many as there is time for if others share the worker.
func (w *worker) serveVif(a *account) {
	a.listed = false
	a.left = min(a.left+roundPart, roundPart)
	turns := len(a.ready)
	if w.shared() {
		turns = max(turns, turnsPerRound)
	}
	for ; turns > 0 && a.left > 0 && len(a.ready) > 0; turns-- {
		q := a.ready[0]
		a.ready = slices.Delete(a.ready, 0, 1)
		q.ready = false
		if w.turn(q) {
			w.schedule(q)
		}
		w.setTimer(q)
		if w.mail.waiting.Load() {
			w.readMail()
		}
		if w.busy >= busyLimit && w.shared() {
			// The turns of one vif must not delay the events of others.
			if w.failed = w.poll(0); w.failed != nil {
				break
			}
		}
	}
	w.list(a)
}

// shared reports whether the worker serves several vifs.
func (w *worker) shared() bool { return len(w.accounts) > 1 }

// clockIn returns the time at which the coming turn begins, or the zero time if turns
// are not measured.
func (w *worker) clockIn(q *Queue) time.Time {
	if !w.shared() {
		return time.Time{}
	}
	if q.account.suspect > 0 {
		w.cpuAt = w.cpu()
	}
	return w.time()
}

// clockOut charges a queue with a turn that began at start. It runs with the tally
// of the turn still to be flushed.
func (w *worker) clockOut(q *Queue, start time.Time) {
	segments := q.turnSegs
	q.turnSegs = 0
	if start.IsZero() {
		q.mostSegs = turnSegments
		return
	}
	w.now = w.clock()
	took := w.now.Sub(start)
	w.tally[WorkerNS] += uint32(max(0, min(took, math.MaxUint32)))
	if took > roundPart {
		w.busy = busyLimit // there may be events by now
	}
	switch {
	case segments == 0:
	case took > turnLimit:
		q.mostSegs = max(1, int(int64(segments)*int64(turnLimit)/int64(took)))
	case took < turnLimit/2:
		q.mostSegs = min(2*q.mostSegs, turnSegments)
	}
	a := q.account
	a.left -= took
	w.judge(a, start, took, w.tally[TxPackets]+w.tally[RxPackets])
	if a.costly {
		return
	}
	if w.last != a {
		w.last, w.otherAt = a, w.lastAt
	}
	w.lastAt = w.now
}

// judge decides whether a vif is costly, from a turn that began at start and took so long
// for so many packets. A costly vif rests if others were served lately.
func (w *worker) judge(a *account, start time.Time, took time.Duration, packets uint32) {
	limit := costlyPacket * time.Duration(max(packets, 1))
	long := took > limit
	switch {
	case a.suspect == 0:
		a.costly = false
	default:
		a.suspect--
		if !long {
			break
		}
		if w.cpu()-w.cpuAt <= limit {
			break // the thread waited for the processor, or in a copy
		}
		a.costly = true
		other := w.lastAt
		if w.last == a {
			other = w.otherAt
		}
		if start.Sub(other) < restFor {
			w.rest(a, min(restTimes*took, maxRest))
		}
	}
	if long {
		a.suspect = suspectTurns
	}
}

// rest makes a vif rest for d.
func (w *worker) rest(a *account, d time.Duration) {
	a.rest = w.now.Add(d)
	a.left = 0
	w.resting = append(w.resting, a)
	w.alarm = earlier(w.alarm, a.rest)
	w.tally[Rests]++
}

// threadTime returns the processor time of the calling thread, in the kernel and outside
// of it (clock_gettime(2), CLOCK_THREAD_CPUTIME_ID), or 0 if that cannot be read.
func threadTime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// wake ends the rests whose time is over.
func (w *worker) wake() {
	w.resting = slices.DeleteFunc(w.resting, func(a *account) bool {
		if w.time().Before(a.rest) {
			w.alarm = earlier(w.alarm, a.rest)
			return false
		}
		a.rest = time.Time{}
		w.list(a)
		return true
	})
}
