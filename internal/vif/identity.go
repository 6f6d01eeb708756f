// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Journals and records are valid for one connection only. Grefs, ports and domain ids
// repeat: a frontend that starts again may name the same ones, while no daemon runs or
// between two reads of its state. So each connection has a stamp. The stamp is in the ring
// pages, where it disappears when the frontend initialises its rings again; in the
// journals; and in the record of the control ring. See [netif.Stamp].
//
// Data of the device, such as its TAP, needs no stamp, because the state node is enough. A
// device that the toolstack has made again is Initialising, and goes to InitWait only when
// everything of the old device has been removed.

// identify finds out which connection the rings belong to. If this connection was served
// before, its journals, its record and its multicast list are used again. If not, they are
// discarded.
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
		// The predecessor made no stamps. Its rings differ from new ones by the
		// responses in them. Rings without a response can be treated as new.
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
		if !ours[i] { // the journal is of another connection, or damaged
			j.Begin(c.stamp, keys[i].TxGref, keys[i].RxGref)
		}
	}
	return nil
}

// writeStamps writes the stamp into the rings. New journals must have it before that: if
// the daemon is killed in between, the rings would have a stamp that no journal has, as if
// their journals were lost. Journals of a predecessor that made no stamps get it last,
// since they are valid without one until then.
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
// is a new connection.
func (c *connection) clearStamps() {
	for _, m := range c.mappings {
		_ = netif.WriteStamp(m.Bytes(), netif.Stamp{}) // fails only if it is not a page
	}
}

// ringsRenewed reports whether the frontend has initialised one of its rings again.
func (c *connection) ringsRenewed() bool {
	for _, m := range c.mappings {
		if h, err := netif.ReadHeader(m.Bytes()); err != nil || h.Stamp != c.stamp {
			return true
		}
	}
	return false
}

// channelsRenewed reports whether the frontend has allocated its event channels again, with
// the same numbers. Xen has then unbound the back end's ends without an event, and no event
// passes any more. To find out, channelsRenewed binds the first channel, which succeeds
// only if no other end is bound. The rings may be new as well, although the mapped pages
// have the stamp: a guest that boots another kernel without closing allocates them in other
// pages.
//
// It may only be called after the frontend has written Connected: until then a port of
// that number may belong to another device.
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

// blockedRingsRenewed reports whether a quarantined frontend has reconnected: it has
// initialised its rings again, under the same keys.
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
