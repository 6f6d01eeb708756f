// SPDX-License-Identifier: Apache-2.0

package vbd

import "github.com/netbackd/netbackd/pkg/xenbus"

// The states that a vbd shows its frontend, in io/xenbus.h's terms, and the steps between
// them. Only these transitions are shown; they are xen-blkback's.
//
//	               publish            connect
//	Initialising ----------> InitWait --------> Connected <--+ resize, reconnect:
//	     |                   ^      |            |       |---+ Connected is written again
//	     |           publish |      |            |       |
//	     v                   |      v            v       | disconnect
//	   Closed ---------------+   Closing <---------------+
//	     ^ |                      ^  |
//	     | +----------------------+  | disconnect
//	     +---------------------------+
//
//	Initialising -> InitWait    always, unless one of the next line
//	Initialising -> Closed      the frontend closes, is gone, or was refused
//	InitWait -> Connected       the frontend is Initialised or Connected, and the disk is open
//	InitWait -> Closing         the frontend closes, is gone, or was refused
//	Connected -> Closing        as InitWait -> Closing, or the frontend is Initialising again
//	Closing -> Closed           the frontend is not Closing any more
//	Closed -> InitWait          the frontend is back, and the toolstack wants the vbd
//	Closed -> Closing           the frontend closes again
//
// A frontend in Closing may still use its disk: old versions of Linux go there when they are
// asked to close a disk that is mounted, and to Closed when its last user has gone. So a
// Connected vbd keeps the rings in Closing and serves them, as xen-blkback does. It
// disconnects before it shows any other state.
//
// Disconnecting waits for requests that were begun, and may take seconds. Meanwhile nothing
// else is done; see connEnding.
//
// If the toolstack detaches the vbd, it goes to Closed from any state; see
// planner.detached.
//
// docs/block-states.md lists the steps of a vbd for every combination of states.

// situation holds everything that decides the next steps of a vbd.
type situation struct {
	own   xenbus.State // state of the vbd: Initialising, InitWait, Connected, Closing or Closed
	node  xenbus.State // state in its node; Unknown if the node holds none
	front xenbus.State // state of the frontend; Unknown if its directory or its domain is gone

	conn   connPhase
	disk   diskPhase
	detach detachPhase
	block  blockPhase

	online  bool // the toolstack wants the vbd
	plugged bool // the hotplug script is done, or there is none
	resized bool // the disk has another size than the node shows
	served  bool // a predecessor has served the frontend's present rings
}

// connPhase is the progress of the connection to the frontend.
type connPhase uint8

const (
	connNone   connPhase = iota
	connLive             // requests are served
	connStale            // the frontend has other rings than those that are served
	connEnding           // it is being closed
)

// diskPhase is the progress of opening the disk.
type diskPhase uint8

const (
	diskNone    diskPhase = iota
	diskOpening           // the lock may be waited for
	diskOpen
	diskFailed // with the present nodes; the next attempt has its time
)

// detachPhase is the progress of a detach by the toolstack.
type detachPhase uint8

const (
	detachNone   detachPhase = iota
	detachGrace              // the frontend has time to close
	detachForced             // its time is over
)

// blockPhase tells whether the vbd may connect to the rings that the frontend names.
type blockPhase uint8

const (
	blockNone        blockPhase = iota
	blockRefused                // the same attempt has failed before
	blockQuarantined            // the frontend has broken the protocol on these rings
)

// step is one thing to do. Steps are performed in order, until one fails.
type step uint8

const (
	stepInitWait   step = iota + 1 // write the features and show InitWait
	stepOpen                       // begin to open the disk
	stepConnect                    // map rings, bind channels, start the data path
	stepConnected                  // write the features of the disk and show Connected
	stepDisconnect                 // begin to undo stepConnect
	stepClosing                    // show Closing
	stepClosed                     // show Closed
	stepRelease                    // close the disk: the device is gone, or about to go
	stepGrace                      // reconcile again when the frontend's grace has ended
	stepUnexpected                 // report a state that a frontend of a vbd never has
)

var stepNames = [...]string{
	"none", "init-wait", "open", "connect", "connected", "disconnect", "closing", "closed",
	"release", "grace", "unexpected",
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
	steps    []step
	released bool // stepRelease is planned
}

// add adds a step. While a connection is being closed nothing can follow: the plan is made
// again when it is closed.
func (p *planner) add(s step) {
	if p.conn != connEnding {
		p.steps = append(p.steps, s)
	}
}

func (p *planner) show(s xenbus.State) {
	if s == xenbus.Closed && (!p.online || p.front == xenbus.Unknown) {
		p.release() // the toolstack may use the image as soon as it sees Closed
	}
	if p.conn != connEnding {
		p.own, p.node = s, s
		p.add(shows[s])
	}
}

// follow plans the way to the state that matches the frontend's.
func (p *planner) follow() {
	switch p.front {
	case xenbus.Unknown, xenbus.Closing, xenbus.Closed:
	default:
		if p.block == blockRefused {
			p.down()
			return
		}
	}
	switch p.front {
	case xenbus.Initialising:
		// A crashed or resumed guest goes straight from Connected to Initialising.
		p.disconnect()
		if p.own == xenbus.Connected || p.own == xenbus.Closing {
			p.down()
		}
		p.raise()
	case xenbus.Initialised, xenbus.Connected:
		if p.own == xenbus.Closing {
			p.down()
		}
		if p.own == xenbus.Connected || p.raise() {
			p.connect()
		}
	case xenbus.Closing:
		p.closing()
	case xenbus.Closed:
		p.down()
		if !p.online {
			p.remove()
		}
	case xenbus.Unknown:
		p.down()
		p.remove()
	default:
		p.add(stepUnexpected)
	}
}

// closing plans the way to Closing for a frontend that is Closing and may still use its
// disk.
func (p *planner) closing() {
	if p.own == xenbus.Initialising {
		p.show(xenbus.Closed)
	}
	if p.own != xenbus.Closing {
		p.show(xenbus.Closing)
	}
	if p.conn == connNone && p.served && p.block == blockNone {
		p.attach() // a predecessor served it here
	}
}

// restate shows the vbd's state again if the node shows another one, which another program
// has written. The frontend may wait for the vbd's state.
func (p *planner) restate() {
	switch {
	case p.node == p.own, p.own == xenbus.Initialising:
		return
	case p.own == xenbus.Closing && p.node == xenbus.Closed:
		return // the vbd is on its way there
	case p.own == xenbus.InitWait && (p.front == xenbus.Initialising || p.front == xenbus.Initialised):
		// The frontend waits for InitWait and would not connect.
	case p.own == xenbus.InitWait || p.own == xenbus.Connected:
		if p.node == xenbus.Closing || p.node == xenbus.Closed {
			return // the frontend has seen it, and the vbd follows the frontend
		}
	}
	if p.own == xenbus.Connected && p.conn != connLive {
		return // the way there ends with Connected
	}
	p.show(p.own)
}

// remove plans the removal of a device that is Closed.
func (p *planner) remove() {
	p.release()
	if p.own != xenbus.Closed || p.node != xenbus.Closed {
		p.show(xenbus.Closed)
	}
}

// release gives up the disk, once.
func (p *planner) release() {
	if !p.released && p.conn != connEnding {
		p.add(stepRelease)
		p.released = true
	}
}

// raise plans the way to InitWait, and reports whether the vbd will be in InitWait. It
// opens the disk when the hotplug script is done.
func (p *planner) raise() bool {
	if p.own == xenbus.Initialising || p.own == xenbus.Closed {
		if !p.online {
			return false
		}
		p.show(xenbus.InitWait)
	}
	if p.own == xenbus.InitWait && p.online {
		p.open()
	}
	return p.own == xenbus.InitWait
}

// open begins to open the disk, if the hotplug script has made it ready.
func (p *planner) open() {
	if p.disk == diskNone && p.plugged {
		p.add(stepOpen)
		p.disk = diskOpening
	}
}

// connect plans the way from InitWait to Connected, as far as possible now. In Connected
// it plans a connection if there is none, or if the frontend has other rings: a daemon
// that has just started has no connection, and the vbd may have missed states of the
// frontend.
func (p *planner) connect() {
	if p.conn == connStale {
		p.disconnect()
	}
	if p.own == xenbus.InitWait && !p.online {
		return
	}
	fresh := p.attach()
	if p.conn != connLive {
		return
	}
	// A frontend that waits in Initialised continues when Connected is written, even if
	// the node shows Connected already. So does one that has been suspended.
	if p.own == xenbus.InitWait || fresh && p.front == xenbus.Initialised || p.resized {
		p.show(xenbus.Connected)
		p.resized = false
	}
}

// attach plans the connection to the frontend's rings, once the disk is open. It reports
// whether it has planned one.
func (p *planner) attach() bool {
	if p.conn != connNone || p.block != blockNone {
		return false
	}
	p.open()
	if p.disk != diskOpen {
		return false
	}
	p.add(stepConnect)
	p.conn = connLive
	return true
}

// disconnect begins to close the connection, if there is one. All further steps wait for
// its end.
func (p *planner) disconnect() {
	if p.conn == connLive || p.conn == connStale {
		p.add(stepDisconnect)
		p.conn = connEnding
	}
}

// down plans the way to Closed.
func (p *planner) down() {
	p.disconnect()
	if p.own == xenbus.InitWait || p.own == xenbus.Connected {
		p.show(xenbus.Closing)
	}
	if p.own != xenbus.Closed {
		p.show(xenbus.Closed)
	}
}

// detached plans the removal of a device that the toolstack detaches. The toolstack has
// written Closing into the vbd's node. A frontend that is Connected has a grace to close.
// One that is Closing has refused: its disk is in use, and is served until the frontend
// closes. The toolstack gives up then, and can only force the removal, by removing the
// frontend's directory.
func (p *planner) detached() {
	resume := p.served && p.conn == connNone && p.block == blockNone && p.disk != diskFailed
	// The event of Connected may be on its way.
	connected := p.front == xenbus.Connected || p.front == xenbus.Initialised && p.conn == connLive && p.own == xenbus.Connected
	switch {
	case p.own == xenbus.Closed:
	case connected && p.detach != detachForced:
		if resume {
			p.attach()
		}
		p.add(stepGrace)
		return
	case p.front == xenbus.Closing && (p.conn == connLive || resume):
		p.closing()
		return
	}
	p.disconnect()
	p.remove()
}
