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
			for bits := range 1 << 12 * len(allFront) {
				bit := func(i int) bool { return bits>>i&1 != 0 }
				f(situation{
					own: own, front: front, node: allFront[bits>>12],
					online: bit(0), detach: bit(1), forced: bit(2), connected: bit(3),
					stale: bit(4), plugged: bit(5), live: bit(6), refused: bit(7), quarantined: bit(8), bare: bit(9),
					claimed: bit(10), unsaid: bit(11),
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
		s.node == Initialising && s.own != Initialising, // a toolstack made it anew
		s.own == Initialising && s.node != Initialising && s.node != Unknown && !(s.detach && s.node == Closing),
		s.unsaid && (s.front != Reconfiguring || s.own != Connected || s.node == Reconfigured || s.detach),
		s.quarantined && s.connected:
		return false
	}
	return true
}

// legal are the states that a vif may go to from each; see plan.
var legal = map[State][]State{
	Initialising: {InitWait, Closed},
	InitWait:     {Connected, Closing},
	Connected:    {Closing},
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
	node := s.node
	connected, live, bare, unregistered, went := s.connected, s.live, s.bare, false, s.own
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
			case state == went && state == InitWait && s.node == Closing && s.front != Initialising && s.front != Initialised:
				return "hides Closing from a frontend that has seen it"
			case state != went && !slices.Contains(legal[went], state) && !s.detach:
				return fmt.Sprintf("%v after %v", state, went)
			case state == Connected && state != went && (!connected || !live || !s.plugged || !s.online):
				return "Connected too early"
			case (state == Closing || state == Closed) && connected:
				return fmt.Sprintf("%v with the guest's pages mapped", state)
			case (state == InitWait || state == Connected) && s.refused && state != went:
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
			if s.front != Reconfiguring || node == Reconfigured || went == Initialising {
				return "answers what was not asked, or twice"
			}
			if s.unsaid && went == Connected {
				return "answers before the frontend has said what it wants"
			}
			node = Reconfigured
		case stepDetaching:
			if !s.detach || node == Closing {
				return "shows a wish that the toolstack does not have, or that is shown"
			}
			node = Closing
		case stepAwaitKey:
			if went != Connected || !s.unsaid {
				return "waits for a key that will not come"
			}
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
	case s.unsaid && !slices.Contains(steps, stepAwaitKey) && went == Connected:
		return "does not wait for what the frontend wants"
	case s.front == Reconfiguring && node != Reconfigured && !(s.unsaid && went == Connected) && went != Initialising && !(went == Closed && !s.online):
		return "leaves a frontend without the answer that it waits for"
	case s.front != Reconfiguring && node == Reconfigured && went != Connected:
		return "lets an answer stand for where it is"
	case node == Unknown && went != Initialising:
		return "shows no state"
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
			return // asks for another frontend
		}
		// Unregister is repeated, and finds nothing to do. So are the TAP of a
		// vif that was claimed and the alarm for the end of the grace.
		again := slices.DeleteFunc(plan(after), func(st step) bool {
			return st == stepUnregister || st == stepGrace || st == stepTap
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
			s.own, s.node = state, state
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
		case stepReconfigured:
			s.node = Reconfigured
		case stepDetaching:
			s.node = Closing
		case stepAwaitKey, stepUnexpected:
			return s, false
		}
	}
	return s, true
}

func TestPlan(t *testing.T) {
	up := func(own, front State) situation { return situation{own: own, node: own, front: front, online: true} }
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
				"nonsense":    func() { s.node = Unknown },
				"shows5":      func() { s.node = Closing },
				"shows6":      func() { s.node = Closed },
				"shows8":      func() { s.node = Reconfigured },
				"unsaid":      func() { s.unsaid = true },
				"offline":     func() { s.online = false },
				"detach": func() {
					s.online, s.detach = false, true
					if s.own != Closed {
						s.node = Closing // the toolstack's
					}
				},
				"forced": func() { s.forced = true },
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
		{"frontend Initialised while we are Closed", up(Closed, Initialised), "publish init-wait"},
		{"frontend Initialised while we are Closing", up(Closing, Initialised), "closed publish init-wait"},
		{"frontend Initialised while Connected", with(up(Connected, Initialised), running), ""},
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
		{"frontend reconfigures while the script runs", with(up(InitWait, Reconfiguring), "connected"), "reconfigured"},
		{"frontend reconfigures before it has connected", up(InitWait, Reconfiguring), "reconfigured"},
		{"frontend reconfigures a device never seen", up(Initialising, Reconfiguring), "publish init-wait reconfigured"},
		{"frontend reconfigures while we are Closing", up(Closing, Reconfiguring), "reconfigured"},
		{"frontend reconfigures while we are Closed", up(Closed, Reconfiguring), "reconfigured"},
		{"frontend reconfigures, and was refused", with(up(Closed, Reconfiguring), "refused"), "reconfigured"},
		{"frontend reconfigures what is refused now", with(up(InitWait, Reconfiguring), "refused"), "closing closed reconfigured"},
		{"frontend reconfigures while it is in quarantine", with(up(Connected, Reconfiguring), "quarantined"), "reconfigured"},
		{"frontend has its answer", with(up(Connected, Reconfiguring), running+" shows8"), ""},
		{"frontend has its answer in InitWait", with(up(InitWait, Reconfiguring), "shows8"), ""},
		{"frontend goes on after its answer", with(up(Connected, Connected), running+" shows8"), ""},
		{"frontend goes on while the script runs", with(up(InitWait, Connected), "connected shows8"), "init-wait"},
		{"frontend goes on, the script is through", with(up(InitWait, Connected), "connected plugged shows8"), "plug connected"},
		{"frontend begins anew after its answer", with(up(InitWait, Initialising), "shows8"), "init-wait"},
		{"frontend closes after its answer", with(up(Closing, Closing), "shows8"), "closing"},
		{"frontend goes on after its answer, and was refused", with(up(Closed, Connected), "refused shows8"), "closed"},

		// Other rings, no rings, and the wrong ones.
		{"other rings while Connected", with(up(Connected, Connected), running+" stale"), "disconnect connect plug"},
		{"other rings before hotplug", with(up(InitWait, Connected), "connected stale"), "disconnect connect"},
		{"taken over from a predecessor", with(up(Connected, Connected), "plugged"), "connect plug"},
		{"frontend reconfigures and has not said how", with(up(Connected, Reconfiguring), running+" unsaid"), "await-key"},
		{"taken over in mid reconfiguration, and it has not said how", with(up(Connected, Reconfiguring), "plugged unsaid"), "connect plug await-key"},
		{"taken over in mid reconfiguration", with(up(Connected, Reconfiguring), "plugged"), "connect plug reconfigured"},
		{"taken over, but the TAP was deleted", up(Connected, Connected), "connect"},
		{"hotplug done again for a new TAP", with(up(Connected, Connected), "connected plugged"), "plug"},
		{"closed by others before the guest came", with(up(InitWait, Initialising), "shows5"), "init-wait"},
		{"closed by others, guest has come", with(up(InitWait, Connected), "shows5 plugged"), "connect plug connected"},
		{"closed by others, guest waits for the script", with(up(InitWait, Connected), "connected shows5"), ""},
		{"closed by others while Connected", with(up(Connected, Connected), running+" shows6"), ""},
		{"overwritten before the guest came", with(up(InitWait, Initialising), "nonsense"), "init-wait"},
		{"overwritten while the script runs", with(up(InitWait, Connected), "connected nonsense"), "init-wait"},
		{"overwritten while Connected", with(up(Connected, Connected), running+" nonsense"), "connected"},
		{"overwritten while Closing", with(up(Closing, Closing), "nonsense"), "closing"},
		{"overwritten while Closed", with(up(Closed, Closed), "shows5"), "closed"},
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
		{"detach of what is closed, by a toolstack that does not look", with(up(Closed, Closed), "detach shows5"), "closed unregister"},
		{"detach of what is closed, overwritten", with(up(Closed, Closed), "offline nonsense"), "closed unregister"},
		{"detach, frontend reconfigures", with(up(Connected, Reconfiguring), running+" detach"), "reconfigured grace"},
		{"detach, frontend goes on after its answer", with(up(Connected, Connected), running+" detach shows8"), "detaching grace"},
		{"detach, frontend closes after its answer", with(up(Closing, Closing), "detach shows8"), "closing grace"},
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
