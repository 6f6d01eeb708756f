// SPDX-License-Identifier: Apache-2.0

package vif

// situation is all that decides what a vif does next.
type situation struct {
	own   State // where the vif is, whatever its node says
	front State // where the frontend is; Unknown if its directory or its domain is gone

	online    bool // the toolstack wants the device to be
	detach    bool // it has asked for the device to go
	forced    bool // and the frontend has had its time
	connected bool // rings are mapped
	stale     bool // to other rings than the frontend names now
	plugged   bool // the hotplug script is through, or there is none
	refused   bool // these very rings have been tried in vain
}

// step is one thing to do. Steps are done in order, until one fails.
type step uint8

const (
	stepPublish      step = iota + 1 // make the TAP and write the features
	stepConnect                      // map rings, bind channels, start the data path
	stepDisconnect                   // the inverse
	stepPlug                         // let packets pass: carrier on
	stepInitWait                     // show InitWait
	stepConnected                    // show Connected
	stepClosing                      // show Closing
	stepClosed                       // show Closed
	stepReconfigured                 // answer Reconfiguring
	stepUnregister                   // remove the TAP; the device is gone
	stepGrace                        // look again when the frontend's time is up
	stepUnexpected                   // frontend in a state no netfront goes to
)

var stepNames = [...]string{
	"none", "publish", "connect", "disconnect", "plug", "init-wait", "connected",
	"closing", "closed", "reconfigured", "unregister", "grace", "unexpected",
}

func (s step) String() string { return stepNames[s] }

// plan is the state machine. It takes the shortest way to where the frontend
// and the toolstack say the vif should be, and passes only states that the
// protocol allows one after the other.
func plan(s situation) []step {
	if s.detach {
		return planDetach(s)
	}
	var p []step
	switch s.front {
	case Initialising:
		// Also how a crashed or resumed guest comes back without a word: from
		// Connected straight to Initialising.
		p = s.close(p)
		if s.own == Connected || s.own == Closing {
			p = append(p, stepClosed)
		}
		if s.own != InitWait {
			p = append(p, stepPublish, stepInitWait)
		}
	case InitWait:
		p = append(p, stepUnexpected)
	case Initialised:
		if s.own == Initialising {
			p = append(p, stepPublish, stepInitWait)
		}
	case Connected:
		p = planConnect(s)
	case Closing:
		p = s.close(p)
		if s.own != Closing && s.own != Connected {
			p = append(p, stepClosing)
		}
	case Closed:
		p = s.close(p)
		if s.own != Closed {
			p = append(p, stepClosed)
		}
		if !s.online {
			p = append(p, stepUnregister)
		}
	case Unknown:
		p = s.close(p)
		if s.own != Closed {
			p = append(p, stepClosed)
		}
		p = append(p, stepUnregister)
	case Reconfiguring:
		if s.own == Connected {
			p = append(p, stepReconfigured)
		}
	case Reconfigured:
	}
	return p
}

// close leaves Connected.
func (s *situation) close(p []step) []step {
	if s.connected {
		p = append(p, stepDisconnect)
	}
	if s.own == Connected {
		p = append(p, stepClosing)
	}
	return p
}

func planConnect(s situation) (p []step) {
	switch s.own {
	case Connected:
		// From Connected to Connected with other rings: the states between
		// were missed.
		if !s.stale {
			return nil
		}
		if s.connected {
			p = append(p, stepDisconnect)
		}
		return append(p, stepConnect, stepPlug)
	case Closing:
		p = append(p, stepClosed)
		fallthrough
	case Closed, Initialising:
		if s.refused {
			return p
		}
		p = append(p, stepPublish, stepInitWait)
	case InitWait:
		if s.connected && s.stale {
			p = append(p, stepDisconnect)
			s.connected = false
		}
	}
	if s.refused {
		return p
	}
	if !s.connected {
		p = append(p, stepConnect)
	}
	if s.plugged {
		p = append(p, stepPlug, stepConnected)
	}
	return p
}

// planDetach closes the device because the toolstack says so. A frontend that
// is alive is followed through its own Closing and Closed, because a guest that
// sees the backend jump ahead may wait seconds for what it missed; but only so
// long, because the toolstack waits too.
func planDetach(s situation) (p []step) {
	alive := s.front == Connected || s.front == Closing || s.front == Reconfiguring || s.front == Reconfigured
	if alive && !s.forced && s.own != Closed {
		if s.front == Closing {
			if s.connected {
				p = append(p, stepDisconnect)
			}
			if s.own != Closing {
				p = append(p, stepClosing)
			}
		}
		return append(p, stepGrace)
	}
	if s.connected {
		p = append(p, stepDisconnect)
	}
	if s.own != Closed {
		p = append(p, stepClosed)
	}
	return append(p, stepUnregister)
}
