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

// scheduler decides which vif of a worker has the next turn, and how long it may take.
type scheduler struct {
	accounts []*account // one for each vif that has queues here
	ready    []*account // vifs that have work, in the order of their turns
	turns    []*account // vifs of the current round; nil: gone since
	resting  []*account

	last    *account             // vif of the last measured turn that was not costly; nil: gone since
	lastAt  time.Time            // end of that turn
	otherAt time.Time            // end of the last such turn of another vif
	cpu     func() time.Duration // processor time of the thread
	cpuAt   time.Duration        // the same at the start of the turn
}

// open returns the account of a connection with one more queue.
func (s *scheduler) open(c *Conn) *account {
	for _, a := range s.accounts {
		if a.conn == c {
			a.queues++
			return a
		}
	}
	a := &account{conn: c, queues: 1}
	s.accounts = append(s.accounts, a)
	return a
}

// leave takes a queue out of its account, and removes the account with the last one.
func (s *scheduler) leave(q *Queue) {
	a := q.account
	a.ready = without(a.ready, q)
	if a.queues--; a.queues > 0 {
		return
	}
	s.accounts = without(s.accounts, a)
	s.ready = without(s.ready, a)
	s.resting = without(s.resting, a)
	if i := slices.Index(s.turns, a); i >= 0 {
		s.turns[i] = nil // round iterates over the list
	}
	if s.last == a {
		s.last = nil
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
func (s *scheduler) schedule(q *Queue) {
	if q.ready || q.breached {
		return
	}
	q.ready = true
	q.account.ready = append(q.account.ready, q)
	s.list(q.account)
}

// list adds a vif to the next round if it has work and does not rest.
func (s *scheduler) list(a *account) {
	if len(a.ready) > 0 && !a.listed && a.rest.IsZero() {
		a.listed = true
		s.ready = append(s.ready, a)
	}
}

// shared reports whether there are several vifs.
func (s *scheduler) shared() bool { return len(s.accounts) > 1 }

// round gives every vif that has work its turns. Mail is read between any two turns, so
// that it does not wait for the whole round.
func (w *worker) round() {
	w.sched.turns, w.sched.ready = w.sched.ready, w.sched.turns[:0]
	for i := range w.sched.turns {
		w.sched.fetch(i)
		if a := w.sched.turns[i]; a != nil && w.failed == nil {
			w.serveVif(a)
		}
	}
	w.sched.turns = w.sched.turns[:0]
}

// fetch asks for what the turns behind turn i of the round will need.
func (s *scheduler) fetch(i int) {
	if i+2 < len(s.turns) {
		if a := s.turns[i+2]; a != nil && len(a.ready) > 0 {
			a.ready[0].fetchSelf()
		}
	}
	if i+1 < len(s.turns) {
		if a := s.turns[i+1]; a != nil && len(a.ready) > 0 {
			a.ready[0].fetchAhead()
		}
	}
}

// serveVif gives a vif its turns of a round: one for each queue that has work, or fewer,
// by the vif's time, if others share the worker.
func (w *worker) serveVif(a *account) {
	a.listed = false
	a.left = min(a.left+roundPart, roundPart)
	turns := len(a.ready)
	if w.sched.shared() {
		turns = max(turns, turnsPerRound)
	}
	for ; turns > 0 && a.left > 0 && len(a.ready) > 0; turns-- {
		q := a.ready[0]
		a.ready = a.ready[:copy(a.ready, a.ready[1:])]
		q.ready = false
		if w.turn(q) {
			w.sched.schedule(q)
		}
		w.setTimer(q)
		if w.mail.waiting.Load() {
			w.readMail()
		}
		if w.busy >= busyLimit && w.sched.shared() {
			// The turns of one vif must not delay the events of others.
			if w.failed = w.poll(0); w.failed != nil {
				break
			}
		}
	}
	w.sched.list(a)
}

// clockIn returns the time at which the coming turn begins, or the zero time if turns
// are not measured.
func (w *worker) clockIn(q *Queue) time.Time {
	if !w.sched.shared() {
		return time.Time{}
	}
	if q.account.suspect > 0 {
		w.sched.cpuAt = w.sched.cpu()
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
	if d := w.sched.judge(a, start, took, w.tally[TxPackets]+w.tally[RxPackets]); d > 0 {
		w.rest(a, d)
	}
	w.sched.ended(a, w.now)
}

// judge decides whether a vif is costly, from a turn that began at start and took the time
// took for packets packets. It returns the time for which the vif has to pause: a costly
// vif pauses if others were served lately.
func (s *scheduler) judge(a *account, start time.Time, took time.Duration, packets uint32) (rest time.Duration) {
	limit := costlyPacket * time.Duration(max(packets, 1))
	long := took > limit
	if a.suspect == 0 {
		a.costly = false
	} else {
		a.suspect--
		// If not, the thread waited for the processor, or in a copy.
		if long && s.cpu()-s.cpuAt > limit {
			a.costly = true
			if start.Sub(s.otherEnd(a)) < restFor {
				rest = min(restTimes*took, maxRest)
			}
		}
	}
	if long {
		a.suspect = suspectTurns
	}
	return rest
}

// otherEnd returns the end of the last turn of a vif that is not costly, other than a.
func (s *scheduler) otherEnd(a *account) time.Time {
	if s.last == a {
		return s.otherAt
	}
	return s.lastAt
}

// ended records the end of a turn of a vif, unless it is costly.
func (s *scheduler) ended(a *account, at time.Time) {
	if a.costly {
		return
	}
	if s.last != a {
		s.last, s.otherAt = a, s.lastAt
	}
	s.lastAt = at
}

// rest makes a vif rest for d.
func (w *worker) rest(a *account, d time.Duration) {
	a.rest = w.now.Add(d)
	a.left = 0
	w.sched.resting = append(w.sched.resting, a)
	w.timers.alarm = earlier(w.timers.alarm, a.rest)
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
	w.sched.resting = slices.DeleteFunc(w.sched.resting, func(a *account) bool {
		if w.time().Before(a.rest) {
			w.timers.alarm = earlier(w.timers.alarm, a.rest)
			return false
		}
		a.rest = time.Time{}
		w.sched.list(a)
		return true
	})
}
