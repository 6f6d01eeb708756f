// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// What is kept of a connection counts for that connection alone. Grefs, ports and domain
// ids repeat: a frontend that starts again may name the same ones, while no daemon runs or
// between two looks at its state. So each connection has a stamp. It is in the ring pages,
// from which it vanishes when the frontend makes its rings anew; in the journals; and in
// the record of the control ring. See [netif.Stamp].
//
// What belongs to the device needs no stamp: the state node tells. A device that the
// toolstack has made anew is Initialising, and goes to InitWait only when nothing is left
// of the one before.

// identify finds out which connection the rings belong to. If it was served before, what
// was kept of it is in force again. If not, nothing that was kept is.
func (v *Vif) identify(c *connection, queues []dataplane.QueueConfig) error {
	keys := make([]dataplane.RingKeys, len(queues))
	stamped, given := true, false
	for i := range queues {
		k := &keys[i]
		k.TxGref, k.RxGref = c.frontend.queues[i].txGref, c.frontend.queues[i].rxGref
		var err error
		if k.Tx, err = netif.ReadHeader(queues[i].TxPage); err != nil {
			return err
		}
		if k.Rx, err = netif.ReadHeader(queues[i].RxPage); err != nil {
			return err
		}
		given = given || k.Served()
		c.served = c.served || k.Served() || !k.Tx.Stamp.IsZero() || !k.Rx.Stamp.IsZero()
		stamped = stamped && k.Tx.Stamp == keys[0].Tx.Stamp && k.Rx.Stamp == keys[0].Tx.Stamp
	}
	ours := make([]bool, len(queues))
	unstamped := false
	agree := true
	for i, j := range c.journals {
		if ours[i] = j.Names(&keys[i]); ours[i] {
			c.known = true
			unstamped = unstamped || j.Stamp().IsZero()
			agree = agree && j.Agrees(&keys[i])
		}
	}
	if unstamped {
		// The predecessor made no stamps. Its rings differ from new ones by what was
		// answered in them. Nothing is lost of rings in which nothing was.
		stamped = given
	}
	if c.known = c.known && stamped && agree; !c.known {
		clear(ours)
		v.mcast.Clear()
		v.removeControl()
	}
	if c.known && !unstamped {
		c.stamp = keys[0].Tx.Stamp
	} else {
		c.stamp = netif.NewStamp()
	}
	for i, j := range c.journals {
		if !ours[i] { // of another connection, or damaged
			j.Begin(c.stamp, keys[i].TxGref, keys[i].RxGref)
		}
	}
	return nil
}

// writeStamps writes the stamp into the rings. The journals must have it before that: a
// daemon killed in between would leave rings that look as if what was kept of them were
// lost. Journals of a predecessor that made no stamps get it last, since they count
// without one until then.
func (c *connection) writeStamps(queues []dataplane.QueueConfig) error {
	for i := range queues {
		for _, page := range [...][]byte{queues[i].TxPage, queues[i].RxPage} {
			if err := netif.WriteStamp(page, c.stamp); err != nil {
				return err
			}
		}
	}
	for _, j := range c.journals {
		if j.Stamp() != c.stamp {
			j.Restamp(c.stamp)
		}
	}
	return nil
}

// clearStamps removes the stamp from the rings. If a frontend uses the pages again, that
// is another connection, of which nothing is known.
func (c *connection) clearStamps() {
	for _, m := range c.mappings {
		_ = netif.WriteStamp(m.Bytes(), netif.Stamp{}) // fails only for what is not a page
	}
}

// ringsRenewed reports whether the frontend has made one of its rings anew.
func (c *connection) ringsRenewed() bool {
	for _, m := range c.mappings {
		if h, err := netif.ReadHeader(m.Bytes()); err != nil || h.Stamp != c.stamp {
			return true
		}
	}
	return false
}

// channelsRenewed reports whether the frontend has made its event channels anew, with the
// numbers of those before. Xen has then unbound the back end's ends without telling, and
// no event passes any more. Binding a channel succeeds only if it has no other end. The
// rings may be new as well, although the mapped pages show the stamp: a guest that boots
// another kernel without closing makes them in any pages.
//
// It may only be called when the frontend has written that it is Connected: until then a
// port of that number may belong to another device.
func (v *Vif) channelsRenewed() bool {
	e, err := v.cfg.Host.OpenEvents(v.cfg.ID.Domid)
	if err != nil {
		return false
	}
	_, err = e.BindInterdomain(v.cfg.ID.Domid, v.conn.frontend.queues[0].txPort)
	if cerr := e.Close(); cerr != nil {
		v.log.Warn("close event channels failed", zap.Error(cerr))
	}
	return err == nil
}

// blockedRingsRenewed reports whether a quarantined frontend has made its rings anew and
// named them by the same keys, which means that it has reconnected.
func (v *Vif) blockedRingsRenewed() bool {
	f := v.guest.offer.frontend
	if v.block.stamp.IsZero() || f == nil {
		return false
	}
	m, err := v.cfg.Host.Grants().Map(v.cfg.ID.Domid, []xen.Gref{f.queues[0].txGref}, gntdev.ReadWrite)
	if err != nil {
		return false
	}
	h, err := netif.ReadHeader(m.Bytes())
	if uerr := m.Unmap(); uerr != nil {
		v.log.Warn("unmap ring failed", zap.Error(uerr))
	}
	return err == nil && h.Stamp != v.block.stamp
}
