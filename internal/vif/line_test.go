// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// wantLine checks that the line of a running vif has what its status has, with the TAPs that
// are up and, so that the vif is asked, without them.
func (w *world) wantLine() {
	w.t.Helper()
	up, err := tap.Up()
	w.must(err)
	for _, taps := range []map[int]bool{up, nil} {
		s, ok := w.v.Status(w.t.Context())
		got, there := w.v.Line(w.t.Context(), taps)
		if !ok || !there {
			w.t.Fatalf("status %v, line %v", ok, there)
		}
		want := s.Line()
		shown := map[string]uint64{}
		for _, c := range []string{"tx_packets", "tx_bytes", "rx_packets", "rx_bytes"} {
			if n := want.Counters[c]; n != 0 {
				shown[c] = n
			}
		}
		want.Counters = shown
		if diff := cmp.Diff(want, got); diff != "" {
			w.t.Errorf("line (-status +line)\n%s", diff)
		}
	}
}

func TestLine(t *testing.T) {
	w := newWorld(t)
	if _, ok := w.v.Line(cancelled(), nil); ok {
		t.Error("a line of a vif that does not run yet")
	}
	w.attach()
	w.run()
	w.awaitState(xenbus.InitWait)
	w.wantLine()
	w.rings(2, false)
	w.frontState(xenbus.Connected)
	w.plugIn()
	w.awaitState(xenbus.Connected)
	w.wantLine()
	w.must(netns.Down(ifname))
	w.wantLine()
	if l, ok := w.v.Line(t.Context(), map[int]bool{}); !ok || l.Waits != "an administrator to bring the interface up" {
		t.Errorf("with a TAP that is down: %+v", l)
	}
	w.breachRunning()
	w.wantLine()
	w.v.Shown()
	w.frontState(xenbus.Closed)
	w.awaitState(xenbus.Closed)
	w.wantLine()
	w.detach()
	w.must(w.tool.Remove(t.Context(), backDir))
	<-w.v.Done()
	if _, ok := w.v.Line(t.Context(), map[int]bool{}); ok {
		t.Error("a line of a vif that has ended")
	}
}

// cancelled returns a context that has ended.
func cancelled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
