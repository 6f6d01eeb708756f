// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/netbackd/netbackd/internal/lab/xenfront"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// ErrFull is returned when a ring has no room, or the queue no pages. The caller has to
// Flush and to wait for responses.
var ErrFull = errors.New("netfront: the ring is full")

// Queue is a tx and an rx ring with their buffers and event channels. It belongs
// to one goroutine.
type Queue struct {
	index  int
	rules  rules
	events Events
	rings  *gntalloc.Pages // tx ring, rx ring
	txPort evtchn.Port
	rxPort evtchn.Port // txPort, unless event channels are split
	wake   *xenfront.Waker

	tx txSide
	rx rxSide

	expected expected // of hashing
	headroom headroom
	dead     *Violation

	stats      Stats
	broken     [numRules]uint64
	violations []*Violation
}

// rules holds the rules that a queue applies to the backend and to its own packets.
type rules struct {
	features Features
	offers   Offers
	hash     bool // hash extras may come
	strict   bool
	mtu      int
	salt     uint16
	inUse    func(xen.Gref) (bool, error) // nil if the host cannot tell
}

// newQueue makes rings, buffers and event channels for a backend in domain peer.
func newQueue(host Host, peer xen.Domid, index int, cfg Config, r rules, split bool) (q *Queue, err error) {
	q = &Queue{index: index, rules: r}
	if r.offers.XDPHeadroom {
		q.headroom = headroom{cfg.XDPHeadroom, cfg.XDPHeadroom}
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("netfront: queue %d: %w", index, err), q.close())
		}
	}()
	if q.rings, err = host.Pages.Alloc(peer, 2, true); err != nil {
		return q, err
	}
	mem := q.rings.Bytes()
	if q.tx.ring, err = netif.InitTx(mem[:netif.PageSize]); err != nil {
		return q, err
	}
	if q.rx.ring, err = netif.InitRx(mem[netif.PageSize:]); err != nil {
		return q, err
	}
	// The backend only reads the tx pages, so they are granted read-only.
	if q.tx.pages, err = host.Pages.Alloc(peer, cfg.TxPages, false); err != nil {
		return q, err
	}
	if q.rx.pages, err = host.Pages.Alloc(peer, cfg.RxPages, true); err != nil {
		return q, err
	}
	q.tx.init()
	q.rx.init()
	if q.events, err = host.Events(); err != nil {
		return q, err
	}
	if q.txPort, err = q.events.BindUnbound(peer); err != nil {
		return q, err
	}
	q.rxPort = q.txPort
	if split {
		if q.rxPort, err = q.events.BindUnbound(peer); err != nil {
			return q, err
		}
	}
	q.wake, err = xenfront.NewWaker()
	return q, err
}

// close frees everything. The rings must not be used after it.
func (q *Queue) close() error {
	var errs []error
	if q.events != nil {
		errs = append(errs, q.events.Close())
	}
	for _, p := range []*gntalloc.Pages{q.rings, q.tx.pages, q.rx.pages} {
		if p != nil {
			errs = append(errs, p.Free())
		}
	}
	q.wake.Close()
	return errors.Join(errs...)
}

// Index returns the number of the queue.
func (q *Queue) Index() int { return q.index }

// Stats returns the counters so far.
func (q *Queue) Stats() Stats { return q.stats }

// Err returns the fatal violation that ended the use of the queue, or nil.
func (q *Queue) Err() error {
	if q.dead == nil {
		return nil
	}
	return q.dead
}

// TxState and RxState are the indices of the rings.
func (q *Queue) TxState() netif.RingState { return q.tx.ring.State() }

// RxState returns the indices of the rx ring.
func (q *Queue) RxState() netif.RingState { return q.rx.ring.State() }

// Flush publishes the requests in both rings and sends the backend at most one event per
// event channel.
func (q *Queue) Flush() error {
	if q.dead != nil {
		return q.dead
	}
	tx := q.pushTx()
	rx := q.pushRx()
	if q.rxPort == q.txPort {
		tx, rx = tx || rx, false
	}
	if tx {
		if err := q.notify(q.txPort); err != nil {
			return err
		}
	}
	if rx {
		return q.notify(q.rxPort)
	}
	return nil
}

func (q *Queue) pushTx() (notify bool) {
	from := q.tx.pushed
	q.tx.pushed = q.tx.ring.ReqProd()
	if from == q.tx.pushed {
		return false
	}
	if notify = q.tx.ring.Push(); !notify {
		q.stats.NotifiesHeld++
	}
	return notify
}

func (q *Queue) pushRx() (notify bool) {
	from := q.rx.pushed
	q.rx.pushed = q.rx.ring.ReqProd()
	if from == q.rx.pushed {
		return false
	}
	notify = q.rx.ring.Push()
	if !q.rules.features.RxNotify {
		return false // the backend polls
	}
	if !notify {
		q.stats.NotifiesHeld++
	}
	return notify
}

func (q *Queue) notify(p evtchn.Port) error {
	q.stats.Notifies++
	return q.events.Notify(p)
}

// Buffers returns the grant references of the queue's tx buffers, which are granted
// for reading, and of its rx buffers, for reading and writing. They stay the same
// as long as the queue is connected; any goroutine may ask.
func (q *Queue) Buffers() (tx, rx []xen.Gref) {
	return slices.Clone(q.tx.refs), slices.Clone(q.rx.refs)
}

// AllowMapped ends the check that the backend unmaps a page before its response. Callers
// use it before they ask the backend to keep the queue's buffers mapped.
func (q *Queue) AllowMapped() { q.rules.inUse = nil }

// arm asks for an event at the next rx response, and for a tx event once there is room
// for a packet of the largest size, or else once all requests are answered. It reports
// whether there are responses already.
func (q *Queue) arm() (work bool) {
	if q.dead != nil {
		return true
	}
	if n := q.tx.outstanding(); n > 0 {
		if q.tx.ring.Free() < maxSlots || len(q.tx.free) < maxSlots {
			n = min(n, maxSlots)
		}
		if more, err := q.tx.ring.ArmFor(n); more || err != nil {
			work = true
		}
	}
	if more, err := q.rx.ring.Arm(); more || err != nil {
		work = true
	}
	return work
}

// Wait sleeps until a packet has arrived or, if any were sent, until there is room or the
// last tx response. It returns at once if there is such a response already. It may also
// return early.
func (q *Queue) Wait(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if q.arm() {
		return q.Err()
	}
	defer context.AfterFunc(ctx, q.wake.Wake)()
	return errors.Join(q.sleep(), ctx.Err())
}

// sleep waits for an event or a wake-up, without a timeout.
func (q *Queue) sleep() error {
	event, err := xenfront.Sleep(q.events, q.wake)
	if event {
		q.countEvent()
	}
	return err
}

// takeEvents reads the ports that had events and unmasks them. A look at the rings after
// it misses no response.
func (q *Queue) takeEvents() error {
	event, err := xenfront.TakeEvents(q.events, q.wake)
	if event {
		q.countEvent()
	}
	return err
}

func (q *Queue) countEvent() {
	q.stats.Wakeups++
	if !q.hasWork() {
		q.stats.Spurious++
	}
}

// hasWork reports whether either ring has responses.
func (q *Queue) hasWork() bool {
	t, err := q.tx.ring.Responses()
	r, err2 := q.rx.ring.Responses()
	return t > 0 || r > 0 || err != nil || err2 != nil
}

// pop takes a page off a stack of free pages. The stack must not be empty.
func pop(free *[]uint16) uint16 {
	last := len(*free) - 1
	p := (*free)[last]
	*free = (*free)[:last]
	return p
}
