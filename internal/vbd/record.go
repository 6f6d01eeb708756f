// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/blkengine"
	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// record holds the facts about a vbd that a successor needs and that are neither in xenstore
// nor in the journals. It is written when a connection begins, ends or is quarantined.
type record struct {
	// Connection is the stamp of the connection, to which Quarantine, a reason, belongs.
	Connection xen.Stamp `json:"connection,omitzero"`
	Quarantine string    `json:"quarantine,omitempty"`

	// Counters are the sums of all connections until the record was written, by name.
	Counters map[string]uint64 `json:"counters,omitempty"`
}

// recordName returns the name of the file with a vbd's record.
func recordName(id xenbus.DeviceID) string { return id.String() }

func recordPath(runDir string, id xenbus.DeviceID) string {
	if runDir == "" {
		return ""
	}
	return filepath.Join(runDir, recordName(id))
}

// saveRecord writes the record if it has changed. An error is logged and does not affect
// the vbd; a successor will then use the old record.
func (v *Vbd) saveRecord() {
	r := record{Connection: v.block.stamp, Quarantine: v.block.reason, Counters: v.counters().byName(false)}
	switch c := v.conn.ending; {
	case v.conn.now != nil:
		r.Connection = v.conn.now.stamp
	case c != nil && r.Quarantine == "":
		r.Connection = c.stamp
	}
	if err := v.record.Save(&r); err != nil {
		v.log.Warn("record not written", zap.Error(err))
	}
}

// saveEvery bounds the age of the counters in the record when they are shown. So the
// counters of a successor are not lower than those shown saveEvery before the restart.
const saveEvery = 10 * time.Second

// saveCounters writes the counters that are about to be shown, unless that was done in
// the last saveEvery.
func (v *Vbd) saveCounters(now time.Time) {
	if v.conn.now != nil && now.Sub(v.record.SavedAt()) >= saveEvery {
		v.saveRecord()
	}
}

// loadRecord adopts the record of a predecessor.
func (v *Vbd) loadRecord() {
	found, err := v.record.Load(&v.predecessor)
	if err != nil {
		v.log.Warn("record not read", zap.Error(err))
	}
	if !found {
		return
	}
	for c := range v.conn.totals {
		v.conn.totals[c] = v.predecessor.Counters[blkplane.Counters[c].Name]
	}
	if reason := v.predecessor.Quarantine; reason != "" {
		// The quarantine continues unless the frontend has reconnected meanwhile,
		// which only its rings show.
		v.block = block{reason: reason, stamp: v.predecessor.Connection}
	}
}

// forget removes the files of a device that is gone.
func (v *Vbd) forget() {
	v.forgetConnection()
	v.predecessor, v.conn.totals = record{}, totals{}
	if err := v.record.Remove(); err != nil {
		v.log.Warn("record not removed", zap.Error(err))
	}
}

// totals are counters of several queues or connections.
type totals [blkplane.NumCounters]uint64

// add adds the counters of a connection.
func (t *totals) add(c blkengine.Conn) {
	for i := range c.Queues() {
		t.addQueue(c.Counters(i))
	}
}

func (t *totals) addQueue(n totals) {
	for k := range n {
		t[k] += n[k]
	}
}

// byName returns the counters by their names, those that are 0 only if asked for.
func (t *totals) byName(zeros bool) map[string]uint64 {
	m := make(map[string]uint64, len(t))
	for c, n := range t {
		if n != 0 || zeros {
			m[blkplane.Counters[c].Name] = n
		}
	}
	return m
}

// counters returns the sums of all connections so far.
func (v *Vbd) counters() *totals {
	t := v.conn.totals
	for _, c := range []*connection{v.conn.now, v.conn.ending} {
		if c != nil {
			t.add(c.data)
		}
	}
	return &t
}
