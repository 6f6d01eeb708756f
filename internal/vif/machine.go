// SPDX-License-Identifier: Apache-2.0

package vif

import "github.com/netbackd/netbackd/pkg/xenbus"

// situation is all that decides what a vif does next.
type situation struct {
	own   xenbus.State // where the vif is, whatever its node says: Initialising, InitWait, Connected, Closing or Closed
	front xenbus.State // where the frontend is; Unknown if its directory or its domain is gone

	online      bool // the toolstack wants the device to be
	detach      bool // it has asked for the device to go
	forced      bool // and the frontend has had its time
	connected   bool // rings are mapped
	stale       bool // to other rings than the frontend names now
	plugged     bool // the hotplug script is through, or there is none
	live        bool // packets pass
	refused     bool // just this has been tried in vain
	quarantined bool // these rings are not to be touched
	bare        bool // InitWait, but no TAP: a predecessor's work, or the TAP was deleted
	claimed     bool // another back end has served these rings until now
	unsaid      bool // it reconfigures, and may not have said yet what

	// node holds the state that the vif's node shows, or Unknown if that is none. It is
	// not own after the answer to Reconfiguring, when the toolstack detaches, and when
	// a stranger has written there.
	node xenbus.State
}

// step is one thing to do. Steps are done in order, until one fails.
type step uint8

const (
	stepPublish      step = iota + 1 // make the TAP and write the features
	stepTap                          // make the TAP of a vif that was claimed
	stepConnect                      // map rings, bind channels, start the data path
	stepDisconnect                   // the inverse
	stepPlug                         // let packets pass: carrier on
	stepInitWait                     // show InitWait
	stepConnected                    // show Connected
	stepClosing                      // show Closing
	stepClosed                       // show Closed
	stepReconfigured                 // answer Reconfiguring
	stepDetaching                    // show the toolstack's Closing again
	stepAwaitKey                     // look again when the frontend has had time to write its key
	stepUnregister                   // remove the TAP; the device is gone
	stepGrace                        // look again when the frontend's time is up
	stepUnexpected                   // say that no frontend goes where this one is
)

var stepNames = [...]string{
	"none", "publish", "tap", "connect", "disconnect", "plug", "init-wait", "connected",
	"closing", "closed", "reconfigured", "detaching", "await-key", "unregister", "grace", "unexpected",
}

func (s step) String() string { return stepNames[s] }

// shows is the step that shows a state.
var shows = map[xenbus.State]step{
	xenbus.InitWait: stepInitWait, xenbus.Connected: stepConnected, xenbus.Closing: stepClosing, xenbus.Closed: stepClosed,
}

// plan is the state machine. It takes the shortest way to where the frontend
// and the toolstack say the vif should be, and shows only states that may
// follow one another. They are xen-netback's:
//
//	Initialising → InitWait, Closed
//	InitWait     → Connected, Closing
//	Connected    → Closing
//	Closing      → Closed
//	Closed       → InitWait, Closing
//
// Reconfigured may follow any but Initialising. It changes nothing else: the vif
// stays where it is, and its node shows that again when the frontend goes on.
//
// What comes of every combination is in docs/states.md.
func plan(s situation) []step {
	p := planner{situation: s}
	switch {
	case s.detach:
		p.detached()
	case !s.online && s.own == xenbus.Closed:
		p.remove()
	default:
		p.follow()
		p.restate()
	}
	return p.steps
}

// planner is a situation as it will be after the steps planned so far.
type planner struct {
	situation
	steps []step
}

func (p *planner) add(s step) { p.steps = append(p.steps, s) }

func (p *planner) show(s xenbus.State) {
	p.own, p.node = s, s
	p.add(shows[s])
}

// follow goes where the frontend is.
func (p *planner) follow() {
	switch p.front {
	case xenbus.Unknown, xenbus.Closing, xenbus.Closed:
	default:
		if p.refused {
			p.down(xenbus.Closed)
			p.answer()
			return
		}
	}
	switch p.front {
	case xenbus.Initialising:
		// Also how a crashed or resumed guest comes back without a word: from
		// Connected straight to Initialising.
		p.disconnect()
		if p.own == xenbus.Connected || p.own == xenbus.Closing {
			p.down(xenbus.Closed)
		}
		p.raise()
	case xenbus.Initialised:
		// No frontend of a vif need go there, and xen-netback does nothing about
		// one that does. It waits for us as one in Initialising, but rings that
		// are served stay.
		if p.own == xenbus.Closing {
			p.down(xenbus.Closed)
		}
		p.raise()
	case xenbus.Connected:
		if p.own == xenbus.Closing {
			p.down(xenbus.Closed)
		}
		if p.own == xenbus.Connected || p.raise() {
			p.connect()
		}
	case xenbus.Closing:
		p.down(xenbus.Closing)
	case xenbus.Closed:
		p.down(xenbus.Closed)
		if !p.online {
			p.remove()
		}
	case xenbus.Unknown:
		p.down(xenbus.Closed)
		p.remove()
	case xenbus.Reconfiguring:
		if p.own == xenbus.Connected {
			p.connect()
		} else if p.own == xenbus.Initialising || p.bare {
			p.raise()
		}
		p.answer()
	default:
		p.add(stepUnexpected)
	}
}

// answer answers Reconfiguring, whatever state the vif is in, as xen-netback does:
// netfront waits for it without limit, with the lock on all its network settings
// (rtnl) held, and then goes on with the rings it has.
func (p *planner) answer() {
	if p.front != xenbus.Reconfiguring || p.node == xenbus.Reconfigured {
		return
	}
	if p.own == xenbus.Initialising || p.own == xenbus.Closed && !p.online {
		return // there is no device yet, or no more
	}
	if p.unsaid && p.own == xenbus.Connected {
		p.add(stepAwaitKey)
		return
	}
	p.node = xenbus.Reconfigured
	p.add(stepReconfigured)
}

// restate shows once more where the vif is if the node shows something else: the
// answer to a frontend that has gone on, or what a stranger wrote. The frontend
// may be waiting for it.
func (p *planner) restate() {
	switch {
	case p.node == p.own, p.own == xenbus.Initialising:
		return
	case p.node == xenbus.Reconfigured && (p.front == xenbus.Reconfiguring || p.own == xenbus.Connected):
		return // the answer stands; xen-netback leaves it, too
	case p.own == xenbus.Closing && p.node == xenbus.Closed:
		return // where it is going
	case p.own == xenbus.InitWait && (p.front == xenbus.Initialising || p.front == xenbus.Initialised):
		// It waits for InitWait, and would not come.
	case p.own == xenbus.InitWait || p.own == xenbus.Connected:
		if p.node == xenbus.Closing || p.node == xenbus.Closed {
			return // the frontend has seen it, and is followed where it goes
		}
	}
	p.node = p.own
	p.add(shows[p.own])
}

// remove removes a device that is Closed.
func (p *planner) remove() {
	if p.own != xenbus.Closed || p.node != xenbus.Closed {
		p.show(xenbus.Closed)
	}
	p.add(stepUnregister)
}

// raise goes up to InitWait and reports whether the vif is there.
func (p *planner) raise() bool {
	if p.own == xenbus.Initialising || p.own == xenbus.Closed {
		if !p.online {
			return false
		}
		p.add(stepPublish)
		p.show(xenbus.InitWait)
		p.bare = false
	}
	if p.own == xenbus.InitWait && p.bare && p.online {
		p.add(stepPublish)
		p.bare = false
	}
	return p.own == xenbus.InitWait
}

// connect goes from InitWait to Connected, as far as that can be done now. From
// Connected it makes sure that the rings are those of the frontend: a daemon
// that has just started has none, and states in between may have been missed.
func (p *planner) connect() {
	if p.stale {
		p.disconnect()
	}
	if p.own == xenbus.InitWait && !p.online {
		return
	}
	if !p.connected {
		if p.quarantined {
			return
		}
		if p.own == xenbus.Connected && p.claimed && !p.plugged {
			// The guest sends as it did a moment ago. Until the TAP is in its
			// place on the host, packets would be lost; in the rings they wait.
			p.add(stepTap)
			return
		}
		p.add(stepConnect)
	}
	if !p.plugged {
		return
	}
	if !p.live {
		p.add(stepPlug)
	}
	if p.own == xenbus.InitWait {
		p.show(xenbus.Connected)
	}
}

func (p *planner) disconnect() {
	if p.connected {
		p.add(stepDisconnect)
		p.connected, p.live = false, false
	}
}

// down goes to Closing or Closed.
func (p *planner) down(to xenbus.State) {
	p.disconnect()
	switch p.own {
	case xenbus.InitWait, xenbus.Connected:
		p.show(xenbus.Closing)
	case xenbus.Initialising:
		p.show(xenbus.Closed)
	}
	if p.own != to {
		p.show(to)
	}
}

// detached closes the device because the toolstack says so, which has written
// Closing into our node. A frontend that is alive is followed through its own
// Closing and Closed, because a guest that sees the backend jump ahead may wait
// seconds for what it missed; but only so long, because the toolstack waits too.
func (p *planner) detached() {
	switch p.front {
	case xenbus.Connected, xenbus.Closing, xenbus.Reconfiguring:
		if p.forced || p.own == xenbus.Closed {
			break
		}
		switch {
		case p.front == xenbus.Closing:
			p.disconnect()
			if p.own != xenbus.Closing || p.node != xenbus.Closing {
				p.show(xenbus.Closing)
			}
		case p.front == xenbus.Reconfiguring:
			p.answer()
		case p.node != xenbus.Closing && p.node != xenbus.Closed:
			// The answer has hidden it.
			p.node = xenbus.Closing
			p.add(stepDetaching)
		}
		p.add(stepGrace)
		return
	}
	p.disconnect()
	p.remove()
}
