// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/netengine"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// Line has the part of a [Status] that a list of all vifs shows. Its JSON has the same
// names, so that a Status is read as a Line, too. Counters that are 0 are left out, and all
// but those of packets, bytes and drops.
type Line struct {
	Name       string            `json:"name"`
	ServedBy   string            `json:"served_by,omitempty"`
	Domid      xen.Domid         `json:"domid"`
	Devid      int               `json:"devid"`
	State      xenbus.State      `json:"state"`
	Waits      string            `json:"waits_for,omitempty"`
	Quarantine string            `json:"quarantine,omitempty"`
	Error      string            `json:"error,omitempty"`
	Stalled    bool              `json:"stalled,omitempty"`
	Features   []string          `json:"features"`
	Queues     []struct{}        `json:"queues"` // one for each
	Counters   map[string]uint64 `json:"counters"`
}

// Line returns the part of s that a list shows.
func (s *Status) Line() Line {
	return Line{
		Name: s.Name, ServedBy: s.ServedBy, Domid: s.Domid, Devid: s.Devid, State: s.State, Waits: s.Waits,
		Quarantine: s.Quarantine, Error: s.Error, Stalled: s.Stalled, Features: s.Features,
		Queues: make([]struct{}, len(s.Queues)), Counters: s.Counters,
	}
}

// outline holds what a Line is made of, as of the end of the vif's last turn.
type outline struct {
	state             xenbus.State
	quarantine, err   string
	waitsUp, waitsNot string // for what the vif waits, by the TAP being up
	stalled           bool
	tap               int  // index of the TAP; 0: there is none
	elsewhere         bool // it is in another network namespace
	features          features
	connected         bool
	queues            int
	live              netengine.Counting // nil: nothing counts
	totals            [dataplane.NumCounters]uint64
}

// expose publishes the outline if it has changed. The vif calls it at the end of each turn.
func (v *Vif) expose() {
	o := outline{
		state: v.own, quarantine: v.block.reason, err: v.errorNode.Text(),
		waitsUp: v.waits(true), waitsNot: v.waits(false), totals: v.totals,
	}
	if v.tap != nil {
		o.tap, o.elsewhere = v.tap.Index(), v.elsewhere
	}
	if c := v.conn; c != nil {
		o.features, o.connected, o.queues = c.frontend.features, true, len(c.frontend.queues)
		o.live = v.link.Counting()
		for _, s := range c.stalled {
			o.stalled = o.stalled || s
		}
	}
	if old := v.outline.Load(); old == nil || *old != o {
		v.outline.Store(&o)
	}
}

// Busy reports whether Line waits for the vif.
func (v *Vif) Busy() bool { return v.busy.Load() }

// Line returns the line of the vif. It does not ask the vif, unless that is busy or its TAP
// is not among those of up: the TAPs of the daemon's own network namespace by their indices,
// and whether they are up. If ctx ends before a busy vif answers, or the vif has ended, ok is
// false and only the fields that never change are set.
func (v *Vif) Line(ctx context.Context, up map[int]bool) (l Line, ok bool) {
	l = Line{
		Name: v.cfg.ID.String(), Domid: v.cfg.ID.Domid, Devid: v.cfg.ID.Devid,
		Features: []string{}, Queues: []struct{}{}, Counters: map[string]uint64{},
	}
	select {
	case <-v.mail.Done:
		return l, false
	default:
	}
	if v.Busy() && !v.mail.Call(ctx, func() {}) {
		return l, false
	}
	o := v.outline.Load()
	isUp, known := up[o.tap]
	if o.tap != 0 && (o.elsewhere || !known) {
		if !v.mail.Call(ctx, func() { isUp = v.tapIsUp() }) {
			return l, false
		}
		o = v.outline.Load()
	}
	l.State, l.Quarantine, l.Error, l.Stalled, l.Waits = o.state, o.quarantine, o.err, o.stalled, o.waitsNot
	if isUp {
		l.Waits = o.waitsUp
	}
	totals := o.totals
	if o.connected {
		l.Features, l.Queues = o.features.names(), make([]struct{}, o.queues)
	}
	if o.live != nil {
		n := o.live.Counters()
		netengine.AddCounters(&totals, &n)
	}
	for c, n := range totals {
		if n != 0 && isListed(dataplane.Counter(c)) {
			l.Counters[dataplane.Counters[c].Name] = n
		}
	}
	return l, true
}

// isListed reports whether a list shows a counter, or the sum of its kind.
func isListed(c dataplane.Counter) bool {
	switch c {
	case dataplane.TxPackets, dataplane.TxBytes, dataplane.RxPackets, dataplane.RxBytes:
		return true
	}
	return dataplane.Counters[c].Kind == dataplane.Drop
}

// tapIsUp reports whether there is a TAP that is up.
func (v *Vif) tapIsUp() bool {
	if v.tap == nil {
		return false
	}
	info, err := v.tap.Info()
	return err == nil && info.Up
}

// Shown makes the vif write its counters into its record, since they were shown; see
// saveCounters. It never blocks.
func (v *Vif) Shown() {
	select {
	case v.shown <- struct{}{}:
	default:
	}
}
