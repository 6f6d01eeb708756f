// SPDX-License-Identifier: Apache-2.0

package netengine

import (
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/pkg/netif"
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
// before, its journals and its multicast list are used again. If not, they are discarded.
func (l *link) identify(c *connection) error {
	keys := make([]dataplane.RingKeys, len(c.queues))
	stamped, given := true, false
	for i := range c.queues {
		k := &keys[i]
		k.TxGref, k.RxGref = c.rings.Queues[i].TxGref, c.rings.Queues[i].RxGref
		var err error
		if k.Tx, err = netif.ReadHeader(c.queues[i].TxPage); err != nil {
			return err
		}
		if k.Rx, err = netif.ReadHeader(c.queues[i].RxPage); err != nil {
			return err
		}
		given = given || k.Served()
		c.served = c.served || k.Served() || !k.Tx.Stamp.IsZero() || !k.Rx.Stamp.IsZero()
		stamped = stamped && k.Tx.Stamp == keys[0].Tx.Stamp && k.Rx.Stamp == keys[0].Tx.Stamp
	}
	ours := make([]bool, len(c.queues))
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
		l.mcast.Clear()
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
func (c *connection) writeStamps() error {
	for i := range c.queues {
		for _, page := range [...][]byte{c.queues[i].TxPage, c.queues[i].RxPage} {
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
