// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"strconv"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/pkg/xenbus"
)

// headroom writes the frontend's key.
func (w *world) headroom(n int) {
	w.t.Helper()
	w.must(w.guest.Write(w.t.Context(), frontDir+"/"+headroomKey, strconv.Itoa(n)))
}

func (w *world) wantHeadroom(want int) {
	w.t.Helper()
	if got := w.status().Headroom; got != want {
		w.t.Errorf("%d bytes of headroom, want %d", got, want)
	}
}

// TestReconfiguring reconfigures as netfront does to attach and detach XDP programs.
// Netfront waits for the answer without a limit, the first time. Packets have headroom
// before the answer, and until the program is gone.
func TestReconfiguring(t *testing.T) {
	w := newWorld(t)
	w.up(1)
	w.headroom(0) // as netfront does when it connects
	w.wantSteps("")
	w.frontState(xenbus.Reconfiguring)
	w.wantSteps("await-key")
	w.wantState("4")
	w.headroom(256)
	w.wantSteps("reconfigured")
	w.wantState("8")
	w.wantHeadroom(256)
	w.frontState(xenbus.Connected)
	w.wantSteps("")
	for _, n := range []int{0, 256, 256, 0} {
		was := w.status().Headroom
		w.frontState(xenbus.Reconfiguring)
		w.wantSteps("") // the node shows it already
		w.headroom(n)
		w.wantSteps("")
		w.wantState("8")
		w.wantHeadroom(max(was, n))
		w.frontState(xenbus.Connected)
		w.wantSteps("")
		w.wantHeadroom(n)
		w.wantHeld("2 pages, 1 handles, 1 ports")
		if s := w.status(); s.State != xenbus.Connected {
			t.Errorf("state %v", s.State)
		}
	}
	w.headroom(256) // written between two looks, with the states around it
	w.frontState(xenbus.Connected)
	w.wantSteps("")
	w.wantHeadroom(256)
	w.frontState(xenbus.Closing)
	w.wantSteps("disconnect closing")
	w.wantState("5")
	w.wantHeadroom(0)
	w.frontState(xenbus.Reconfiguring)
	w.wantSteps("reconfigured")
	w.frontState(xenbus.Closed)
	w.wantSteps("closed")
	w.wantState("6")
}

// TestReconfiguringWithoutAKey: a frontend that does not write its key is answered
// after keyGrace.
func TestReconfiguringWithoutAKey(t *testing.T) {
	w := newWorld(t)
	w.up(1)
	w.frontState(xenbus.Reconfiguring)
	w.wantSteps("await-key")
	w.v.reconf.since = time.Now().Add(-keyGrace)
	w.wantSteps("reconfigured")
	w.wantState("8")
	w.wantHeadroom(0)
}

// TestReconfiguringWithTheSameKey: netfront also writes its key when one program
// replaces another.
func TestReconfiguringWithTheSameKey(t *testing.T) {
	w := newWorld(t)
	w.runConnected()
	w.headroom(0)
	w.frontState(xenbus.Reconfiguring)
	w.eventually("the vif waits for the key", func() bool {
		return w.log.FilterField(zap.Stringer("step", stepAwaitKey)).Len() > 0
	})
	w.headroom(0)
	w.awaitState(xenbus.Reconfigured)
}

// TestReconfiguringAgain: the node shows the answer to the last reconfiguration, so the
// frontend does not wait. It gives its program to its queues before it is Connected again, so
// the key that it writes after its state counts at once.
func TestReconfiguringAgain(t *testing.T) {
	w := newWorld(t)
	w.runConnected()
	status := func() Status {
		s, _ := w.v.Status(t.Context())
		return s
	}
	front := func(state xenbus.State) {
		w.frontState(state)
		w.eventually("the vif has read the state", func() bool { return status().Frontend == state })
	}
	w.headroom(128) // before the state: the vif does not wait, and sets no alarm
	front(xenbus.Reconfiguring)
	w.awaitState(xenbus.Reconfigured)
	front(xenbus.Connected)
	front(xenbus.Reconfiguring)
	w.headroom(256)
	w.eventually("256 bytes of headroom", func() bool { return status().Headroom == 256 })
}

// TestReconfigurationIsOver: the first event of a watch comes from setting it, not from the
// frontend.
func TestReconfigurationIsOver(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		name string
		r    reconfiguration
		want bool
	}{
		{"just begun", reconfiguration{since: now}, false},
		{"watched", reconfiguration{since: now, events: 1}, false},
		{"the key was written", reconfiguration{since: now, events: 2}, true},
		{"the key is another", reconfiguration{since: now, changed: true}, true},
		{"its time is over", reconfiguration{since: now.Add(-keyGrace)}, true},
	} {
		if got := tt.r.over(); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
}

// TestBadHeadroom: a wrong key is an error. It changes nothing for a connected
// frontend. One that connects with it is refused.
func TestBadHeadroom(t *testing.T) {
	w := newWorld(t)
	w.up(1)
	w.frontState(xenbus.Reconfiguring)
	w.headroom(256)
	w.wantSteps("reconfigured")
	w.must(w.guest.Write(t.Context(), frontDir+"/"+headroomKey, "banana"))
	w.frontState(xenbus.Connected)
	w.wantSteps("")
	w.wantHeadroom(256)
	w.wantHeld("2 pages, 1 handles, 1 ports")
	const banana = `22 frontend key "xdp-headroom" is "banana", want a number from 0 to 65535`
	w.wantError(banana)
	w.frontState(xenbus.Initialising)
	w.wantSteps("disconnect closing closed publish init-wait")
	w.rings(1, false)
	w.frontState(xenbus.Connected)
	w.wantSteps("connect closing closed")
	w.wantError(banana)
	w.headroom(0)
	w.wantSteps("publish init-wait connect plug connected")
	w.wantError("-")
}

// TestHeadroomOverARestart: a successor reads the key that the frontend has published while
// no daemon ran, and answers a Reconfiguring that its predecessor did not answer.
func TestHeadroomOverARestart(t *testing.T) {
	for _, tt := range []struct {
		name  string
		left  func(w *world)
		away  func(w *world)
		want  string
		state string
		room  int
	}{
		{"with a program", func(w *world) {
			w.headroom(256)
			w.frontState(xenbus.Reconfiguring)
			w.settle()
			w.frontState(xenbus.Connected)
			w.settle()
		},
			nil, "connect plug", "8", 256},
		{"a program meanwhile", nil, func(w *world) { w.frontState(xenbus.Reconfiguring); w.headroom(256) }, "connect plug await-key", "4", 256},
		{"a program meanwhile, with the node at Reconfigured from the last one",
			func(w *world) {
				w.headroom(0)
				w.frontState(xenbus.Reconfiguring)
				w.v.reconf.since = time.Now().Add(-keyGrace)
				w.settle()
				w.frontState(xenbus.Connected)
				w.settle()
			},
			func(w *world) { w.frontState(xenbus.Reconfiguring); w.headroom(256); w.frontState(xenbus.Connected) }, "connect plug", "8", 256},
		{"none any more", func(w *world) {
			w.headroom(256)
			w.frontState(xenbus.Reconfiguring)
			w.settle()
			w.frontState(xenbus.Connected)
			w.settle()
		},
			func(w *world) { w.headroom(0) }, "connect plug", "8", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.up(1)
			if tt.left != nil {
				tt.left(w)
			}
			w.v.suspend()
			if tt.away != nil {
				tt.away(w)
			}
			w.v = New(w.cfg)
			w.wantSteps(tt.want)
			w.wantHeadroom(tt.room)
			if tt.state == "4" {
				w.v.reconf.since = time.Now().Add(-keyGrace)
				w.wantSteps("reconfigured")
				tt.state = "8"
			}
			w.wantState(tt.state)
			w.wantError("-")
		})
	}
}
