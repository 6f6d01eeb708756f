// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"strings"
	"testing"

	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// breach makes the guest break the ring protocol, and waits until the vbd has seen it.
func (w *world) breach() {
	w.t.Helper()
	r := &w.rings[0]
	r.front.SetReqProd(r.front.ReqProd() + 4711)
	w.must(w.host.Send(r.keys.port))
	w.eventually("quarantine", func() bool {
		select {
		case <-w.v.conn.events:
			w.v.guard(w.t.Context(), func() { w.v.handleNotices(w.t.Context()) })
		default:
		}
		return w.v.block.reason != ""
	})
}

// reconnect makes the guest close and connect with new rings.
func (w *world) reconnect(want string) {
	w.t.Helper()
	w.frontState(xenbus.Closed)
	w.wantSteps(want)
	w.frontState(xenbus.Initialising)
	w.wantSteps("init-wait")
	w.publish(1, 0)
	w.frontState(xenbus.Initialised)
	w.wantSteps("connect connected")
	w.works(0)
}

// TestQuarantine: a guest that breaks the ring protocol is not served until it reconnects.
func TestQuarantine(t *testing.T) {
	w := newWorld(t)
	w.up(1, 0)
	w.breach()
	w.wantSteps("")
	w.wantState("4")
	w.wantHeld(nothing)
	w.wantError("quarantined: queue 0")
	if s := w.v.status(); s.Quarantine == "" || !strings.Contains(s.Waits, "reset") {
		t.Errorf("status %+v", s)
	}
	w.wantSteps("")
	w.reconnect("closing closed")
	w.wantError("-")
}

// TestQuarantineReset: a reset ends a quarantine. The guest that has mended its ring is
// served, and one that has not is quarantined again.
func TestQuarantineReset(t *testing.T) {
	for _, mended := range []bool{true, false} {
		w := newWorld(t)
		w.up(1, 0)
		w.works(0)
		good := w.rings[0].front.ReqProd()
		w.breach()
		w.wantSteps("")
		if mended {
			w.rings[0].front.SetReqProd(good)
		}
		go func() { (<-w.v.mail.Calls)() }()
		if !w.v.Reset(t.Context()) {
			t.Error("not reset")
		}
		w.wantSteps("connect")
		if mended {
			w.works(0)
			continue
		}
		if w.v.block.reason == "" {
			t.Error("not quarantined again")
		}
		w.wantSteps("")
	}
}

// TestQuarantineAdopted: a quarantine outlives the daemon, until the guest reconnects.
func TestQuarantineAdopted(t *testing.T) {
	w := newWorld(t)
	w.up(1, 0)
	w.breach()
	w.wantSteps("")
	w.restart()
	w.wantSteps("")
	w.wantError("quarantined")
	if s := w.v.status(); s.Quarantine == "" {
		t.Errorf("status %+v", s)
	}
	w.restart()
	w.wantSteps("")
	w.frontState(xenbus.Closed)
	w.wantSteps("closing closed")
	w.frontState(xenbus.Initialising)
	w.wantSteps("init-wait open")
	w.publish(1, 0)
	w.frontState(xenbus.Initialised)
	w.wantSteps("connect connected")

	// The guest reconnects while no daemon runs.
	w.frontState(xenbus.Connected)
	w.breach()
	w.wantSteps("")
	w.stop()
	w.publish(1, 0)
	w.frontState(xenbus.Initialised)
	w.start()
	w.wantSteps("open connect connected")
	w.works(0)
}

// TestQuarantineRenewedRing: a guest whose new ring has the old gref and port has reconnected.
func TestQuarantineRenewedRing(t *testing.T) {
	w := newWorld(t)
	w.up(1, 0)
	w.breach()
	w.wantSteps("")
	r := &w.rings[0]
	f, err := blkif.InitFront(r.mem, blkif.X8664)
	w.must(err)
	r.front = f
	w.frontState(xenbus.Initialised)
	w.wantSteps("connect connected")
	w.works(0)
}

// TestDetachQuarantined: a quarantined device can be removed.
func TestDetachQuarantined(t *testing.T) {
	w := newWorld(t)
	w.up(1, 0)
	w.breach()
	w.detach()
	w.wantSteps("grace")
	w.frontState(xenbus.Closed)
	w.wantSteps("release closed release")
	w.wantState("6")
}

// TestPanic: an error of the program costs the guest its disk, and neither the process nor
// other guests theirs.
func TestPanic(t *testing.T) {
	w := newWorld(t)
	w.up(1, 0)
	w.v.guard(t.Context(), func() { panic("oops") })
	w.wantSteps("")
	w.wantError("internal error: oops")
	w.wantHeld(nothing)
	w.reconnect("closing closed")
}
