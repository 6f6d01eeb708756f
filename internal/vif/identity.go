// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
)

// What is kept of a connection counts for that connection alone. Grefs, ports and
// domain ids repeat: a frontend that starts again may name the same ones, while no
// daemon runs or between two looks at its state. So each connection has a stamp. It
// stands in the ring pages, from where it goes when the frontend makes rings anew; in
// the journals; and in the record of the control ring. See [netif.Stamp].
//
// What belongs to the device rather than to a connection needs none: the state node
// tells. One that the toolstack made anew is Initialising, and is shown as InitWait
// when nothing is left of the one before.

// identify finds out which connection the rings are of. If it is one that was served
// before, what was kept of it is in force again; if not, nothing that was kept is.
func (v *Vif) identify(l *link, queues []dataplane.QueueConfig) error {
	keys := make([]dataplane.RingKeys, len(queues))
	stamped, given := true, false
	for i := range queues {
		k := &keys[i]
		k.TxGref, k.RxGref = l.front.queues[i].txGref, l.front.queues[i].rxGref
		var err error
		if k.Tx, err = netif.ReadHeader(queues[i].TxPage); err != nil {
			return err
		}
		if k.Rx, err = netif.ReadHeader(queues[i].RxPage); err != nil {
			return err
		}
		given = given || k.Served()
		l.served = l.served || k.Served() || !k.Tx.Stamp.IsZero() || !k.Rx.Stamp.IsZero()
		stamped = stamped && k.Tx.Stamp == keys[0].Tx.Stamp && k.Rx.Stamp == keys[0].Tx.Stamp
	}
	ours := make([]bool, len(queues))
	unstamped := false
	agree := true
	for i, j := range l.journals {
		if ours[i] = j.Names(&keys[i]); ours[i] {
			l.known = true
			unstamped = unstamped || j.Stamp().IsZero()
			agree = agree && j.Agrees(&keys[i])
		}
	}
	if unstamped {
		// A predecessor that made no stamps. Its rings are told from new ones by
		// what was answered in them; of those in which nothing was, nothing is lost.
		stamped = given
	}
	if l.known = l.known && stamped && agree; !l.known {
		clear(ours)
		v.mcast.Clear()
		v.removeControl()
	}
	if l.known && !unstamped {
		l.stamp = keys[0].Tx.Stamp
	} else {
		l.stamp = netif.NewStamp()
	}
	for i, j := range l.journals {
		if !ours[i] { // of another, or damaged
			j.Begin(l.stamp, keys[i].TxGref, keys[i].RxGref)
		}
	}
	return nil
}

// mark leaves the stamp in the rings. Before that the journals have it, or a daemon
// that was killed between would leave rings that look as if what was kept of them
// were lost. Journals of a predecessor that made no stamps get it last: until then
// they count as they are.
func (l *link) mark(queues []dataplane.QueueConfig) error {
	for i := range queues {
		for _, page := range [...][]byte{queues[i].TxPage, queues[i].RxPage} {
			if err := netif.WriteStamp(page, l.stamp); err != nil {
				return err
			}
		}
	}
	for _, j := range l.journals {
		if j.Stamp() != l.stamp {
			j.Restamp(l.stamp)
		}
	}
	return nil
}

// ringPages are those of the queues, without that of a control ring.
func (l *link) ringPages() []*gntdev.Mapping {
	return l.mappings[:min(len(l.mappings), 2*len(l.front.queues))]
}

// unmark takes the stamp out of the rings: what comes next in these pages, if a
// frontend uses them again, is another connection, and nothing is known of it.
func (l *link) unmark() {
	for _, m := range l.ringPages() {
		_ = netif.WriteStamp(m.Bytes(), netif.Stamp{}) // it is a page
	}
}

// renewed reports whether the frontend has made one of its rings anew.
func (l *link) renewed() bool {
	for _, m := range l.ringPages() {
		if h, err := netif.ReadHeader(m.Bytes()); err != nil || h.Stamp != l.stamp {
			return true
		}
	}
	return false
}

// cutOff reports whether the frontend has made its event channels anew, by the numbers
// of those before. Xen then has unbound ours, and says nothing: no event passes any
// more. Whether a channel has no other end is told by being one. The rings may be
// others, too, although the pages that are mapped show the stamp: a guest that boots
// another kernel without a word makes them where it likes.
//
// It is only asked when the frontend has said that it is Connected: until then a port
// by that number may be another device's.
func (v *Vif) cutOff() bool {
	e, err := v.cfg.Host.OpenEvents(v.cfg.Domid)
	if err != nil {
		return false
	}
	_, err = e.BindInterdomain(v.cfg.Domid, v.link.front.queues[0].txPort)
	if cerr := e.Close(); cerr != nil {
		v.log.Warn("close event channels", errField(cerr))
	}
	return err == nil
}

// barredRenewed reports whether the frontend, quarantined, has made its rings anew
// and named them by the same keys: it has connected again.
func (v *Vif) barredRenewed() bool {
	if v.barred.IsZero() || v.offer.rings == nil {
		return false
	}
	m, err := v.cfg.Host.Grants().Map(v.cfg.Domid, []gntdev.Ref{v.offer.rings.queues[0].txGref}, gntdev.ReadWrite)
	if err != nil {
		return false
	}
	h, err := netif.ReadHeader(m.Bytes())
	if uerr := m.Unmap(); uerr != nil {
		v.log.Warn("unmap ring", errField(uerr))
	}
	return err == nil && h.Stamp != v.barred
}
