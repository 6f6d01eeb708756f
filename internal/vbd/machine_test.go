// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/netbackd/netbackd/pkg/xenbus"
)

var (
	allOwn   = []xenbus.State{xenbus.Initialising, xenbus.InitWait, xenbus.Connected, xenbus.Closing, xenbus.Closed}
	allFront = []xenbus.State{xenbus.Unknown, xenbus.Initialising, xenbus.InitWait, xenbus.Initialised, xenbus.Connected, xenbus.Closing, xenbus.Closed, xenbus.Reconfiguring, xenbus.Reconfigured}
)

// situations calls f with every combination.
func situations(f func(situation)) {
	for _, own := range allOwn {
		for _, front := range allFront {
			for _, node := range allFront {
				for conn := range connEnding + 1 {
					for disk := range diskFailed + 1 {
						for detach := range detachForced + 1 {
							for block := range blockQuarantined + 1 {
								for bits := range 1 << 4 {
									bit := func(i int) bool { return bits>>i&1 != 0 }
									f(situation{
										own: own, front: front, node: node,
										conn: conn, disk: disk, detach: detach, block: block,
										online: bit(0), plugged: bit(1), resized: bit(2), served: bit(3),
									})
								}
							}
						}
					}
				}
			}
		}
	}
}

// possible reports whether the parts of a situation do not contradict each other.
func (s situation) possible() bool {
	switch {
	case s.detach != detachNone && s.online,
		// checkDetach begins a detach as soon as it sees one.
		s.detach == detachNone && !s.online && (s.node == xenbus.Closing || s.own == xenbus.Closing),
		(s.conn == connLive || s.conn == connStale) && s.own != xenbus.InitWait && s.own != xenbus.Connected && s.own != xenbus.Closing,
		(s.conn == connLive || s.conn == connStale) && s.disk != diskOpen,
		s.resized && s.disk != diskOpen,
		s.served && (s.conn != connNone || s.own != xenbus.Connected && s.own != xenbus.Closing),
		s.node == xenbus.Initialising && s.own != xenbus.Initialising, // the toolstack has made it again
		s.own == xenbus.Initialising && s.node != xenbus.Initialising && s.node != xenbus.Unknown && !(s.detach != detachNone && s.node == xenbus.Closing),
		s.block == blockQuarantined && (s.conn == connLive || s.conn == connStale):
		return false
	}
	return true
}

// legal maps a state to those that may follow it; machine.go draws them.
var legal = map[xenbus.State][]xenbus.State{
	xenbus.Initialising: {xenbus.InitWait, xenbus.Closed},
	xenbus.InitWait:     {xenbus.Connected, xenbus.Closing},
	xenbus.Connected:    {xenbus.Closing},
	xenbus.Closing:      {xenbus.Closed},
	xenbus.Closed:       {xenbus.InitWait, xenbus.Closing},
}

// shown returns the state that a step shows, if it shows one.
func shownBy(s step) (xenbus.State, bool) {
	for state, st := range shows {
		if st == s {
			return state, true
		}
	}
	return xenbus.Unknown, false
}

// TestPlanInvariants checks what must hold in every situation.
func TestPlanInvariants(t *testing.T) {
	n, faults := 0, 0
	situations(func(s situation) {
		steps := plan(s) // also of impossible situations: it must not panic
		if !s.possible() || faults > 20 {
			return
		}
		n++
		if fault := judge(s, steps); fault != "" {
			faults++
			t.Errorf("%+v: %v: %s", s, steps, fault)
		}
	})
	t.Logf("%d situations", n)
}

// judge follows the steps and returns a description of the first fault, or "".
func judge(s situation, steps []step) string {
	j := judgement{s: s, went: s.own, node: s.node, live: s.conn == connLive || s.conn == connStale, disk: s.disk}
	for i, st := range steps {
		if fault := j.follow(st, i+1 == len(steps)); fault != "" {
			return fault
		}
	}
	if s.conn == connEnding || j.ending {
		return "" // the rest is planned when it has ended
	}
	return j.end(steps)
}

// judgement is the situation after some steps.
type judgement struct {
	s                situation
	went, node       xenbus.State
	live             bool
	disk             diskPhase
	ending, released bool
}

func (j *judgement) follow(st step, last bool) string {
	s := j.s
	if s.conn == connEnding || j.ending {
		return "does something before the connection has ended"
	}
	if state, ok := shownBy(st); ok {
		switch {
		case state != j.went && !slices.Contains(legal[j.went], state) && s.detach == detachNone:
			return fmt.Sprintf("%v after %v", state, j.went)
		case state == xenbus.Connected && (!j.live || j.disk != diskOpen):
			return "Connected without a disk and a connection"
		case state == xenbus.Connected && j.went != state && !s.online:
			return "Connected although the toolstack wants it gone"
		case state == j.node && state == j.went && state != xenbus.Connected:
			return "shows what is shown"
		case state == xenbus.Closed && j.live, state == xenbus.InitWait && j.live && j.went != state:
			return fmt.Sprintf("%v with the guest's rings mapped", state)
		case (state == xenbus.InitWait || state == xenbus.Connected) && s.block == blockRefused && state != j.went:
			return "tries again what was refused"
		case state == xenbus.InitWait && !s.online && j.went != state:
			return "goes up although the toolstack wants it gone"
		case j.released && state != xenbus.Closed && state != xenbus.Closing:
			return "goes on after release"
		case state == xenbus.Closed && (!s.online || s.front == xenbus.Unknown) && !j.released:
			return "Closed with the lock of the disk"
		}
		j.node, j.went = state, state
		return ""
	}
	switch st {
	case stepOpen:
		if j.disk != diskNone || !s.plugged {
			return "opens a disk that is open, or not ready"
		}
		j.disk = diskOpening
	case stepConnect:
		switch {
		case j.live || j.disk != diskOpen:
			return "connects twice, or without a disk"
		case s.block != blockNone:
			return "connects although it is blocked"
		case !hasKeys(s.front):
			return "connects to a frontend without rings"
		case s.front == xenbus.Closing && !s.served:
			return "connects to a frontend that closes"
		case j.went != xenbus.InitWait && j.went != xenbus.Connected && j.went != xenbus.Closing:
			return fmt.Sprintf("connects in %v", j.went)
		case j.went == xenbus.InitWait && !s.online:
			return "connects although the toolstack wants it gone"
		}
		j.live = true
	case stepDisconnect:
		if !j.live {
			return "disconnects twice"
		}
		j.live, j.ending = false, true
	case stepRelease:
		if j.live || j.released || s.front != xenbus.Unknown && s.online {
			return "releases a disk that is in use or wanted, or twice"
		}
		j.released = true
	case stepGrace:
		if s.detach != detachGrace {
			return "waits for nothing"
		}
	case stepUnexpected:
		if hasKeys(s.front) || s.front == xenbus.Unknown || s.front == xenbus.Initialising || s.front == xenbus.Closed || s.block == blockRefused {
			return "complains about a usual state, or twice"
		}
	}
	return ""
}

// end checks the state in which the steps have ended.
func (j *judgement) end(steps []step) string {
	s := j.s
	switch {
	case slices.Contains(steps, stepUnexpected):
	case s.detach == detachForced && s.front != xenbus.Closing, s.front == xenbus.Unknown && s.detach == detachNone:
		if j.went != xenbus.Closed || j.node != xenbus.Closed || !j.released {
			return "does not end"
		}
	case s.detach != detachNone:
		if !j.released && !slices.Contains(steps, stepGrace) && j.went != xenbus.Closing {
			return "neither ends nor waits"
		}
	case s.front == xenbus.Closed && j.went != xenbus.Closed:
		return "is not Closed with its frontend"
	case s.front == xenbus.Closing && !s.online && s.own == xenbus.Closed:
		// the device goes, whether or not the guest closes
	case s.front == xenbus.Closing && j.went != xenbus.Closing:
		return "is not Closing with its frontend"
	case s.front == xenbus.Initialising && s.online && s.block != blockRefused && j.went != xenbus.InitWait:
		return "leaves a new frontend waiting"
	case s.front == xenbus.Initialising && j.live:
		return "keeps rings that a new frontend does not have"
	case (s.front == xenbus.Connected || s.front == xenbus.Initialised) && s.online && s.disk == diskOpen && s.block == blockNone && (j.went != xenbus.Connected || !j.live):
		return "leaves a connected frontend waiting"
	case s.front == xenbus.Initialised && s.conn == connNone && j.live && j.went == xenbus.Connected && !slices.Contains(steps, stepConnected):
		return "does not tell a waiting frontend"
	case s.front == xenbus.Initialising && s.online && s.plugged && s.block != blockRefused && j.disk == diskNone:
		return "leaves the disk closed"
	case s.block == blockRefused && j.went != xenbus.Closed && s.front != xenbus.Closing:
		return "stays up although it was refused"
	case s.resized && s.online && j.live && j.went == xenbus.Connected && s.front == xenbus.Connected && !slices.Contains(steps, stepConnected):
		return "does not tell the new size"
	case j.node == xenbus.Unknown && j.went != xenbus.Initialising && !(j.went == xenbus.Connected && !j.live):
		return "shows no state"
	}
	return ""
}

// after returns the situation after the steps, when all that they began has ended. ok is
// false if the frontend has to act.
func (s situation) after(steps []step) (_ situation, ok bool) {
	for _, st := range steps {
		if state, is := shownBy(st); is {
			s.own, s.node = state, state
		}
		switch st {
		case stepOpen:
			s.disk = diskOpen
		case stepConnect:
			s.conn, s.served = connLive, false
		case stepConnected:
			s.resized = false
		case stepDisconnect:
			s.conn, s.served = connNone, false
		case stepRelease:
			s.disk, s.served, s.resized = diskNone, false, false
		case stepUnexpected:
			return s, false
		}
	}
	return s, true
}

// TestPlanComesToRest: after the steps of a few plans nothing is left to do. Otherwise the
// vbd would keep itself busy.
func TestPlanComesToRest(t *testing.T) {
	faults := 0
	situations(func(s situation) {
		if !s.possible() || faults > 20 || s.conn == connEnding {
			return
		}
		first, steps := s, plan(s)
		for range 4 {
			after, ok := s.after(steps)
			if !ok {
				return
			}
			if s = after; !s.online && s.detach == detachNone && s.own == xenbus.Closing {
				s.detach = detachGrace // see checkDetach
			}
			// Release is repeated and finds nothing to do. So is the alarm.
			steps = slices.DeleteFunc(plan(s), func(st step) bool { return st == stepRelease || st == stepGrace })
			if len(steps) == 0 {
				return
			}
		}
		faults++
		t.Errorf("%+v: does not rest: now %+v: %v", first, s, steps)
	})
}

// TestPlanForced: a device whose time is over is Closed with the next plans, unless its
// frontend says that it is in use.
func TestPlanForced(t *testing.T) {
	situations(func(s situation) {
		if !s.possible() || s.detach != detachForced || s.front == xenbus.Closing || s.conn == connEnding {
			return
		}
		first := s
		for range 2 {
			s, _ = s.after(plan(s))
		}
		if s.own != xenbus.Closed || s.node != xenbus.Closed || s.conn != connNone || s.disk != diskNone {
			t.Errorf("%+v: ends as %+v", first, s)
		}
	})
}

// TestPlanModel plays a random frontend and toolstack against the plans, as far as they
// would come. After any such events, a frontend that follows the protocol gets its disk if
// the toolstack wants it, and a toolstack that detaches gets Closed.
func TestPlanModel(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := situation{own: xenbus.Initialising, node: xenbus.Initialising, front: xenbus.Initialising, online: true}
		settle := func() {
			for range 8 {
				if s.detach == detachNone && !s.online && (s.node == xenbus.Closing || s.own == xenbus.Closing) {
					s.detach = detachGrace
				}
				steps := plan(s)
				next, usual := s.after(steps)
				if fault := judge(s, steps); fault != "" {
					t.Fatalf("seed %d: %+v: %v: %s", seed, s, steps, fault)
				}
				if !usual {
					next.block = blockRefused
				}
				if next == s {
					return
				}
				s = next
			}
			t.Fatalf("seed %d: no rest in %+v", seed, s)
		}
		for range r.IntN(12) {
			was := s.front
			switch r.IntN(10) {
			case 0:
				s.plugged = true
			case 1:
				s.block = blockNone
			case 2:
				if s.conn == connLive {
					s.conn = connStale
				}
			case 3:
				s.resized = s.disk == diskOpen
			case 4: // a restart
				s.served = s.conn == connLive && s.own != xenbus.InitWait
				s.conn, s.disk, s.resized = connNone, diskNone, false
			default:
				s.front = allFront[1+r.IntN(len(allFront)-1)]
			}
			if s.front != was && s.block != blockQuarantined {
				s.block = blockNone
			}
			if r.IntN(10) == 0 && s.conn == connLive {
				s.conn, s.block = connNone, blockQuarantined
			}
			if !hasKeys(s.front) {
				s.block = blockNone
			}
			settle()
		}
		if s.own == xenbus.Initialising && s.front == xenbus.Unknown {
			continue
		}
		if r.IntN(2) == 0 {
			s.plugged = true
			for _, f := range []xenbus.State{xenbus.Closing, xenbus.Closed, xenbus.Initialising, xenbus.Initialised, xenbus.Connected} {
				s.front, s.block = f, blockNone
				settle()
			}
			if s.own != xenbus.Connected || s.conn != connLive {
				t.Fatalf("seed %d: not served: %+v", seed, s)
			}
			continue
		}
		if s.own == xenbus.Closed {
			s.online = false
		} else {
			s.online, s.node = false, xenbus.Closing
		}
		settle()
		if s.front = xenbus.Closed; r.IntN(2) == 0 {
			s.detach = detachForced
			s.front = xenbus.Unknown
		}
		settle()
		if s.own != xenbus.Closed || s.conn != connNone || s.disk != diskNone {
			t.Fatalf("seed %d: not gone: %+v", seed, s)
		}
	}
}
