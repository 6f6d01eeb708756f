// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"sync/atomic"

	"github.com/netbackd/netbackd/pkg/blkif"
)

// gauges are published by a queue's thread after each turn. Any goroutine may read them.
type gauges struct {
	ring                                 [5]atomic.Uint32 // req_prod, req_event, rsp_prod, rsp_event, req_cons
	consumed, started, operations        atomic.Uint32
	bytes, held, persistent              atomic.Int64
	uring, broken, stuck, waitsForMemory atomic.Bool
}

// QueueStatus is a snapshot of a queue. It is of the last turn that ended: a thread that
// is held up in a grant copy does not change it.
type QueueStatus struct {
	Size       uint32 // slots
	Ring       blkif.RingState
	InFlight   int   // requests consumed and not answered
	Waiting    int   // of these, not started
	Operations int   // under way at the disk
	Bytes      int64 // of data buffers in use
	Held       int64 // bytes of memory that buffers may take, until the queue is idle
	Persistent int   // pages mapped
	Memory     bool  // the next request waits for memory
	IOUring    bool
	Broken     bool
	Stuck      bool // its thread does not come back; see [Pool.Watch]
	Adopted    bool
}

// publish sets the gauges.
func (q *queue) publish() error {
	g := &q.gauges
	g.stuck.Store(false)
	if q.state == broken {
		g.broken.Store(true)
		return nil
	}
	s := q.ring.State()
	for i, v := range [...]blkif.Index{s.ReqProd, s.ReqEvent, s.RspProd, s.RspEvent, s.Cons} {
		g.ring[i].Store(uint32(v))
	}
	g.consumed.Store(q.ring.InFlight())
	g.started.Store(uint32(q.started))
	g.operations.Store(uint32(q.engine.UnderWay()))
	g.bytes.Store(int64(q.data.used))
	g.held.Store(int64(q.data.dirty + q.meta.dirty))
	g.waitsForMemory.Store(q.hungry.len() > 0)
	if q.persistent != nil {
		g.persistent.Store(int64(q.persistent.count))
	}
	return nil
}

// Shown has the counters and gauges of one queue. It may be in memory that the thread of the
// queue shares with another process.
type Shown struct {
	stats  Stats
	gauges gauges
}

// Counters returns the counters.
func (s *Shown) Counters() [NumCounters]uint64 { return s.stats.Snapshot() }

// Status returns a snapshot of queue i. It does not wait for the queue.
func (c *Conn) Status(i int) QueueStatus {
	q := c.queues[i]
	return q.Shown.Status(uint32(len(q.requests)), q.adopted)
}

// Status returns a snapshot of a queue of so many slots.
func (s *Shown) Status(slots uint32, adopted bool) QueueStatus {
	g := &s.gauges
	idx := func(i int) blkif.Index { return blkif.Index(g.ring[i].Load()) }
	v := QueueStatus{
		Size:     slots,
		Ring:     blkif.RingState{ReqProd: idx(0), ReqEvent: idx(1), RspProd: idx(2), RspEvent: idx(3), Cons: idx(4)},
		InFlight: int(g.consumed.Load()), Operations: int(g.operations.Load()),
		Bytes: g.bytes.Load(), Held: g.held.Load(), Persistent: int(g.persistent.Load()),
		Memory: g.waitsForMemory.Load(), IOUring: g.uring.Load(), Broken: g.broken.Load(), Stuck: g.stuck.Load(), Adopted: adopted,
	}
	v.Waiting = max(v.InFlight-int(g.started.Load()), 0)
	return v
}
