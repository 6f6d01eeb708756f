// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/xen"
)

// SetHash changes the hash that packets carry; nil ends it. When it returns
// every packet that is published carries what was set. It may be called from any
// goroutine until Close, as may all that follows.
func (c *Conn) SetHash(h *steer.Config) error {
	for _, q := range c.queues {
		if err := q.call(func() error { q.setHash(h); return nil }); err != nil {
			return err
		}
	}
	return nil
}

// SetXDPHeadroom has each packet to the guest begin n bytes into its first page, and
// carry an XDP extra that says so; 0 ends both. More than [MaxXDPHeadroom] counts as
// that much, and the extra says so. Packets with headroom are whole: neither is a
// checksum left to the guest nor segmentation. When it returns every packet that is
// published is as was set.
func (c *Conn) SetXDPHeadroom(n uint16) error {
	for _, q := range c.queues {
		if err := q.call(func() error { q.setXDPHeadroom(min(int(n), MaxXDPHeadroom)); return nil }); err != nil {
			return err
		}
	}
	return nil
}

// SetSteering has packets to the guest appear on the queue that s says, on
// whichever TAP queue the host puts them; nil ends it. It is for hosts whose
// kernel does not take a steering program, which costs less, and for a connection
// with [Config.OneWorker]. s does not change any more. Order is kept as by
// [Conn.Resteer], and callers are those of that.
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

// Resteer keeps packets to the guest in order while the host's kernel changes the
// TAP queues that it puts them on: no packet of a flow is published on its new
// queue before all before it were on the old one. from says what they are until
// now, to from now on; nil is a choice of the host, which is not known. change has
// the kernel do it, and is not to return before the last packet has gone the old
// way.
//
// A guest that does not take packets from one queue has those on others wait for
// no longer than a second, or than [Config.Drain] if that is less; then they are
// published all the same, and counted. Neither waits Resteer for the guest, but for
// as long if it is called again meanwhile, unless [Conn.Hurry] was called. It belongs
// to one goroutine at a time.
func (c *Conn) Resteer(from, to *steer.Config, change func() error) error {
	return c.resteer(&resteering{from: from, to: to, kernel: true}, change)
}

// Hurry has nobody wait for the guest any more who waits in Resteer or SetSteering,
// or comes there: the connection is about to end. It may be called again.
func (c *Conn) Hurry() { c.hurried.Do(func() { close(c.hurry) }) }

// AddGrants puts static grants into the table of queue i, all or none, between
// two batches, and lists what is in it then. The error is that of
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

// RemoveGrants takes those of list out of the table of queue i, between two
// batches, and lists what is left. When it returns the queue does not use the
// pages any more, and they can be unmapped.
func (c *Conn) RemoveGrants(i int, list []netif.GrefEntry) (r *staticgrant.Removed, now []netif.GrefEntry, err error) {
	q := c.queues[i]
	err = q.call(func() error {
		r, now = q.static.Detach(list), q.static.Snapshot()
		return nil
	})
	return r, now, err
}

// staticInUse counts the requests on the rings, not taken yet, that name static
// grants. It is for people; the guest may say what it likes there.
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
