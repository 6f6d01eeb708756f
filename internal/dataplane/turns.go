// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"math"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/xen"
)

// A worker serves guests in rounds, by deficit round robin. In a round each guest that has
// work gets a part of the thread's time, by its weight and regardless of its number of vifs
// and queues there; these take turns. The time of a turn is measured. It includes the host's
// work within the TAP's system calls, such as segmenting a packet for an interface that takes
// no large ones. A guest that took more than its part waits for as many rounds as make up for
// that, while others have work.
//
// A guest that is idle keeps what it did not take, one part at most. If it has work before that
// is used up, it is served between any two turns of others: an answer to a ping does not wait
// for a round of floods. What it takes then counts, and only rounds bring more, so a guest that
// sleeps and bursts gets no more than its part. docs/architecture.md draws it.
//
// One guest alone on a worker is not measured: there is no other to be fair to.
const (
	// roundPart is the time that a guest of weight 1 has in a round: about that of a full
	// tx ring of large packets.
	roundPart = 250 * time.Microsecond

	// turnsPerRound bounds the turns of a guest in a round, for each unit of weight.
	turnsPerRound = 16

	// turnLimit is the time that a turn should take at most. After a longer one the
	// next turn of the queue takes fewer packets.
	turnLimit = 500 * time.Microsecond

	// turnSegments bounds the segments that the host may have to send for one turn.
	// A ring full of packets of 64 KiB has fewer with the MSS of an Ethernet. One
	// packet is taken in any case.
	turnSegments = 1024

	// A guest is costly if each of its packets takes the processor for longer than
	// costlyPacket. Its turns cannot be shorter than one packet. After a turn it rests
	// for restTimes the length of that turn, for maxRest at most, if a guest that is not
	// costly was served within restFor before, or if it has a thread of its own because of
	// that. So it gets an eighth of the time.
	// This also limits the time that other guests take to receive its packets, which
	// is about as long again. Rounds alone do not protect the others: these often
	// wait for an answer, and a costly guest would have a turn during each of these
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

// MaxWeight is the largest weight of a guest. The least is 1.
const MaxWeight = 16

// guestID tells guests apart. Of a device of vhost-user the guest is not known: each counts
// as one.
type guestID struct {
	device *Conn // nil: a domain
	domid  xen.Domid
}

// guest returns the guest of a connection.
func (c *Conn) guest() guestID {
	if c.virt {
		return guestID{device: c}
	}
	return guestID{domid: c.cfg.Domid}
}

// account is the scheduling state of one guest with one worker: the queues that its vifs have
// there, and the time that they may take. It belongs to the worker.
type account struct {
	guest guestID
	vifs  []vifQueues
	part  time.Duration // of a round, by the largest weight of the vifs
	turns int           // bound of its turns in a round
	ready []*Queue      // queues that have work

	listed   bool          // has its turns in this round or the next, or first
	left     time.Duration // remaining part of the round; less than 0: it took more
	paid     uint64        // the last round whose part it has got
	suspect  int           // number of turns for which the processor time is still read
	costly   bool          // its packets took longer than costlyPacket lately
	overruns int           // costly turns beside others; see overrun.go
	rest     time.Time     // end of its rest; zero: it does not rest

	homeAt time.Time // when a slow guest may go back to the others; see lanes.go
}

// vifQueues is a vif and the number of its queues that are attached to the worker.
type vifQueues struct {
	conn   *Conn
	queues int
}

// scheduler decides which guest of a worker has the next turn, and how long it may take.
type scheduler struct {
	accounts []*account // one for each guest that has queues here
	first    []*account // guests that have work and did not use their part, from firstAt on
	firstAt  int
	ready    []*account // the other guests that have work, in the order of their turns
	turns    []*account // guests of the current round; nil: gone since
	resting  []*account
	rounds   uint64

	last    *account             // guest of the last measured turn that was not costly; nil: gone since
	lastAt  time.Time            // end of that turn
	otherAt time.Time            // end of the last such turn of another guest
	cpu     func() time.Duration // processor time of the thread
	cpuAt   time.Duration        // the same at the start of the turn
}

// open returns the account of a connection's guest, with one more queue.
func (s *scheduler) open(c *Conn) *account {
	a := s.find(c.guest())
	if a == nil {
		a = &account{guest: c.guest(), left: roundPart, paid: s.rounds}
		s.accounts = append(s.accounts, a)
	}
	i := slices.IndexFunc(a.vifs, func(v vifQueues) bool { return v.conn == c })
	if i < 0 {
		i = len(a.vifs)
		a.vifs = append(a.vifs, vifQueues{conn: c})
	}
	a.vifs[i].queues++
	a.weigh()
	return a
}

// find returns the account of a guest, or nil.
func (s *scheduler) find(g guestID) *account {
	for _, a := range s.accounts {
		if a.guest == g {
			return a
		}
	}
	return nil
}

// weigh sets the guest's part of a round.
func (a *account) weigh() {
	a.part = roundPart
	for _, v := range a.vifs {
		a.part = max(a.part, roundPart*time.Duration(min(v.conn.weight.Load(), MaxWeight)))
	}
	a.turns = turnsPerRound * int(a.part/roundPart)
}

// leave takes a queue out of its account, and removes the account with the last one.
func (s *scheduler) leave(q *Queue) {
	a := q.account
	a.ready = without(a.ready, q)
	i := slices.IndexFunc(a.vifs, func(v vifQueues) bool { return v.conn == q.conn })
	if a.vifs[i].queues--; a.vifs[i].queues == 0 {
		a.vifs = slices.Delete(a.vifs, i, i+1)
		a.weigh()
	}
	if len(a.vifs) == 0 {
		s.remove(a)
	}
}

// remove removes an account. It may have turns under way, between which another guest's turn was
// relieved: the queues that it had ready are served by another worker by then.
func (s *scheduler) remove(a *account) {
	a.ready = nil
	s.accounts = without(s.accounts, a)
	s.first = append(s.first[:s.firstAt], without(s.first[s.firstAt:], a)...)
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

// list makes a guest that was idle, has work now, and does not rest, wait for its turns: first
// if it has not used its part, else in the next round.
func (s *scheduler) list(a *account) {
	if a.listed || len(a.ready) == 0 || !a.rest.IsZero() {
		return
	}
	a.pay(s.rounds)
	s.enlist(a)
}

// listAgain does the same with a guest that has just had its turns, which did not use its part
// if first is set.
func (s *scheduler) listAgain(a *account, first bool) {
	if len(a.ready) == 0 || !a.rest.IsZero() {
		a.listed = false
	} else if first {
		s.enlist(a)
	} else {
		s.ready = append(s.ready, a)
	}
}

// enlist puts a guest into the list of those that are served first, or of those of the next
// round. Of the former the one with the most time left is in front, as far as a few steps bring
// it there.
func (s *scheduler) enlist(a *account) {
	a.listed = true
	if a.left <= 0 || !s.shared() {
		s.ready = append(s.ready, a)
		return
	}
	s.first = append(s.first, a)
	for i := len(s.first) - 1; i > max(s.firstAt, len(s.first)-16) && s.first[i-1].left < a.left; i-- {
		s.first[i-1], s.first[i] = a, s.first[i-1]
	}
}

// pay gives a guest its parts of the rounds up to and including the given one. It keeps one at
// most.
func (a *account) pay(rounds uint64) {
	if n := rounds - a.paid; n > 0 {
		a.paid = rounds
		a.left = min(a.left+time.Duration(min(n, manyRounds))*a.part, a.part)
	}
}

// manyRounds is more than the rounds that make up for a turn of a minute.
const manyRounds = 1 << 18

// shared reports whether there are several guests.
func (s *scheduler) shared() bool { return len(s.accounts) > 1 }

// waits reports whether a guest waits for its turns.
func (s *scheduler) waits() bool { return len(s.first) > s.firstAt || len(s.ready) > 0 }

// round gives every guest that has work its turns.
func (w *worker) round() {
	s := &w.sched
	w.serveFirst()
	if len(s.ready) == 0 {
		return
	}
	s.rounds++
	s.turns, s.ready = s.ready, s.turns[:0]
	for i := range s.turns {
		s.fetch(s.turns[i:])
		if a := s.turns[i]; a != nil && w.failed == nil {
			a.pay(s.rounds)
			w.serveGuest(a)
		}
	}
	s.turns = s.turns[:0]
}

// serveFirst gives the guests that did not use their parts their turns, one at a time.
func (w *worker) serveFirst() {
	s := &w.sched
	for len(s.first) > s.firstAt && w.failed == nil {
		s.fetch(s.first[s.firstAt:])
		a := s.first[s.firstAt]
		if s.firstAt++; s.firstAt == len(s.first) {
			s.first, s.firstAt = s.first[:0], 0
		}
		w.serveTurn(a)
		s.listAgain(a, true)
	}
}

// fetch asks for what the turns behind the first of the list will need.
func (s *scheduler) fetch(turns []*account) {
	if len(turns) > 2 {
		if a := turns[2]; a != nil && len(a.ready) > 0 {
			a.ready[0].fetchSelf()
		}
	}
	if len(turns) > 1 {
		if a := turns[1]; a != nil && len(a.ready) > 0 {
			a.ready[0].fetchAhead()
		}
	}
}

// serveGuest gives a guest its turns of a round: one for each queue that has work, or fewer,
// by the guest's time, if others share the worker. Between them it serves the guests that did
// not use their parts.
func (w *worker) serveGuest(a *account) {
	turns := len(a.ready)
	if w.sched.shared() {
		turns = max(turns, a.turns)
	}
	for ; turns > 0 && a.left > 0 && len(a.ready) > 0 && w.failed == nil; turns-- {
		w.serveTurn(a)
		w.serveFirst()
	}
	w.sched.listAgain(a, false)
}

// serveTurn gives a guest that has work one turn. Mail is read after it, so that it does not
// wait for the whole round.
func (w *worker) serveTurn(a *account) {
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
		// The turns of one guest must not delay the events of others.
		w.failed = w.poll(0)
	}
}

// clockIn returns the time at which the coming turn begins, or the zero time if turns
// are not measured.
func (w *worker) clockIn(q *Queue) time.Time {
	if !w.sched.shared() && !w.watch.spare {
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
	w.busy += int(took / (roundPart / busyLimit)) // there may be events by now
	switch {
	case segments == 0:
	case took > turnLimit:
		q.mostSegs = max(1, int(int64(segments)*int64(turnLimit)/int64(took)))
	case took < turnLimit/2:
		q.mostSegs = min(2*q.mostSegs, turnSegments)
	}
	a := q.account
	a.left -= took
	if d := w.sched.judge(a, start, took, w.tally[TxPackets]+w.tally[RxPackets], w.watch.spare); d > 0 {
		w.rest(a, d)
		w.noteOverrun(a)
	}
	switch {
	case !a.costly:
		a.overruns = 0
	case w.watch.spare:
		a.homeAt = w.now.Add(probation)
	}
	w.sched.ended(a, w.now)
}

// judge decides whether a guest is costly, from a turn that began at start and took the time
// took for packets packets. It returns the time for which the guest has to pause: a costly
// guest pauses if others were served lately, and always on a spare.
func (s *scheduler) judge(a *account, start time.Time, took time.Duration, packets uint32, spare bool) (rest time.Duration) {
	limit := costlyPacket * time.Duration(max(packets, 1))
	long := took > limit
	if a.suspect == 0 {
		a.costly = false
	} else {
		a.suspect--
		// If not, the thread waited for the processor, or in a copy.
		if long && s.cpu()-s.cpuAt > limit {
			a.costly = true
			if spare || start.Sub(s.otherEnd(a)) < restFor {
				rest = min(restTimes*took, maxRest)
			}
		}
	}
	if long {
		a.suspect = suspectTurns
	}
	return rest
}

// otherEnd returns the end of the last turn of a guest that is not costly, other than a.
func (s *scheduler) otherEnd(a *account) time.Time {
	if s.last == a {
		return s.otherAt
	}
	return s.lastAt
}

// ended records the end of a turn of a guest, unless it is costly.
func (s *scheduler) ended(a *account, at time.Time) {
	if a.costly {
		return
	}
	if s.last != a {
		s.last, s.otherAt = a, s.lastAt
	}
	s.lastAt = at
}

// rest makes a guest rest for d.
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
