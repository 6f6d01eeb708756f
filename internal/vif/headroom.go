// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/device"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// headroomKey is the frontend's key for the number of bytes to leave free before each
// packet to the guest, for an XDP program. It is read when the frontend connects and
// when it reconfigures.
//
// To attach a program, Linux's netfront (xennet_xdp_set) writes Reconfiguring, then the
// key, waits until the vif's node shows Reconfigured, gives the program to its queues and
// writes Connected. To remove a program it does the same with 0. The vif's node stays at
// Reconfigured, as with xen-netback. If it showed Connected again, netfront would announce
// its address (netback_changed), for which it needs a lock that it holds while it waits
// for the vif, and the guest would hang. So netfront waits the first time only. It has
// written the key when it is Connected again, so the key is read then as well.
const headroomKey = "xdp-headroom"

// keyGrace bounds the wait for the key of a frontend that reconfigures, if the key stays
// the same: netfront writes it right after its state, even if it has not changed.
const keyGrace = 500 * time.Millisecond

// readHeadroom reads the key. A number that is too large counts as the largest, as in
// xen-netback (read_xenbus_frontend_xdp).
func readHeadroom(k *xenbus.Reader) uint16 {
	v, ok := k.Text(headroomKey)
	if !ok || v == "" {
		return 0
	}
	return uint16(min(k.Parse(headroomKey, v, 0, 1<<16-1), netif.MaxXDPHeadroom))
}

// reconfiguration is the progress of a frontend that reconfigures.
type reconfiguration struct {
	since   time.Time // when Reconfiguring was first seen; zero: it does not reconfigure
	events  int       // events of the key's watch; setting the watch causes the first
	changed bool      // the key has changed
}

// over reports whether the frontend has written its key, or its time is over.
func (r *reconfiguration) over() bool {
	return r.changed || r.events > 1 || time.Since(r.since) >= keyGrace
}

// watchHeadroom watches the key while the frontend reconfigures, until it has written the key
// or keyGrace is over. The node may already show the answer, to the last reconfiguration: the
// frontend does not wait then, and its program runs before it is Connected again.
// watchHeadroom is called when the frontend's state is known, and before its keys are read, so
// that there is an event for a key that is written later.
func (v *Vif) watchHeadroom(ctx context.Context) error {
	if v.guest.state != xenbus.Reconfiguring {
		v.reconf = reconfiguration{}
		v.headroomWatch.Close(v.work)
		return nil
	}
	if v.reconf.since.IsZero() {
		v.reconf.since = time.Now()
	}
	if v.conn == nil || v.reconf.over() {
		v.headroomWatch.Close(v.work)
		return nil
	}
	if v.headroomWatch.Blind() {
		v.reconf.events = 0
	}
	err := v.headroomWatch.Follow(ctx, v.work, v.nodes.frontendDir+"/"+headroomKey)
	if err != nil && !device.Unanswered(err) {
		return nil // a driver domain may run out of watches; the key is read again after keyGrace
	}
	return err
}

// applyHeadroom applies the frontend's key between two batches of packets. A wrong key
// changes nothing; applyMulticast reports it.
func (v *Vif) applyHeadroom() error {
	f := v.guest.offer.frontend
	if v.conn == nil || f == nil || !f.sameRings(v.conn.frontend) || f.headroom == v.conn.frontend.headroom {
		return nil
	}
	v.reconf.changed = true
	if f.headroom == 0 && v.guest.state == xenbus.Reconfiguring {
		// The program stays until the frontend has the answer, and would read packets
		// at the old offset.
		return nil
	}
	if err := v.link.SetHeadroom(f.headroom); err != nil {
		return err
	}
	v.conn.frontend.headroom = f.headroom
	v.log.Info("XDP headroom changed", zap.Uint16("bytes", f.headroom))
	return nil
}
