// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"fmt"
	"slices"
	"strings"
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
			for conn := range connStale + 1 {
				for detach := range detachForced + 1 {
					for block := range blockQuarantined + 1 {
						for bits := range 1 << 5 * len(allFront) {
							bit := func(i int) bool { return bits>>i&1 != 0 }
							f(situation{
								own: own, front: front, node: allFront[bits>>5],
								conn: conn, detach: detach, block: block,
								online: bit(0), plugged: bit(1), noTap: bit(2), claimed: bit(3), keyPending: bit(4),
							})
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
		s.conn != connNone && s.own != xenbus.InitWait && s.own != xenbus.Connected,
		s.noTap && (s.own != xenbus.InitWait || s.conn != connNone),
		s.claimed && s.conn != connNone,
		s.node == xenbus.Initialising && s.own != xenbus.Initialising, // the toolstack has made it again
		s.own == xenbus.Initialising && s.node != xenbus.Initialising && s.node != xenbus.Unknown && !(s.detach != detachNone && s.node == xenbus.Closing),
		s.keyPending && (s.front != xenbus.Reconfiguring || s.own != xenbus.Connected || s.node == xenbus.Reconfigured || s.detach != detachNone),
		s.block == blockQuarantined && s.conn != connNone:
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
func shown(s step) (xenbus.State, bool) {
	for state, st := range shows {
		if st == s {
			return state, true
		}
	}
	return xenbus.Unknown, false
}

// TestPlanInvariants checks what must hold in every situation.
func TestPlanInvariants(t *testing.T) {
	n := 0
	situations(func(s situation) {
		steps := plan(s) // also of impossible situations: it must not panic
		if !s.possible() {
			return
		}
		n++
		if complaint := judge(s, steps); complaint != "" {
			t.Errorf("%+v: %v: %s", s, steps, complaint)
		}
	})
	t.Logf("%d situations", n)
}

// judge follows the steps and returns a description of the first fault, or "".
func judge(s situation, steps []step) string {
	node := s.node
	connected, live := s.conn != connNone, s.conn == connLive
	bare, unregistered, went := s.noTap, false, s.own
	for i, st := range steps {
		if unregistered {
			return "goes on after unregister"
		}
		if state, ok := shown(st); ok {
			switch {
			case state == node && state == went:
				return "shows what is shown"
			case state == went && i+1 < len(steps) && st != stepClosed && st != stepClosing:
				return "shows again what is not to last"
			case state == went && state == xenbus.InitWait && s.node == xenbus.Closing && s.front != xenbus.Initialising && s.front != xenbus.Initialised:
				return "hides Closing from a frontend that has seen it"
			case state != went && !slices.Contains(legal[went], state) && s.detach == detachNone:
				return fmt.Sprintf("%v after %v", state, went)
			case state == xenbus.Connected && state != went && (!connected || !live || !s.plugged || !s.online):
				return "Connected too early"
			case (state == xenbus.Closing || state == xenbus.Closed) && connected:
				return fmt.Sprintf("%v with the guest's pages mapped", state)
			case (state == xenbus.InitWait || state == xenbus.Connected) && (s.block == blockRefused) && state != went:
				return "tries again what was refused"
			}
			node, went = state, state
			continue
		}
		switch st {
		case stepPublish:
			if !(s.noTap && went == xenbus.InitWait) && (i+1 == len(steps) || steps[i+1] != stepInitWait) {
				return "publishes without going to InitWait"
			}
			bare = false
			if !s.online {
				return "goes up although the toolstack wants it gone"
			}
		case stepTap:
			if !s.claimed || connected || went != xenbus.Connected {
				return "makes a TAP that is not needed"
			}
			if s.plugged || (s.block == blockQuarantined) || (s.block == blockRefused) || s.detach != detachNone {
				return "makes a TAP for a script that will not run"
			}
		case stepConnect:
			if connected {
				return "connects twice"
			}
			if bare {
				return "connects before it has published"
			}
			if s.own == xenbus.Connected && s.claimed && !s.plugged {
				return "serves a guest before its TAP is in place"
			}
			if went != xenbus.InitWait && went != xenbus.Connected {
				return fmt.Sprintf("connects in %v", went)
			}
			if s.front != xenbus.Connected && s.front != xenbus.Reconfiguring {
				return "connects to a frontend that is not Connected"
			}
			if (s.block == blockQuarantined) || (s.block == blockRefused) {
				return "connects although it is blocked"
			}
			if s.detach != detachNone || !s.online && s.own != xenbus.Connected {
				return "connects although the toolstack wants it gone"
			}
			connected = true
		case stepDisconnect:
			if !connected {
				return "disconnects twice"
			}
			connected, live = false, false
		case stepPlug:
			if !connected || live || !s.plugged {
				return "plugs without a connection, or twice"
			}
			live = true
		case stepReconfigured:
			if s.front != xenbus.Reconfiguring || node == xenbus.Reconfigured || went == xenbus.Initialising {
				return "answers without a question, or twice"
			}
			if s.keyPending && went == xenbus.Connected {
				return "answers before the frontend has written its key"
			}
			node = xenbus.Reconfigured
		case stepDetaching:
			if s.detach == detachNone || node == xenbus.Closing {
				return "shows Closing although it is not detached, or twice"
			}
			node = xenbus.Closing
		case stepAwaitKey:
			if went != xenbus.Connected || !s.keyPending {
				return "waits for a key that will not come"
			}
		case stepUnregister:
			if connected || node != xenbus.Closed {
				return "unregisters a device that is in use"
			}
			gone := s.front == xenbus.Unknown || s.detach != detachNone || !s.online
			if !gone {
				return "unregisters a device that is wanted"
			}
			unregistered = true
		case stepGrace:
			if s.detach == detachNone || (s.detach == detachForced) {
				return "waits for nothing"
			}
		case stepUnexpected:
			if s.front != xenbus.InitWait && s.front != xenbus.Reconfigured || (s.block == blockRefused) {
				return "complains about a usual state, or twice"
			}
		}
	}
	// The state in which it has to end.
	switch {
	case s.detach == detachForced, s.front == xenbus.Unknown && s.detach == detachNone:
		if went != xenbus.Closed || !unregistered {
			return "does not end"
		}
	case s.detach != detachNone:
		if !unregistered && !slices.Contains(steps, stepGrace) {
			return "neither ends nor waits"
		}
	case s.front == xenbus.Closed && went != xenbus.Closed:
		return "is not Closed with its frontend"
	case s.front == xenbus.Closing && !s.online && s.own == xenbus.Closed:
		// the device goes, whether or not the guest closes
	case s.front == xenbus.Closing && went != xenbus.Closing:
		return "is not Closing with its frontend"
	case s.front == xenbus.Initialising && s.online && !(s.block == blockRefused) && went != xenbus.InitWait:
		return "leaves a new frontend waiting"
	case s.front == xenbus.Connected && s.online && s.plugged && !(s.block == blockRefused) && !(s.block == blockQuarantined) && (went != xenbus.Connected || !live):
		return "leaves a connected frontend waiting"
	case s.front == xenbus.Initialising && connected:
		return "keeps rings that a new frontend does not have"
	case (s.block == blockRefused) && went != xenbus.Closed && s.front != xenbus.Closing:
		return "stays up although it was refused"
	case s.keyPending && !slices.Contains(steps, stepAwaitKey) && went == xenbus.Connected:
		return "does not wait for the frontend's key"
	case s.front == xenbus.Reconfiguring && node != xenbus.Reconfigured && !(s.keyPending && went == xenbus.Connected) && went != xenbus.Initialising && !(went == xenbus.Closed && !s.online):
		return "does not answer a frontend that waits"
	case s.front != xenbus.Reconfiguring && node == xenbus.Reconfigured && went != xenbus.Connected:
		return "leaves an answer that does not show its state"
	case node == xenbus.Unknown && went != xenbus.Initialising:
		return "shows no state"
	}
	return ""
}

// TestPlanComesToRest: after the steps of a plan nothing is left to do. Otherwise the
// vif would keep itself busy.
func TestPlanComesToRest(t *testing.T) {
	situations(func(s situation) {
		if !s.possible() {
			return
		}
		after, ok := s.after(plan(s))
		if !ok {
			return // the frontend has to act
		}
		// Unregister is repeated and finds nothing to do. So are the TAP of a
		// claimed vif and the alarm for the end of the grace.
		again := slices.DeleteFunc(plan(after), func(st step) bool {
			return st == stepUnregister || st == stepGrace || st == stepTap
		})
		if len(again) > 0 {
			t.Errorf("%+v: after %v comes %v", s, plan(s), again)
		}
	})
}

// after returns the situation after the steps.
func (s situation) after(steps []step) (_ situation, ok bool) {
	for _, st := range steps {
		if state, ok := shown(st); ok {
			s.own, s.node = state, state
		}
		switch st {
		case stepPublish:
			s.noTap = false
		case stepConnect:
			s.conn, s.claimed = connReady, false
		case stepDisconnect:
			s.conn = connNone
		case stepPlug:
			s.conn = connLive
		case stepReconfigured:
			s.node = xenbus.Reconfigured
		case stepDetaching:
			s.node = xenbus.Closing
		case stepAwaitKey, stepUnexpected:
			return s, false
		}
	}
	return s, true
}

func TestPlan(t *testing.T) {
	up := func(own, front xenbus.State) situation {
		return situation{own: own, node: own, front: front, online: true}
	}
	with := func(s situation, flags string) situation {
		for _, f := range strings.Fields(flags) {
			map[string]func(){
				"connected":   func() { s.conn = connReady },
				"stale":       func() { s.conn = connStale },
				"plugged":     func() { s.plugged = true },
				"live":        func() { s.conn = connLive },
				"refused":     func() { s.block = blockRefused },
				"quarantined": func() { s.block = blockQuarantined },
				"bare":        func() { s.noTap = true },
				"claimed":     func() { s.claimed = true },
				"nonsense":    func() { s.node = xenbus.Unknown },
				"shows5":      func() { s.node = xenbus.Closing },
				"shows6":      func() { s.node = xenbus.Closed },
				"shows8":      func() { s.node = xenbus.Reconfigured },
				"unsaid":      func() { s.keyPending = true },
				"offline":     func() { s.online = false },
				"detach": func() {
					s.online, s.detach = false, detachGrace
					if s.own != xenbus.Closed {
						s.node = xenbus.Closing // the toolstack's
					}
				},
				"forced": func() { s.detach = detachForced },
			}[f]()
		}
		return s
	}
	const running = "connected plugged live"
	for _, tt := range []struct {
		name string
		in   situation
		want string
	}{
		// These are the rows of frontend_changed.
		{"new device", up(xenbus.Initialising, xenbus.Initialising), "publish init-wait"},
		{"kexec: frontend jumps from 4 to 1", with(up(xenbus.Connected, xenbus.Initialising), running), "disconnect closing closed publish init-wait"},
		{"driver loaded again", up(xenbus.Closed, xenbus.Initialising), "publish init-wait"},
		{"driver loaded again before we were Closed", up(xenbus.Closing, xenbus.Initialising), "closed publish init-wait"},
		{"frontend still where it starts", up(xenbus.InitWait, xenbus.Initialising), ""},
		{"resumed before hotplug was done", with(up(xenbus.InitWait, xenbus.Initialising), "connected"), "disconnect"},
		{"frontend in InitWait", up(xenbus.InitWait, xenbus.InitWait), "unexpected"},
		{"frontend stays in InitWait", with(up(xenbus.Closed, xenbus.InitWait), "refused"), ""},
		{"frontend in Reconfigured", with(up(xenbus.Connected, xenbus.Reconfigured), running), "unexpected"},
		{"frontend Initialised", up(xenbus.InitWait, xenbus.Initialised), ""},
		{"frontend Initialised early", up(xenbus.Initialising, xenbus.Initialised), "publish init-wait"},
		{"frontend Initialised while we are Closed", up(xenbus.Closed, xenbus.Initialised), "publish init-wait"},
		{"frontend Initialised while we are Closing", up(xenbus.Closing, xenbus.Initialised), "closed publish init-wait"},
		{"frontend Initialised while Connected", with(up(xenbus.Connected, xenbus.Initialised), running), ""},
		{"connect", with(up(xenbus.InitWait, xenbus.Connected), "plugged"), "connect plug connected"},
		{"connect before hotplug", up(xenbus.InitWait, xenbus.Connected), "connect"},
		{"waiting for hotplug", with(up(xenbus.InitWait, xenbus.Connected), "connected"), ""},
		{"hotplug done", with(up(xenbus.InitWait, xenbus.Connected), "connected plugged"), "plug connected"},
		{"connected and content", with(up(xenbus.Connected, xenbus.Connected), running), ""},
		{"guest was connected when the device appeared", with(up(xenbus.Initialising, xenbus.Connected), "plugged"), "publish init-wait connect plug connected"},
		{"connected again while we are Closed", with(up(xenbus.Closed, xenbus.Connected), "plugged"), "publish init-wait connect plug connected"},
		{"connected again while we are Closing", with(up(xenbus.Closing, xenbus.Connected), "plugged"), "closed publish init-wait connect plug connected"},
		{"frontend closes", with(up(xenbus.Connected, xenbus.Closing), running), "disconnect closing"},
		{"frontend closes before hotplug", with(up(xenbus.InitWait, xenbus.Closing), "connected"), "disconnect closing"},
		{"frontend closes a device never seen", up(xenbus.Initialising, xenbus.Closing), "closed closing"},
		{"frontend closes while we are Closed", up(xenbus.Closed, xenbus.Closing), "closing"},
		{"frontend closed after Closing", up(xenbus.Closing, xenbus.Closed), "closed"},
		{"frontend closed at once", with(up(xenbus.Connected, xenbus.Closed), running), "disconnect closing closed"},
		{"frontend closed before it connected", up(xenbus.InitWait, xenbus.Closed), "closing closed"},
		{"frontend closed and the device unwanted", with(up(xenbus.Closing, xenbus.Closed), "offline"), "closed unregister"},
		{"frontend directory gone", with(up(xenbus.Connected, xenbus.Unknown), running), "disconnect closing closed unregister"},
		{"frontend reconfigures", with(up(xenbus.Connected, xenbus.Reconfiguring), running), "reconfigured"},
		{"frontend reconfigures while the script runs", with(up(xenbus.InitWait, xenbus.Reconfiguring), "connected"), "reconfigured"},
		{"frontend reconfigures before it has connected", up(xenbus.InitWait, xenbus.Reconfiguring), "reconfigured"},
		{"frontend reconfigures a device never seen", up(xenbus.Initialising, xenbus.Reconfiguring), "publish init-wait reconfigured"},
		{"frontend reconfigures while we are Closing", up(xenbus.Closing, xenbus.Reconfiguring), "reconfigured"},
		{"frontend reconfigures while we are Closed", up(xenbus.Closed, xenbus.Reconfiguring), "reconfigured"},
		{"frontend reconfigures, and was refused", with(up(xenbus.Closed, xenbus.Reconfiguring), "refused"), "reconfigured"},
		{"frontend reconfigures what is refused now", with(up(xenbus.InitWait, xenbus.Reconfiguring), "refused"), "closing closed reconfigured"},
		{"frontend reconfigures while it is in quarantine", with(up(xenbus.Connected, xenbus.Reconfiguring), "quarantined"), "reconfigured"},
		{"frontend has its answer", with(up(xenbus.Connected, xenbus.Reconfiguring), running+" shows8"), ""},
		{"frontend has its answer in InitWait", with(up(xenbus.InitWait, xenbus.Reconfiguring), "shows8"), ""},
		{"frontend goes on after its answer", with(up(xenbus.Connected, xenbus.Connected), running+" shows8"), ""},
		{"frontend goes on while the script runs", with(up(xenbus.InitWait, xenbus.Connected), "connected shows8"), "init-wait"},
		{"frontend goes on, the script is through", with(up(xenbus.InitWait, xenbus.Connected), "connected plugged shows8"), "plug connected"},
		{"frontend begins anew after its answer", with(up(xenbus.InitWait, xenbus.Initialising), "shows8"), "init-wait"},
		{"frontend closes after its answer", with(up(xenbus.Closing, xenbus.Closing), "shows8"), "closing"},
		{"frontend goes on after its answer, and was refused", with(up(xenbus.Closed, xenbus.Connected), "refused shows8"), "closed"},

		// These have other rings, no rings, or a blocked connection.
		{"other rings while Connected", with(up(xenbus.Connected, xenbus.Connected), running+" stale"), "disconnect connect plug"},
		{"other rings before hotplug", with(up(xenbus.InitWait, xenbus.Connected), "connected stale"), "disconnect connect"},
		{"taken over from a predecessor", with(up(xenbus.Connected, xenbus.Connected), "plugged"), "connect plug"},
		{"frontend reconfigures and has not said how", with(up(xenbus.Connected, xenbus.Reconfiguring), running+" unsaid"), "await-key"},
		{"taken over in mid reconfiguration, and it has not said how", with(up(xenbus.Connected, xenbus.Reconfiguring), "plugged unsaid"), "connect plug await-key"},
		{"taken over in mid reconfiguration", with(up(xenbus.Connected, xenbus.Reconfiguring), "plugged"), "connect plug reconfigured"},
		{"taken over, but the TAP was deleted", up(xenbus.Connected, xenbus.Connected), "connect"},
		{"hotplug done again for a new TAP", with(up(xenbus.Connected, xenbus.Connected), "connected plugged"), "plug"},
		{"closed by others before the guest came", with(up(xenbus.InitWait, xenbus.Initialising), "shows5"), "init-wait"},
		{"closed by others, guest has come", with(up(xenbus.InitWait, xenbus.Connected), "shows5 plugged"), "connect plug connected"},
		{"closed by others, guest waits for the script", with(up(xenbus.InitWait, xenbus.Connected), "connected shows5"), ""},
		{"closed by others while Connected", with(up(xenbus.Connected, xenbus.Connected), running+" shows6"), ""},
		{"overwritten before the guest came", with(up(xenbus.InitWait, xenbus.Initialising), "nonsense"), "init-wait"},
		{"overwritten while the script runs", with(up(xenbus.InitWait, xenbus.Connected), "connected nonsense"), "init-wait"},
		{"overwritten while Connected", with(up(xenbus.Connected, xenbus.Connected), running+" nonsense"), "connected"},
		{"overwritten while Closing", with(up(xenbus.Closing, xenbus.Closing), "nonsense"), "closing"},
		{"overwritten while Closed", with(up(xenbus.Closed, xenbus.Closed), "shows5"), "closed"},
		{"claimed from another back end", with(up(xenbus.Connected, xenbus.Connected), "claimed"), "tap"},
		{"claimed, the script is through", with(up(xenbus.Connected, xenbus.Connected), "claimed plugged"), "connect plug"},
		{"claimed before the guest has connected", with(up(xenbus.InitWait, xenbus.Initialising), "claimed bare"), "publish"},
		{"claimed while the guest connects", with(up(xenbus.InitWait, xenbus.Connected), "claimed bare"), "publish connect"},
		{"taken over before it connected", with(up(xenbus.InitWait, xenbus.Initialising), "bare"), "publish"},
		{"taken over, guest connected meanwhile", with(up(xenbus.InitWait, xenbus.Connected), "bare plugged"), "publish connect plug connected"},
		{"taken over, guest closed meanwhile", with(up(xenbus.InitWait, xenbus.Closed), "bare"), "closing closed"},
		{"refused to connect", with(up(xenbus.InitWait, xenbus.Connected), "refused plugged"), "closing closed"},
		{"refused, and still the same", with(up(xenbus.Closed, xenbus.Connected), "refused plugged"), ""},
		{"refused when taking over", with(up(xenbus.Connected, xenbus.Connected), "refused plugged"), "closing closed"},
		{"could not be published", with(up(xenbus.Initialising, xenbus.Initialising), "refused"), "closed"},
		{"refused, and the frontend goes", with(up(xenbus.Closed, xenbus.Closed), ""), ""},
		{"quarantined", with(up(xenbus.Connected, xenbus.Connected), "quarantined plugged"), ""},
		{"quarantined before hotplug", with(up(xenbus.InitWait, xenbus.Connected), "quarantined plugged"), ""},
		{"closing after a quarantine", with(up(xenbus.Connected, xenbus.Closing), "plugged"), "closing"},

		// These are detached by the toolstack.
		{"detach, frontend alive", with(up(xenbus.Connected, xenbus.Connected), running+" detach"), "grace"},
		{"detach, frontend closing", with(up(xenbus.Connected, xenbus.Closing), running+" detach"), "disconnect closing grace"},
		{"detach, frontend closed", with(up(xenbus.Closing, xenbus.Closed), "detach"), "closed unregister"},
		{"detach, frontend silent", with(up(xenbus.Connected, xenbus.Connected), running+" detach forced"), "disconnect closed unregister"},
		{"detach, frontend gone", with(up(xenbus.Connected, xenbus.Unknown), running+" detach"), "disconnect closed unregister"},
		{"detach, frontend never connected", with(up(xenbus.InitWait, xenbus.Initialising), "detach"), "closed unregister"},
		{"detach of what is closed", with(up(xenbus.Closed, xenbus.Connected), "detach"), "unregister"},
		{"detach of what is closed, by a toolstack that does not look", with(up(xenbus.Closed, xenbus.Closed), "detach shows5"), "closed unregister"},
		{"detach of what is closed, overwritten", with(up(xenbus.Closed, xenbus.Closed), "offline nonsense"), "closed unregister"},
		{"detach, frontend reconfigures", with(up(xenbus.Connected, xenbus.Reconfiguring), running+" detach"), "reconfigured grace"},
		{"detach, frontend goes on after its answer", with(up(xenbus.Connected, xenbus.Connected), running+" detach shows8"), "detaching grace"},
		{"detach, frontend closes after its answer", with(up(xenbus.Closing, xenbus.Closing), "detach shows8"), "closing grace"},
		{"detach before the device was looked at", with(up(xenbus.Initialising, xenbus.Initialising), "detach"), "closed unregister"},
		{"unwanted and closed, guest comes again", with(up(xenbus.Closed, xenbus.Initialising), "offline"), "unregister"},
		{"unwanted, guest connects", with(up(xenbus.InitWait, xenbus.Connected), "offline plugged"), ""},
		{"unwanted but in use", with(up(xenbus.Connected, xenbus.Connected), running+" offline"), ""},
		{"unwanted, in use, taken over", with(up(xenbus.Connected, xenbus.Connected), "offline plugged"), "connect plug"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if !tt.in.possible() {
				t.Fatalf("%+v contradicts itself", tt.in)
			}
			var got []string
			for _, s := range plan(tt.in) {
				got = append(got, s.String())
			}
			if got := strings.Join(got, " "); got != tt.want {
				t.Errorf("got steps %q, want %q", got, tt.want)
			}
		})
	}
}

// TestClosedAtOnce: once the grace has ended, one plan closes the device.
func TestClosedAtOnce(t *testing.T) {
	situations(func(s situation) {
		if !s.possible() || s.detach != detachForced {
			return
		}
		steps := plan(s)
		if steps[len(steps)-1] != stepUnregister || s.own != xenbus.Closed && steps[len(steps)-2] != stepClosed {
			t.Errorf("%+v: %v", s, steps)
		}
	})
}
