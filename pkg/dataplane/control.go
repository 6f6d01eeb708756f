// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/steer"
)

// SetHash changes what packets carry of a hash; nil ends it. When it returns
// every packet that is published carries what was set. It may be called from any
// goroutine until Close, as may all that follows.
func (c *Conn) SetHash(h *Hash) error {
	for _, q := range c.queues {
		if err := q.worker.call(func() error { q.setHash(h); return nil }); err != nil {
			return err
		}
	}
	return nil
}

// SetSteering has packets to the guest appear on the queue that s says, on
// whichever TAP queue the host puts them; nil ends it. It is for hosts whose
// kernel does not take a steering program, which costs less, and for a connection
// with [Config.OneWorker]. s does not change any more.
func (c *Conn) SetSteering(s *steer.Config) error {
	for _, q := range c.queues {
		if err := q.worker.call(func() error { q.steer = s; return nil }); err != nil {
			return err
		}
	}
	return nil
}

// AddGrants puts static grants into the table of queue i, all or none, between
// two batches, and lists what is in it then. The error is that of
// [staticgrant.Table.Commit], or ErrClosed.
func (c *Conn) AddGrants(i int, p *staticgrant.Prepared) (now []netif.GrefEntry, err error) {
	q := c.queues[i]
	err = q.worker.call(func() error {
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
	err = q.worker.call(func() error {
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
	count := func(ref netif.Gref) {
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
