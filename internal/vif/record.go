// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/netengine"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// record holds the facts about a vif that a successor needs and that are neither in
// xenstore nor in the TAP or the journals. The whole file is written when it changes: when
// a connection begins, ends, is quarantined or stalls. The file is JSON, and is removed
// with the device.
type record struct {
	// Interface is the index of the TAP. FullMTU is the MTU that it gets back when a
	// frontend with scatter-gather connects; see limitMTU.
	Interface int `json:"interface,omitempty"`
	FullMTU   int `json:"full_mtu,omitempty"`

	// Connection is the stamp of the connection that Quarantine, a reason, and
	// Stalled, a list of queues, belong to.
	Connection netif.Stamp `json:"connection,omitzero"`
	Quarantine string      `json:"quarantine,omitempty"`
	Stalled    []int       `json:"stalled,omitempty"`

	// Counters are the sums of all connections until the record was written, by name.
	Counters map[string]uint64 `json:"counters,omitempty"`
}

// recordName returns the name of the file with a vif's record.
func recordName(id xenbus.VifID) string { return "vif-" + number(id) }

// recordPath returns the path of the file, empty without a run directory.
func recordPath(runDir string, id xenbus.VifID) string {
	if runDir == "" {
		return ""
	}
	return filepath.Join(runDir, recordName(id))
}

// saveRecord writes the record if it has changed. An error is logged and does not affect
// the vif; a successor will then use the old record.
func (v *Vif) saveRecord() {
	if v.cfg.RunDir == "" {
		return
	}
	r := record{FullMTU: v.fullMTU, Connection: v.block.stamp, Quarantine: v.block.reason}
	if v.tap != nil {
		r.Interface = v.tap.Index()
	}
	if c := v.conn; c != nil {
		r.Connection = c.Stamp
		for i, stalled := range c.stalled {
			if stalled {
				r.Stalled = append(r.Stalled, i)
			}
		}
	}
	for c, n := range v.counters() {
		if n != 0 {
			if r.Counters == nil {
				r.Counters = map[string]uint64{}
			}
			r.Counters[dataplane.Counters[c].Name] = n
		}
	}
	if err := v.saved.Save(&r); err != nil {
		v.log.Warn("record not written", zap.Error(err))
	}
}

// saveEvery bounds the age of the counters in the record when they are shown. So the
// counters of a successor are not lower than those shown saveEvery before the restart.
const saveEvery = 10 * time.Second

// saveCounters writes the counters that are about to be shown, unless that was done in
// the last saveEvery.
func (v *Vif) saveCounters(now time.Time) {
	if v.conn != nil && now.Sub(v.saved.SavedAt()) >= saveEvery {
		v.saveRecord()
	}
}

// counters returns the sums of all connections so far.
func (v *Vif) counters() [dataplane.NumCounters]uint64 {
	totals := v.totals
	n := v.link.Counters()
	netengine.AddCounters(&totals, &n)
	return totals
}

// loadRecord adopts the record of a predecessor.
func (v *Vif) loadRecord() {
	var r record
	found, err := v.saved.Load(&r)
	if err != nil {
		v.log.Warn("record not read", zap.Error(err))
	}
	if !found {
		return
	}
	v.predecessor = r
	for c := range v.totals {
		v.totals[c] = r.Counters[dataplane.Counters[c].Name]
	}
	if r.Quarantine != "" {
		// The quarantine continues unless the frontend has reconnected meanwhile,
		// which only its rings show.
		v.block = block{reason: r.Quarantine, stamp: r.Connection}
	}
}

// removeRecord removes the record of a device that is gone.
func (v *Vif) removeRecord() {
	v.predecessor = record{}
	v.totals = [dataplane.NumCounters]uint64{}
	if err := v.saved.Remove(); err != nil {
		v.log.Warn("file not removed", zap.Error(err))
	}
}

// adoptMTU adopts the MTU that the TAP gets back, if this is the TAP whose MTU a
// predecessor has lowered.
func (v *Vif) adoptMTU(info *tap.Info) {
	if v.predecessor.FullMTU != 0 && v.predecessor.Interface == v.tap.Index() && info.MTU == defaultMTU {
		v.fullMTU = v.predecessor.FullMTU
	}
}

// adoptQuarantine continues a quarantine that a predecessor began, unless the frontend has
// reconnected.
func (v *Vif) adoptQuarantine(ctx context.Context) error {
	if v.block.reason == "" || v.block.attempt != nil {
		return nil
	}
	if v.guest.offer.frontend == nil || v.block.stamp.IsZero() || v.blockedRingsRenewed() {
		v.block = block{}
		return nil
	}
	v.block.attempt = v.attempt()
	v.reportError(ctx, "quarantine adopted", errors.New("quarantined: "+v.block.reason))
	return v.ensureTap(ctx)
}

// adoptStall marks the queues that had no rx slots when a predecessor ended, so that the
// TAP has no carrier before they have some.
func (v *Vif) adoptStall(c *connection, queues []bool) {
	if !c.Known || v.predecessor.Connection != c.Stamp {
		return
	}
	for _, i := range v.predecessor.Stalled {
		if i >= 0 && i < len(queues) {
			queues[i], c.stalled[i], c.notices.stalled[i] = true, true, true
		}
	}
	v.predecessor.Stalled = nil // from now on the connection has them
	if slices.Contains(c.stalled, true) {
		v.log.Info("guest posted no rx slots when the predecessor ended", zap.Bools("queues", c.stalled))
	}
}
