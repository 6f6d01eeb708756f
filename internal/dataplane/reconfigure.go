// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/xen"
)

// SetHash sets the hash that packets carry; nil ends that. When it returns, the setting
// is in force for all packets published from then on. It may be called from any
// goroutine until Close.
func (c *Conn) SetHash(h *steer.Config) error {
	for _, q := range c.queues {
		if err := q.call(func() error { q.setHash(h); return nil }); err != nil {
			return err
		}
	}
	return nil
}

// SetXDPHeadroom starts each packet to the guest n bytes into its first page, and adds
// an XDP extra with the offset; 0 ends both. A value above [MaxXDPHeadroom] is reduced
// to that, also in the extra. Packets with headroom have complete checksums and are
// segmented. When it returns, the setting is in force for all packets published from
// then on.
func (c *Conn) SetXDPHeadroom(n uint16) error {
	for _, q := range c.queues {
		if err := q.call(func() error { q.setXDPHeadroom(min(int(n), MaxXDPHeadroom)); return nil }); err != nil {
			return err
		}
	}
	return nil
}

// SetWeight sets the vif's weight, from 1 to [MaxWeight]. A guest with the weight n gets n
// times as much of a worker's time as one with the weight 1, if both have work for it. The
// guest's weight is the largest of its vifs. It may be called from any goroutine until Close.
func (c *Conn) SetWeight(n int) error {
	c.weight.Store(int32(n))
	for _, q := range c.queues {
		if err := q.call(func() error { q.weigh(); return nil }); err != nil {
			return err
		}
	}
	return nil
}

// weigh makes a change of the weight known to the queue's worker.
func (q *Queue) weigh() {
	if q.account != nil {
		q.account.weigh()
	}
}

// PauseCoalescing stops the merging of packets from the guest, or lets it go on. When it
// returns, that is in force. It may be called from any goroutine until Close.
//
// It is for the time in which an XDP program is attached to the TAP: of a guest that sends
// small packets it expects these, can send no large ones elsewhere, and the kernel would
// copy each of them into one piece. No message tells that a program is attached, so
// the owner looks when it gets a notice of kind [Coalescing].
func (c *Conn) PauseCoalescing(on bool) error {
	for _, q := range c.queues {
		if err := q.call(func() error { q.coalescer.paused = on; return nil }); err != nil {
			return err
		}
	}
	return nil
}

// SetSteering publishes packets on the queue that s chooses instead of the queue of the
// TAP queue they are read from; nil ends that. It is for hosts whose kernel does not
// accept a steering program, which would cost less, and requires [Config.OneWorker]. s
// must not change any more. The order of flows is kept as by [Conn.Resteer]; both must be
// called from the same goroutine.
func (c *Conn) SetSteering(s *steer.Config) error {
	err := c.resteer(&resteering{from: c.steering, to: s}, func() error {
		for _, q := range c.queues {
			if err := q.call(func() error { q.steer = s; return nil }); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		c.steering = s
	}
	return err
}

// Resteer keeps packets to the guest in order while the host's kernel switches from
// steering by configuration from to configuration to: no packet of a flow is published
// on its new queue before all its predecessors on the old one. With a nil configuration
// the host chooses the queue, in a way that is not known. change makes the kernel switch.
// It must return only after the last packet was steered the old way.
//
// If the guest does not empty one queue, packets on others wait for a second at most,
// or for [Config.Drain] if that is less; then they are published out of order, and
// counted. Resteer does not wait for the guest, except for a previous Resteer that is
// still in progress (at most the same time). It belongs to one goroutine at a time.
func (c *Conn) Resteer(from, to *steer.Config, change func() error) error {
	return c.resteer(&resteering{from: from, to: to, kernel: true}, change)
}

// Hurry makes current and future Resteer and SetSteering calls return without waiting
// for the guest. Call it before Close. It may be called again.
func (c *Conn) Hurry() { c.hurried.Do(func() { close(c.hurry) }) }

// AddGrants adds static grants to the table of queue i, all or none, between two
// batches, and returns the entries of the table. The error is that of
// [staticgrant.Table.Commit], or ErrClosed.
func (c *Conn) AddGrants(i int, p *staticgrant.Prepared) (now []netif.GrefEntry, err error) {
	q := c.queues[i]
	err = q.call(func() error {
		if err := q.static.Commit(p); err != nil {
			return err
		}
		now = q.static.Snapshot()
		return nil
	})
	return now, err
}

// RemoveGrants removes the entries of list from the table of queue i, between two
// batches, and returns the remaining entries. When it returns the queue does not use the
// pages any more, and they can be unmapped.
func (c *Conn) RemoveGrants(i int, list []netif.GrefEntry) (r *staticgrant.Removed, now []netif.GrefEntry, err error) {
	q := c.queues[i]
	err = q.call(func() error {
		r, now = q.static.Detach(list), q.static.Snapshot()
		return nil
	})
	return r, now, err
}

// staticInUse counts the unconsumed requests on the rings that name static grants. The
// guest may change them at any time; the number is only for display.
func (q *Queue) staticInUse() (n int) {
	if q.static.Len() == 0 {
		return 0
	}
	count := func(ref xen.Gref) {
		if q.static.Lookup(ref).Page != nil {
			n++
		}
	}
	if avail, err := q.tx.Available(); err == nil {
		for k := range avail {
			count(q.tx.Request(q.tx.ReqCons().Add(k)).Gref)
		}
	}
	if avail, err := q.rx.Available(); err == nil {
		for k := range avail {
			count(q.rx.Request(q.rx.ReqCons().Add(k)).Gref)
		}
	}
	return n
}
