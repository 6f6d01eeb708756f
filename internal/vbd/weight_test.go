// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"errors"
	"testing"

	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// TestWeight: the toolstack's key is applied at once, also to a guest that is connected. A wrong
// value changes nothing.
func TestWeight(t *testing.T) {
	w := newWorld(t)
	w.attach("hotplug-status", "connected", "weight", "3")
	w.publish(1, 0)
	w.frontState(xenbus.Initialised)
	w.wantSteps("init-wait open connect connected")
	check := func(value string, want int, text string) {
		t.Helper()
		w.must(w.tool.Write(t.Context(), backDir+"/weight", value))
		w.wantSteps("")
		s := w.v.status()
		guest := w.v.conn.now.data.(interface{ Weight() int }).Weight()
		if s.Weight != want || guest != want || s.Error != text {
			t.Errorf("%q: weight %d, of the guest %d, error %q; want %d, %q", value, s.Weight, guest, s.Error, want, text)
		}
	}
	check("3", 3, "")
	check("16", 16, "")
	check("17", 16, `22 key "weight" is "17", want a number from 1 to 16`)
	check("", 1, `22 key "weight" is "17", want a number from 1 to 16`)
}

// TestQueueIsHeld: the log names the queue of a vbd that does not come back.
func TestQueueIsHeld(t *testing.T) {
	w := newWorld(t)
	w.up(1, 0)
	w.v.conn.now.notices.add(blkplane.Notice{Kind: blkplane.Held, Err: errors.New("late")})
	w.v.handleNotices(t.Context())
	if n := w.log.FilterMessage("queue held up; other queues go on").Len(); n != 1 {
		t.Errorf("%d lines", n)
	}
	w.works(0)
}
