// SPDX-License-Identifier: Apache-2.0

package blkfront

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/netbackd/netbackd/internal/lab/xenfront"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/xen"
)

// ErrFull is returned when a ring has no room, or the queue no indirect pages. The caller
// has to Push and to wait for answers.
var ErrFull = errors.New("blkfront: the ring is full")

// Queue is a ring with its pages and its event channel. It belongs to one goroutine.
type Queue struct {
	index  int
	order  int
	events xenfront.Events
	ring   *gntalloc.Pages
	port   evtchn.Port
	wake   *xenfront.Waker
	front  *blkif.Front
	salt   uint64 // in every id
	limit  int    // segments of a request

	writable, readable, indirect *pool

	inUse   func(xen.Gref) (bool, error) // nil if the host cannot tell
	waiting []pending                    // by the low bits of the id
	idle    []uint32                     // entries of waiting
	segs    []blkif.RawSegment           // of the request under way
	mine    []blkif.Slot                 // by slot: what was put there last

	dead       *Violation
	stats      Stats
	violations []*Violation
}

// Stats holds a queue's counters.
type Stats struct {
	Requests     uint64        `json:"requests"`
	Indirect     uint64        `json:"indirect"`
	Segments     uint64        `json:"segments"`
	Bytes        uint64        `json:"bytes"` // of segments
	Answers      uint64        `json:"answers"`
	Errors       uint64        `json:"errors"` // answered with another status than okay
	Reordered    uint64        `json:"reordered"`
	Notifies     uint64        `json:"notifies"`      // events sent
	NotifiesHeld uint64        `json:"notifies_held"` // pushes for which the backend asked for no event
	Wakeups      uint64        `json:"wakeups"`       // times an event came
	Violations   uint64        `json:"violations"`
	Latency      time.Duration `json:"latency_ns"` // sum over all answers
	Slowest      time.Duration `json:"slowest_ns"`
}

// Add adds another queue's counters.
func (s *Stats) Add(o Stats) {
	s.Requests += o.Requests
	s.Indirect += o.Indirect
	s.Segments += o.Segments
	s.Bytes += o.Bytes
	s.Answers += o.Answers
	s.Errors += o.Errors
	s.Reordered += o.Reordered
	s.Notifies += o.Notifies
	s.NotifiesHeld += o.NotifiesHeld
	s.Wakeups += o.Wakeups
	s.Violations += o.Violations
	s.Latency += o.Latency
	s.Slowest = max(s.Slowest, o.Slowest)
}

// NewQueue makes a queue without a device, for tests that connect a backend to it
// themselves. The host needs no xenstore. The queue has what cfg asks for.
func NewQueue(host xenfront.Host, peer xen.Domid, cfg Config) (*Queue, error) {
	cfg = cfg.withDefaults()
	limit := max(cfg.Indirect, blkif.MaxDirect)
	q, err := newQueue(host, peer, 0, cfg, cfg.Order, limit)
	if err != nil {
		return nil, err
	}
	q.connected(limit, cfg.Persistent)
	return q, nil
}

// Close frees a queue of NewQueue.
func (q *Queue) Close() error { return q.close() }

// Refs returns the grefs of the ring's pages.
func (q *Queue) Refs() []xen.Gref { return q.ring.Refs() }

// Port returns the event channel.
func (q *Queue) Port() evtchn.Port { return q.port }

// newQueue makes a ring, pages and an event channel for a backend in domain peer.
func newQueue(host xenfront.Host, peer xen.Domid, index int, cfg Config, order, limit int) (q *Queue, err error) {
	q = &Queue{index: index, order: order, limit: limit, salt: 0xb10c_0000_0000_0000 | uint64(time.Now().UnixNano())<<16&0xffff_ff00_0000}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("blkfront: queue %d: %w", index, err), q.close())
		}
	}()
	layout, err := cfg.layout()
	if err != nil {
		return q, err
	}
	if q.ring, err = host.Pages.Alloc(peer, 1<<order, true); err != nil {
		return q, err
	}
	if q.front, err = blkif.InitFront(q.ring.Bytes(), layout); err != nil {
		return q, err
	}
	if q.writable, err = newPool(host.Pages, peer, cfg.Pages, true); err != nil {
		return q, err
	}
	if !cfg.Persistent {
		if q.readable, err = newPool(host.Pages, peer, cfg.Pages, false); err != nil {
			return q, err
		}
	}
	if limit > blkif.MaxDirect {
		// Enough for requests that use all data pages.
		each := (limit + blkif.SegmentsPerPage - 1) / blkif.SegmentsPerPage
		n := min(int(q.front.Size()), max(8, 2*cfg.Pages/blkif.MaxDirect)) * each
		if q.indirect, err = newPool(host.Pages, peer, n, cfg.Persistent); err != nil {
			return q, err
		}
	}
	if c, ok := host.Pages.(xenfront.UseChecker); ok && cfg.Strict {
		q.inUse = c.InUse
	}
	q.waiting = make([]pending, q.front.Size())
	q.mine = make([]blkif.Slot, q.front.Size())
	for i := range q.waiting {
		q.idle = append(q.idle, uint32(i))
	}
	if q.events, err = host.Events(); err != nil {
		return q, err
	}
	if q.port, err = q.events.BindUnbound(peer); err != nil {
		return q, err
	}
	q.wake, err = xenfront.NewWaker()
	return q, err
}

// connected tells the queue what was agreed upon.
func (q *Queue) connected(limit int, persistent bool) {
	q.limit = limit
	if persistent {
		q.inUse = nil
	}
}

// close frees everything. The ring must not be used after it.
func (q *Queue) close() error {
	var errs []error
	if q.events != nil {
		errs = append(errs, q.events.Close())
	}
	if q.ring != nil {
		errs = append(errs, q.ring.Free())
	}
	errs = append(errs, q.writable.close(), q.readable.close(), q.indirect.close())
	q.wake.Close()
	return errors.Join(errs...)
}

// Index returns the number of the queue.
func (q *Queue) Index() int { return q.index }

// Size returns the number of requests that fit in the ring.
func (q *Queue) Size() int { return int(q.front.Size()) }

// Free returns the number of requests that can be submitted now.
func (q *Queue) Free() int { return min(int(q.front.Free()), len(q.idle)) }

// Unanswered returns the number of requests without an answer.
func (q *Queue) Unanswered() int { return len(q.waiting) - len(q.idle) }

// MaxSegments returns the largest number of segments of a request.
func (q *Queue) MaxSegments() int { return q.limit }

// Stats returns the counters so far.
func (q *Queue) Stats() Stats { return q.stats }

// Err returns the fatal violation that ended the use of the queue, or nil.
func (q *Queue) Err() error {
	if q.dead == nil {
		return nil
	}
	return q.dead
}

// State returns the indices of the ring.
func (q *Queue) State() blkif.RingState { return q.front.State() }

// Wait sleeps until there is an answer. It returns at once if there is one already. It
// may also return early.
func (q *Queue) Wait(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if q.dead != nil {
		return q.dead
	}
	if more, err := q.front.Arm(); more || err != nil {
		return nil // Poll reports the error
	}
	defer context.AfterFunc(ctx, q.wake.Wake)()
	event, err := xenfront.Sleep(q.events, q.wake)
	if event {
		q.stats.Wakeups++
	}
	return errors.Join(err, ctx.Err())
}

// Wake ends a Wait of the goroutine that owns the queue, from any goroutine.
func (q *Queue) Wake() { q.wake.Wake() }
