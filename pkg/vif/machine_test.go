// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

var (
	allOwn   = []State{Initialising, InitWait, Connected, Closing, Closed}
	allFront = []State{Unknown, Initialising, InitWait, Initialised, Connected, Closing, Closed, Reconfiguring, Reconfigured}
)

// situations calls f with every combination there is.
func situations(f func(situation)) {
	for _, own := range allOwn {
		for _, front := range allFront {
			for bits := range 1 << 12 {
				bit := func(i int) bool { return bits>>i&1 != 0 }
				f(situation{
					own: own, front: front,
					online: bit(0), detach: bit(1), forced: bit(2), connected: bit(3),
					stale: bit(4), plugged: bit(5), live: bit(6), refused: bit(7), quarantined: bit(8), bare: bit(9),
					claimed: bit(10), overwritten: bit(11),
				})
			}
		}
	}
}

// possible leaves out combinations that contradict themselves.
func (s situation) possible() bool {
	switch {
	case s.forced && !s.detach,
		s.detach && s.online,
		s.stale && !s.connected,
		s.live && !s.connected,
		s.connected && s.own != InitWait && s.own != Connected,
		s.refused && s.quarantined,
		s.bare && (s.own != InitWait || s.connected),
		s.claimed && s.connected,
		s.overwritten && (s.own != InitWait || !s.online),
		s.quarantined && s.connected:
		return false
	}
	return true
}

// legal are the states that may follow one another; see plan.
var legal = map[State][]State{
	Initialising: {InitWait, Closed},
	InitWait:     {Connected, Closing},
	Connected:    {Closing, Reconfigured},
	Closing:      {Closed},
	Closed:       {InitWait, Closing},
}

// shown is the inverse of shows.
func shown(s step) (State, bool) {
	for state, st := range shows {
		if st == s {
			return state, true
		}
	}
	return Unknown, false
}

// TestPlanInvariants says what must hold wherever a vif may be.
func TestPlanInvariants(t *testing.T) {
	n := 0
	situations(func(s situation) {
		steps := plan(s) // of impossible ones, too: it may not panic
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

// judge takes the steps and says what is wrong with them.
func judge(s situation, steps []step) string {
	node := s.own // what the node shows
	if s.detach && s.own != Closed {
		node = Closing // by the toolstack
	}
	restored := false
	connected, live, bare, unregistered, went := s.connected, s.live, s.bare, false, s.own
	for i, st := range steps {
		if unregistered {
			return "goes on after unregister"
		}
		if state, ok := shown(st); ok {
			if state == InitWait && s.overwritten && !restored && i == len(steps)-1 && went == InitWait {
				if s.front != Initialising {
					return "hides Closing from a frontend that has seen it"
				}
				restored = true
				continue
			}
			if state == node && !s.detach {
				return "shows what is shown"
			}
			if state != node && !slices.Contains(legal[node], state) {
				return fmt.Sprintf("%v after %v", state, node)
			}
			if state == Connected && (!connected || !live || !s.plugged || !s.online) {
				return "Connected too early"
			}
			if (state == Closing || state == Closed) && connected {
				return fmt.Sprintf("%v with the guest's pages mapped", state)
			}
			if (state == InitWait || state == Connected) && s.refused {
				return "tries again what was refused"
			}
			node, went = state, state
			continue
		}
		switch st {
		case stepPublish:
			if !(s.bare && went == InitWait) && (i+1 == len(steps) || steps[i+1] != stepInitWait) {
				return "publishes for nobody"
			}
			bare = false
			if !s.online {
				return "goes up although the toolstack wants it gone"
			}
		case stepTap:
			if !s.claimed || connected || went != Connected {
				return "makes a TAP that nobody needs"
			}
			if s.plugged || s.quarantined || s.refused || s.detach {
				return "makes a TAP for a script that will not run"
			}
		case stepConnect:
			if connected {
				return "connects twice"
			}
			if bare {
				return "connects before it has published"
			}
			if s.own == Connected && s.claimed && !s.plugged {
				return "serves a guest through a TAP that is in no place yet"
			}
			if went != InitWait && went != Connected {
				return fmt.Sprintf("connects in %v", went)
			}
			if s.front != Connected && s.front != Reconfiguring {
				return "connects to a frontend that is not Connected"
			}
			if s.quarantined || s.refused {
				return "connects in spite of what happened"
			}
			if s.detach || !s.online && s.own != Connected {
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
				return "plugs in what is not there, or in already"
			}
			live = true
		case stepReconfigured:
			if went != Connected || s.front != Reconfiguring {
				return "answers what was not asked"
			}
			node = Reconfigured
		case stepUnregister:
			if connected || node != Closed {
				return "unregisters what is in use"
			}
			gone := s.front == Unknown || s.detach || !s.online
			if !gone {
				return "unregisters what is wanted"
			}
			unregistered = true
		case stepGrace:
			if !s.detach || s.forced {
				return "waits for nothing"
			}
		case stepUnexpected:
			if s.front != InitWait && s.front != Reconfigured || s.refused {
				return "complains about what is usual, or twice"
			}
		}
	}
	// Where it has to end.
	switch {
	case s.detach && s.forced, s.front == Unknown && !s.detach:
		if went != Closed || !unregistered {
			return "does not end"
		}
	case s.detach:
		if !unregistered && !slices.Contains(steps, stepGrace) {
			return "neither ends nor waits"
		}
	case s.front == Closed && went != Closed:
		return "is not Closed with its frontend"
	case s.front == Closing && !s.online && s.own == Closed:
		// gone, whatever the guest does
	case s.front == Closing && went != Closing:
		return "is not Closing with its frontend"
	case s.front == Initialising && s.online && !s.refused && went != InitWait:
		return "leaves a new frontend waiting"
	case s.front == Connected && s.online && s.plugged && !s.refused && !s.quarantined && (went != Connected || !live):
		return "leaves a connected frontend waiting"
	case s.front == Initialising && connected:
		return "keeps rings that a new frontend knows nothing of"
	case s.refused && went != Closed && s.front != Closing:
		return "stays up although it was refused"
	}
	return ""
}

// TestPlanComesToRest: what a plan leads to needs no further plan, or the vif
// would keep itself busy.
func TestPlanComesToRest(t *testing.T) {
	situations(func(s situation) {
		if !s.possible() {
			return
		}
		after, ok := s.after(plan(s))
		if !ok {
			return // asks for another frontend, or for time
		}
		// Unregister is repeated, and finds nothing to do. So are the TAP of a
		// vif that was claimed and the answer to Reconfiguring.
		again := slices.DeleteFunc(plan(after), func(st step) bool {
			return st == stepUnregister || st == stepReconfigured || st == stepTap
		})
		if len(again) > 0 {
			t.Errorf("%+v: after %v comes %v", s, plan(s), again)
		}
	})
}

// after is the situation when the steps were taken.
func (s situation) after(steps []step) (_ situation, ok bool) {
	for _, st := range steps {
		if state, ok := shown(st); ok {
			s.own, s.overwritten = state, false
		}
		switch st {
		case stepPublish:
			s.bare = false
		case stepConnect:
			s.connected, s.stale, s.claimed = true, false, false
		case stepDisconnect:
			s.connected, s.live, s.stale = false, false, false
		case stepPlug:
			s.live = true
		case stepGrace, stepUnexpected:
			return s, false
		}
	}
	return s, true
}

func TestPlan(t *testing.T) {
	up := func(own, front State) situation { return situation{own: own, front: front, online: true} }
	with := func(s situation, flags string) situation {
		for _, f := range strings.Fields(flags) {
			map[string]func(){
				"connected":   func() { s.connected = true },
				"stale":       func() { s.stale = true },
				"plugged":     func() { s.plugged = true },
				"live":        func() { s.live = true },
				"refused":     func() { s.refused = true },
				"quarantined": func() { s.quarantined = true },
				"bare":        func() { s.bare = true },
				"claimed":     func() { s.claimed = true },
				"overwritten": func() { s.overwritten = true },
				"offline":     func() { s.online = false },
				"detach":      func() { s.online, s.detach = false, true },
				"forced":      func() { s.forced = true },
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
		// The rows of frontend_changed.
		{"new device", up(Initialising, Initialising), "publish init-wait"},
		{"kexec: frontend jumps from 4 to 1", with(up(Connected, Initialising), running), "disconnect closing closed publish init-wait"},
		{"driver loaded again", up(Closed, Initialising), "publish init-wait"},
		{"driver loaded again before we were Closed", up(Closing, Initialising), "closed publish init-wait"},
		{"frontend still where it starts", up(InitWait, Initialising), ""},
		{"resumed before hotplug was done", with(up(InitWait, Initialising), "connected"), "disconnect"},
		{"frontend in InitWait", up(InitWait, InitWait), "unexpected"},
		{"frontend stays in InitWait", with(up(Closed, InitWait), "refused"), ""},
		{"frontend in Reconfigured", with(up(Connected, Reconfigured), running), "unexpected"},
		{"frontend Initialised", up(InitWait, Initialised), ""},
		{"frontend Initialised early", up(Initialising, Initialised), "publish init-wait"},
		{"connect", with(up(InitWait, Connected), "plugged"), "connect plug connected"},
		{"connect before hotplug", up(InitWait, Connected), "connect"},
		{"waiting for hotplug", with(up(InitWait, Connected), "connected"), ""},
		{"hotplug done", with(up(InitWait, Connected), "connected plugged"), "plug connected"},
		{"connected and content", with(up(Connected, Connected), running), ""},
		{"guest was connected when the device appeared", with(up(Initialising, Connected), "plugged"), "publish init-wait connect plug connected"},
		{"connected again while we are Closed", with(up(Closed, Connected), "plugged"), "publish init-wait connect plug connected"},
		{"connected again while we are Closing", with(up(Closing, Connected), "plugged"), "closed publish init-wait connect plug connected"},
		{"frontend closes", with(up(Connected, Closing), running), "disconnect closing"},
		{"frontend closes before hotplug", with(up(InitWait, Closing), "connected"), "disconnect closing"},
		{"frontend closes a device never seen", up(Initialising, Closing), "closed closing"},
		{"frontend closes while we are Closed", up(Closed, Closing), "closing"},
		{"frontend closed after Closing", up(Closing, Closed), "closed"},
		{"frontend closed at once", with(up(Connected, Closed), running), "disconnect closing closed"},
		{"frontend closed before it connected", up(InitWait, Closed), "closing closed"},
		{"frontend closed and the device unwanted", with(up(Closing, Closed), "offline"), "closed unregister"},
		{"frontend directory gone", with(up(Connected, Unknown), running), "disconnect closing closed unregister"},
		{"frontend reconfigures", with(up(Connected, Reconfiguring), running), "reconfigured"},
		{"frontend reconfigures too early", up(InitWait, Reconfiguring), ""},

		// Other rings, no rings, and the wrong ones.
		{"other rings while Connected", with(up(Connected, Connected), running+" stale"), "disconnect connect plug"},
		{"other rings before hotplug", with(up(InitWait, Connected), "connected stale"), "disconnect connect"},
		{"taken over from a predecessor", with(up(Connected, Connected), "plugged"), "connect plug"},
		{"taken over in mid reconfiguration", with(up(Connected, Reconfiguring), "plugged"), "connect plug reconfigured"},
		{"taken over, but the TAP was deleted", up(Connected, Connected), "connect"},
		{"hotplug done again for a new TAP", with(up(Connected, Connected), "connected plugged"), "plug"},
		{"closed by others before the guest came", with(up(InitWait, Initialising), "overwritten"), "init-wait"},
		{"closed by others, guest has come", with(up(InitWait, Connected), "overwritten plugged"), "connect plug connected"},
		{"claimed from another back end", with(up(Connected, Connected), "claimed"), "tap"},
		{"claimed, the script is through", with(up(Connected, Connected), "claimed plugged"), "connect plug"},
		{"claimed before the guest has connected", with(up(InitWait, Initialising), "claimed bare"), "publish"},
		{"claimed while the guest connects", with(up(InitWait, Connected), "claimed bare"), "publish connect"},
		{"taken over before it connected", with(up(InitWait, Initialising), "bare"), "publish"},
		{"taken over, guest connected meanwhile", with(up(InitWait, Connected), "bare plugged"), "publish connect plug connected"},
		{"taken over, guest closed meanwhile", with(up(InitWait, Closed), "bare"), "closing closed"},
		{"refused to connect", with(up(InitWait, Connected), "refused plugged"), "closing closed"},
		{"refused, and still the same", with(up(Closed, Connected), "refused plugged"), ""},
		{"refused when taking over", with(up(Connected, Connected), "refused plugged"), "closing closed"},
		{"could not be published", with(up(Initialising, Initialising), "refused"), "closed"},
		{"refused, and the frontend goes", with(up(Closed, Closed), ""), ""},
		{"quarantined", with(up(Connected, Connected), "quarantined plugged"), ""},
		{"quarantined before hotplug", with(up(InitWait, Connected), "quarantined plugged"), ""},
		{"closing after a quarantine", with(up(Connected, Closing), "plugged"), "closing"},

		// The toolstack.
		{"detach, frontend alive", with(up(Connected, Connected), running+" detach"), "grace"},
		{"detach, frontend closing", with(up(Connected, Closing), running+" detach"), "disconnect closing grace"},
		{"detach, frontend closed", with(up(Closing, Closed), "detach"), "closed unregister"},
		{"detach, frontend silent", with(up(Connected, Connected), running+" detach forced"), "disconnect closed unregister"},
		{"detach, frontend gone", with(up(Connected, Unknown), running+" detach"), "disconnect closed unregister"},
		{"detach, frontend never connected", with(up(InitWait, Initialising), "detach"), "closed unregister"},
		{"detach of what is closed", with(up(Closed, Connected), "detach"), "unregister"},
		{"detach before the device was looked at", with(up(Initialising, Initialising), "detach"), "closed unregister"},
		{"unwanted and closed, guest comes again", with(up(Closed, Initialising), "offline"), "unregister"},
		{"unwanted, guest connects", with(up(InitWait, Connected), "offline plugged"), ""},
		{"unwanted but in use", with(up(Connected, Connected), running+" offline"), ""},
		{"unwanted, in use, taken over", with(up(Connected, Connected), "offline plugged"), "connect plug"},
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

// TestClosedWithinOneLook: whatever the guest does, once its time is up one look
// closes the device.
func TestClosedWithinOneLook(t *testing.T) {
	situations(func(s situation) {
		if !s.possible() || !s.forced {
			return
		}
		steps := plan(s)
		if steps[len(steps)-1] != stepUnregister || s.own != Closed && steps[len(steps)-2] != stepClosed {
			t.Errorf("%+v: %v", s, steps)
		}
	})
}
