// SPDX-License-Identifier: Apache-2.0

package vif

import "github.com/netbackd/netbackd/pkg/xenbus"

// The states that a vif shows its frontend, in io/xenbus.h's terms, and the steps
// between them. Only these transitions are shown; they are xen-netback's.
//
//	               publish            connect, plug
//	Initialising ----------> InitWait --------------> Connected
//	     |                   ^      |                     |
//	     |           publish |      |                     | disconnect
//	     v                   |      v                     |
//	   Closed ---------------+   Closing <----------------+
//	     ^ |                      ^  |
//	     | +----------------------+  |
//	     +---------------------------+
//
//	Initialising -> InitWait    always, unless one of the next line
//	Initialising -> Closed      the frontend closes, is gone, or was refused
//	InitWait -> Connected       the frontend is Connected and the hotplug script is done
//	InitWait -> Closing         the frontend closes, is gone, or was refused
//	Connected -> Closing        as InitWait -> Closing, or the frontend is Initialising again
//	Closing -> Closed           the frontend is not Closing any more
//	Closed -> InitWait          the frontend is back, and the toolstack wants the vif
//	Closed -> Closing           the frontend closes again
//
// If the toolstack detaches the vif, it goes to Closed from any state, at the latest
// when the frontend's grace has ended; see planner.detached.
//
// Reconfigured is not a state of the vif: the node shows it as the answer to a frontend in
// Reconfiguring, while the vif's own state does not change. It may follow any state except
// Initialising.
//
// docs/states.md lists the steps of a vif for every combination of states.

// situation holds everything that decides the next steps of a vif.
type situation struct {
	own   xenbus.State // state of the vif: Initialising, InitWait, Connected, Closing or Closed
	node  xenbus.State // state in its node; Unknown if the node holds none
	front xenbus.State // state of the frontend; Unknown if its directory or its domain is gone

	conn   connPhase
	detach detachPhase
	block  blockPhase

	online     bool // the toolstack wants the vif
	plugged    bool // the hotplug script is done, or there is none
	noTap      bool // in InitWait without a TAP: a predecessor went there, or the TAP was deleted
	claimed    bool // another back end has served the frontend's rings until now
	keyPending bool // the frontend reconfigures, and may not have written its key yet
}

// connPhase is the progress of the connection to the frontend.
type connPhase uint8

const (
	connNone  connPhase = iota
	connReady           // rings are mapped, and no packets pass yet
	connLive            // packets pass
	connStale           // the frontend has other rings than those that are mapped
)

// detachPhase is the progress of a detach by the toolstack.
type detachPhase uint8

const (
	detachNone   detachPhase = iota
	detachGrace              // the frontend has time to close
	detachForced             // its time is over
)

// blockPhase tells whether the vif may connect to the rings that the frontend names.
type blockPhase uint8

const (
	blockNone        blockPhase = iota
	blockRefused                // the same attempt has failed before
	blockQuarantined            // the frontend has broken the protocol on these rings
)

// step is one thing to do. Steps are performed in order, until one fails.
type step uint8

const (
	stepPublish      step = iota + 1 // make the TAP and write the features
	stepTap                          // make the TAP of a vif that was claimed
	stepConnect                      // map rings, bind channels, start the data path
	stepDisconnect                   // undo stepConnect
	stepPlug                         // let packets pass: carrier on
	stepInitWait                     // show InitWait
	stepConnected                    // show Connected
	stepClosing                      // show Closing
	stepClosed                       // show Closed
	stepReconfigured                 // answer Reconfiguring
	stepDetaching                    // show the toolstack's Closing again
	stepAwaitKey                     // reconcile again after keyGrace, the time to write the key
	stepUnregister                   // remove the TAP: the device is gone
	stepGrace                        // reconcile again when the frontend's grace has ended
	stepUnexpected                   // report a state that a frontend of a vif never has
)

var stepNames = [...]string{
	"none", "publish", "tap", "connect", "disconnect", "plug", "init-wait", "connected",
	"closing", "closed", "reconfigured", "detaching", "await-key", "unregister", "grace", "unexpected",
}

func (s step) String() string { return stepNames[s] }

// shows maps a state to the step that shows it.
var shows = map[xenbus.State]step{
	xenbus.InitWait: stepInitWait, xenbus.Connected: stepConnected, xenbus.Closing: stepClosing, xenbus.Closed: stepClosed,
}

// plan returns the steps of the shortest way to the state that the frontend and the
// toolstack call for. It is the state machine, and has no side effects.
func plan(s situation) []step {
	p := planner{situation: s}
	switch {
	case s.detach != detachNone:
		p.detached()
	case !s.online && s.own == xenbus.Closed:
		p.remove()
	default:
		p.follow()
		p.restate()
	}
	return p.steps
}

// planner holds the steps planned so far, and the situation after them.
type planner struct {
	situation
	steps []step
}

func (p *planner) add(s step) { p.steps = append(p.steps, s) }

func (p *planner) show(s xenbus.State) {
	p.own, p.node = s, s
	p.add(shows[s])
}

// follow plans the way to the state that matches the frontend's.
func (p *planner) follow() {
	switch p.front {
	case xenbus.Unknown, xenbus.Closing, xenbus.Closed:
	default:
		if p.block == blockRefused {
			p.down(xenbus.Closed)
			p.answer()
			return
		}
	}
	switch p.front {
	case xenbus.Initialising:
		// A crashed or resumed guest goes straight from Connected to Initialising.
		p.disconnect()
		if p.own == xenbus.Connected || p.own == xenbus.Closing {
			p.down(xenbus.Closed)
		}
		p.raise()
	case xenbus.Initialised:
		// No frontend of a vif needs this state, and xen-netback ignores it. It is
		// handled as Initialising, except that a connection is kept.
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
		} else if p.own == xenbus.Initialising || p.noTap {
			p.raise()
		}
		p.answer()
	default:
		p.add(stepUnexpected)
	}
}

// answer answers Reconfiguring, in any state of the vif, as xen-netback does: netfront
// waits for the answer without a limit, with the lock on all its network settings (rtnl)
// held, and then continues with its present rings.
func (p *planner) answer() {
	if p.front != xenbus.Reconfiguring || p.node == xenbus.Reconfigured {
		return
	}
	if p.own == xenbus.Initialising || p.own == xenbus.Closed && !p.online {
		return // there is no device
	}
	if p.keyPending && p.own == xenbus.Connected {
		p.add(stepAwaitKey)
		return
	}
	p.node = xenbus.Reconfigured
	p.add(stepReconfigured)
}

// restate shows the vif's state again if the node shows another one: an old answer to
// Reconfiguring, or a state that another program has written. The frontend may wait for
// the vif's state.
func (p *planner) restate() {
	switch {
	case p.node == p.own, p.own == xenbus.Initialising:
		return
	case p.node == xenbus.Reconfigured && (p.front == xenbus.Reconfiguring || p.own == xenbus.Connected):
		return // the answer stays in the node, as with xen-netback
	case p.own == xenbus.Closing && p.node == xenbus.Closed:
		return // the vif is on its way there
	case p.own == xenbus.InitWait && (p.front == xenbus.Initialising || p.front == xenbus.Initialised):
		// The frontend waits for InitWait and would not connect.
	case p.own == xenbus.InitWait || p.own == xenbus.Connected:
		if p.node == xenbus.Closing || p.node == xenbus.Closed {
			return // the frontend has seen it, and the vif follows the frontend
		}
	}
	p.node = p.own
	p.add(shows[p.own])
}

// remove plans the removal of a device that is Closed.
func (p *planner) remove() {
	if p.own != xenbus.Closed || p.node != xenbus.Closed {
		p.show(xenbus.Closed)
	}
	p.add(stepUnregister)
}

// raise plans the way to InitWait, and reports whether the vif will be in InitWait.
func (p *planner) raise() bool {
	if p.own == xenbus.Initialising || p.own == xenbus.Closed {
		if !p.online {
			return false
		}
		p.add(stepPublish)
		p.show(xenbus.InitWait)
		p.noTap = false
	}
	if p.own == xenbus.InitWait && p.noTap && p.online {
		p.add(stepPublish)
		p.noTap = false
	}
	return p.own == xenbus.InitWait
}

// connect plans the way from InitWait to Connected, as far as possible now. In Connected
// it plans a connection if there is none, or if the frontend has other rings: a daemon
// that has just started has no connection, and the vif may have missed states of the
// frontend.
func (p *planner) connect() {
	if p.conn == connStale {
		p.disconnect()
	}
	if p.own == xenbus.InitWait && !p.online {
		return
	}
	if p.conn == connNone {
		if p.block == blockQuarantined {
			return
		}
		if p.own == xenbus.Connected && p.claimed && !p.plugged {
			// The guest is sending. Until the hotplug script has set up the TAP,
			// packets stay in the rings; if they were taken they would be lost.
			p.add(stepTap)
			return
		}
		p.add(stepConnect)
		p.conn = connReady
	}
	if !p.plugged {
		return
	}
	if p.conn != connLive {
		p.add(stepPlug)
	}
	if p.own == xenbus.InitWait {
		p.show(xenbus.Connected)
	}
}

func (p *planner) disconnect() {
	if p.conn != connNone {
		p.add(stepDisconnect)
		p.conn = connNone
	}
}

// down plans the way to Closing or Closed.
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

// detached plans the removal of a device that the toolstack detaches. The toolstack has
// written Closing into the vif's node. The vif follows a live frontend through Closing and
// Closed, because a guest that sees the back end skip a state may wait for it for seconds.
// The toolstack waits as well, so this ends with the grace.
func (p *planner) detached() {
	switch p.front {
	case xenbus.Connected, xenbus.Closing, xenbus.Reconfiguring:
		if p.detach == detachForced || p.own == xenbus.Closed {
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
			// The answer to Reconfiguring has overwritten the toolstack's Closing.
			p.node = xenbus.Closing
			p.add(stepDetaching)
		}
		p.add(stepGrace)
		return
	}
	p.disconnect()
	p.remove()
}
