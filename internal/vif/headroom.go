// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// headroomKey is the frontend's key that says how many bytes are to be free before each
// packet to the guest, for an XDP program. It counts when the frontend connects and when
// it reconfigures.
//
// Linux's netfront attaches a program so (xennet_xdp_set): it writes Reconfiguring, then
// the key, waits until our node shows Reconfigured, hands the program to its queues and
// writes Connected. Taking a program away is the same with 0. Our node stays at
// Reconfigured, as with xen-netback: were it to show Connected again, netfront would
// announce its address (netback_changed), for which it needs a lock that it holds while
// it waits for us, and the guest would hang. So netfront waits the first time only. It
// has written the key when it is Connected again, so that is read then as well.
const headroomKey = "xdp-headroom"

// keyGrace bounds the wait for the key of a frontend that reconfigures, if the key is as
// before: netfront writes it right after its state, whether it is another or not.
const keyGrace = 500 * time.Millisecond

// headroom reads the key. A number that is too large is the largest, as in xen-netback
// (read_xenbus_frontend_xdp).
func (k *keyReader) headroom() uint16 {
	v, ok := k.get(headroomKey)
	if !ok || v == "" {
		return 0
	}
	return uint16(min(k.number(headroomKey, v, 0, 1<<16-1), netif.MaxXDPHeadroom))
}

// reconfiguration records what a frontend that reconfigures has said so far.
type reconfiguration struct {
	since  time.Time // when its state was first seen; zero: it does not reconfigure
	events int       // of the watch of the key; the first is the watch's own
	said   bool      // the key is another than it was
}

// over reports whether the frontend has written its key, or had its time.
func (r *reconfiguration) over() bool {
	return r.said || r.events > 1 || time.Since(r.since) >= keyGrace
}

// watchKey watches the key while the frontend reconfigures and waits for the answer. It
// is called when the frontend's state is known, and before its keys are read: a key that
// is written later is told of.
func (v *Vif) watchKey() error {
	if v.front != xenbus.Reconfiguring {
		v.reconf = reconfiguration{}
		v.keyWatch.close(v)
		return nil
	}
	if v.reconf.since.IsZero() {
		v.reconf.since = time.Now()
	}
	if v.link == nil || v.nodes.state == xenbus.Reconfigured || v.reconf.over() {
		v.keyWatch.close(v)
		return nil
	}
	if v.keyWatch.w == nil {
		v.reconf.events = 0
	}
	err := v.keyWatch.follow(v, v.nodes.front+"/"+headroomKey)
	if err != nil && !errors.Is(err, xenstore.ErrClosed) {
		return nil // a driver domain may run out of watches; the key is read again in time
	}
	return err
}

// followHeadroom follows the frontend's key, from one batch of packets to the next. One
// that makes no sense is an error, see followMcast, and changes nothing.
func (v *Vif) followHeadroom() error {
	f := v.offer.rings
	if v.link == nil || f == nil || !f.sameRings(v.link.front) || f.headroom == v.link.front.headroom {
		return nil
	}
	v.reconf.said = true
	if f.headroom == 0 && v.front == xenbus.Reconfiguring {
		// The program is there until the frontend has our answer, and would look for
		// packets where they are not any more.
		return nil
	}
	var err error
	v.turn.Aside(func() { err = v.link.conn.SetXDPHeadroom(f.headroom) })
	if err != nil {
		return err
	}
	v.link.front.headroom = f.headroom
	v.log.Info("headroom for the guest's XDP program", zap.Uint16("bytes", f.headroom))
	return nil
}
