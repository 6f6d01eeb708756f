// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"fmt"
	"testing"

	"github.com/netbackd/netbackd/pkg/xenbus"
)

// TestChannelsOffered: a frontend that will have one queue on one vcpu is offered one channel
// for both rings, unless its directory has keys of split channels.
func TestChannelsOffered(t *testing.T) {
	for _, tt := range []struct {
		name      string
		maxQueues int
		vcpus     int      // that the toolstack lists
		stale     []string // keys of the frontend
		want      string
	}{
		{"vcpus not known", 4, 0, nil, "1"},
		{"one vcpu", 4, 1, nil, "0"},
		{"two vcpus", 4, 2, nil, "1"},
		{"one queue", 1, 0, nil, "0"},
		{"one queue, four vcpus", 1, 4, nil, "0"},
		{"one channel before", 4, 1, []string{"event-channel"}, "0"},
		{"split channels before", 4, 1, []string{"event-channel", "event-channel-tx", "event-channel-rx"}, "1"},
		{"one queue, split channels before", 1, 4, []string{"event-channel-rx"}, "1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.v.cfg.MaxQueues = tt.maxQueues
			for i := range tt.vcpus {
				w.must(w.tool.Write(t.Context(), fmt.Sprintf("/local/domain/%d/cpu/%d/availability", domid, i), "online"))
			}
			w.attach()
			for _, key := range tt.stale {
				w.must(w.guest.Write(t.Context(), frontDir+"/"+key, "77"))
			}
			w.wantSteps("publish init-wait")
			w.wantNode("feature-split-event-channels", tt.want)
		})
	}
}

// TestChannelsStay: what is offered to the next connection does not change one that is there.
// A successor serves a connection with either number of channels, not only what it offers.
func TestChannelsStay(t *testing.T) {
	for _, split := range []bool{true, false} {
		t.Run(fmt.Sprintf("split %t", split), func(t *testing.T) {
			w := newWorld(t)
			if split {
				w.must(w.tool.Write(t.Context(), fmt.Sprintf("/local/domain/%d/cpu/0/availability", domid), "online"))
			}
			w.attach("hotplug-status", "connected")
			w.settle()
			w.rings(1, split)
			w.frontState(xenbus.Connected)
			w.wantSteps("connect plug connected")
			ports := 1
			if split {
				ports = 2
			}
			check := func() {
				t.Helper()
				w.wantState("4")
				w.wantError("-")
				if got := w.status().Ports; got != ports {
					t.Errorf("%d ports are bound, want %d", got, ports)
				}
			}
			check()
			w.successor()
			w.settle()
			check()
			// The guest connects anew, with the keys of the old connection still there.
			w.frontState(xenbus.Closing)
			w.settle()
			w.frontState(xenbus.Closed)
			w.settle()
			w.frontState(xenbus.Initialising)
			w.settle()
			w.wantNode("feature-split-event-channels", "1")
			w.rings(1, split)
			w.frontState(xenbus.Connected)
			w.settle()
			check()
		})
	}
}
