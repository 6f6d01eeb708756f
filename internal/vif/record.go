// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/rundir"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
)

// record holds what a successor must know of a vif that neither xenstore, nor the TAP,
// nor the journals tell. It is written whole when it changes, which is when a
// connection begins, ends, is quarantined or stalls. The file is JSON. It goes with
// the device.
type record struct {
	// Interface is the index of the TAP, FullMTU the MTU that it is to have again
	// when a frontend with scatter-gather comes; see limitMTU.
	Interface int `json:"interface,omitempty"`
	FullMTU   int `json:"full_mtu,omitempty"`

	// Connection names the connection that Quarantine, the reason, and Stalled, the
	// queues, belong to.
	Connection netif.Stamp `json:"connection,omitzero"`
	Quarantine string      `json:"quarantine,omitempty"`
	Stalled    []int       `json:"stalled,omitempty"`

	// Counters are those of all connections until this was written, by name.
	Counters map[string]uint64 `json:"counters,omitempty"`
}

// recordName is the file of a vif's record.
func recordName(domid xen.Domid, devid int) string { return fmt.Sprintf("vif-%d.%d", domid, devid) }

func (v *Vif) recordPath() string {
	return filepath.Join(v.cfg.RunDir, recordName(v.cfg.Domid, v.cfg.Devid))
}

// saveRecord writes down how the vif is. Without room for that it is served all the
// same; a successor then knows less.
func (v *Vif) saveRecord() {
	if v.cfg.RunDir == "" {
		return
	}
	r := record{FullMTU: v.fullMTU, Connection: v.barred, Quarantine: v.reason}
	if v.tap != nil {
		r.Interface = v.tap.Index()
	}
	if l := v.link; l != nil {
		r.Connection = l.stamp
		for i, stalled := range l.stalled {
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
	b, err := json.Marshal(&r)
	if err == nil && string(b) != v.recorded {
		v.savedAt = time.Now()
		if err = rundir.Replace(v.recordPath(), b); err == nil {
			v.recorded = string(b)
		}
	}
	if err != nil {
		v.log.Warn("a successor will not know all of the vif", errField(err))
	}
}

// saveEvery bounds the age of the counters in the record when they are told to others:
// the next daemon's then begin no lower than what was told before that.
const saveEvery = 10 * time.Second

// saveCounters writes the counters down that are about to be told, if it has not been
// done of late.
func (v *Vif) saveCounters(now time.Time) {
	if v.link != nil && now.Sub(v.savedAt) >= saveEvery {
		v.saveRecord()
	}
}

// counters are those of all connections there have been.
func (v *Vif) counters() [dataplane.NumCounters]uint64 {
	totals := v.totals
	if v.link != nil && v.link.conn != nil {
		for i := range v.link.conn.Queues() {
			n := v.link.conn.Stats(i).Snapshot()
			addTotals(&totals, &n)
		}
	}
	return totals
}

// loadRecord takes over what a predecessor has written down.
func (v *Vif) loadRecord() {
	if v.cfg.RunDir == "" {
		return
	}
	b, err := os.ReadFile(v.recordPath())
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	var r record
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		v.log.Warn("what a predecessor knew of the vif is lost", errField(err))
		return
	}
	v.recorded = string(b)
	v.was = r
	for c := range v.totals {
		v.totals[c] = r.Counters[dataplane.Counters[c].Name]
	}
	if r.Quarantine != "" {
		// It lasts if the frontend has not connected anew meanwhile, which only
		// its rings tell.
		v.reason, v.barred = r.Quarantine, r.Connection
	}
}

// removeRecord forgets what was written down of a device that is no more.
func (v *Vif) removeRecord() {
	v.was, v.recorded = record{}, ""
	v.totals = [dataplane.NumCounters]uint64{}
	if v.cfg.RunDir == "" {
		return
	}
	v.removeFile(v.recordPath())
}

// inheritMTU takes over which MTU the TAP is to have again, if it is the one that a
// predecessor set another.
func (v *Vif) inheritMTU(info *tap.Info) {
	if v.was.FullMTU != 0 && v.was.Interface == v.tap.Index() && info.MTU == defaultMTU {
		v.fullMTU = v.was.FullMTU
	}
}

// inheritQuarantine has a quarantine last that a predecessor began, as long as the
// frontend is the one that it was for.
func (v *Vif) inheritQuarantine() error {
	if v.reason == "" || v.tried != nil {
		return nil
	}
	if v.offer.rings == nil || v.barred.IsZero() || v.barredRenewed() {
		v.reason = ""
		return nil
	}
	v.tried = v.attempt()
	v.fail(errors.New("quarantined: " + v.reason))
	return v.makeTap()
}

// inheritStall tells which queues of the connection had no rx slots when a predecessor
// ended: they are not to be given a carrier before they have some.
func (v *Vif) inheritStall(l *link, queues []dataplane.QueueConfig) {
	if !l.known || v.was.Connection != l.stamp {
		return
	}
	for _, i := range v.was.Stalled {
		if i >= 0 && i < len(queues) {
			queues[i].Stalled, l.stalled[i], l.news.stalled[i] = true, true, true
		}
	}
	v.was.Stalled = nil // from here on the link knows
	if slices.Contains(l.stalled, true) {
		v.log.Info("the guest gave no rx slots when the daemon before ended", zap.Bools("queues", l.stalled))
	}
}
