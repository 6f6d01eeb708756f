// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"testing"

	"github.com/netbackd/netbackd/pkg/xenbus"
)

// TestLife takes a vbd through its whole life, twice, with its guest closing in between.
func TestLife(t *testing.T) {
	w := newWorld(t)
	w.attach()
	w.wantSteps("init-wait")
	w.wantKeys("state", "2", "feature-max-indirect-segments", "256", "multi-queue-max-queues", "4", "max-ring-page-order", "4", "sectors", "-")
	w.publish(1, 0)
	w.frontState(xenbus.Initialised)
	w.wantSteps("") // the disk is not ready
	if w.locked() {
		t.Error("the disk is open before its hotplug script is done")
	}
	w.plugIn()
	w.wantSteps("open connect connected")
	w.wantKeys("state", "4", "feature-flush-cache", "1", "feature-barrier", "1", "feature-discard", "1", "feature-persistent", "1",
		"sectors", "256", "info", "0", "sector-size", "512", "discard-alignment", "0", "discard-secure", "0")
	w.frontState(xenbus.Connected)
	w.wantSteps("")
	w.works(0)
	if !w.locked() {
		t.Error("the disk of a connected vbd is not locked")
	}

	w.frontState(xenbus.Closing)
	w.wantSteps("closing")
	w.works(0) // it may be in use still
	w.frontState(xenbus.Closed)
	w.wantSteps("disconnect closed")
	w.wantHeld(nothing)
	if got := w.files(); got != "vbd-7-51712" {
		t.Errorf("files of a closed vbd: %s", got)
	}
	w.frontState(xenbus.Initialising)
	w.wantSteps("init-wait")
	w.publish(4, 4)
	w.frontState(xenbus.Initialised)
	w.wantSteps("connect connected")
	w.frontState(xenbus.Connected)
	w.wantSteps("")
	for q := range 4 {
		w.works(q)
	}

	w.detach()
	w.wantSteps("grace")
	w.frontState(xenbus.Closed)
	w.wantSteps("disconnect release closed release")
	w.wantState("6")
	w.wantHeld(nothing)
	if w.locked() {
		t.Error("a vbd that is gone has the lock")
	}
	if got := w.files(); got != "" {
		t.Errorf("files of a vbd that is gone: %s", got)
	}
	w.must(w.tool.Remove(t.Context(), backDir))
	w.wantSteps("gone")
}

// TestTaken: a vbd whose device another back end has taken ends, and changes nothing more.
func TestTaken(t *testing.T) {
	w := newWorld(t)
	w.cfg.Taken = func() bool { return true }
	w.restart()
	w.attach("hotplug-status", "connected")
	w.publish(1, 0, "ring-ref", "77777")
	w.frontState(xenbus.Initialised)
	w.wantSteps("init-wait open connect gone")
	w.wantState("2")
	w.wantError("-")
}

// TestChanged: nodes that only the vbd writes do not make it look.
func TestChanged(t *testing.T) {
	w := newWorld(t)
	<-w.v.mail.Poked // New's
	w.v.mail.Changed()
	for key, want := range map[string]unread{
		"": unreadAll, "params": unreadNodes, "hotplug-status": unreadNodes, "queue-0/x": unreadNodes, "state": 0,
	} {
		w.v.Changed(key)
		if got := unread(w.v.mail.Changed()); len(w.v.mail.Poked) != 1 || got != want {
			t.Errorf("%q: %d, want %d", key, got, want)
		}
		<-w.v.mail.Poked
	}
	for _, key := range []string{"sectors", "feature-persistent", "multi-queue-max-queues", "feature-max-indirect-segments"} {
		if w.v.Changed(key); len(w.v.mail.Poked) != 0 {
			t.Errorf("%s makes the vbd look", key)
		}
	}
}
