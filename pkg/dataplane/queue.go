// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"time"

	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/offload"
	"github.com/netbackd/netbackd/pkg/tap"
)

// Queue is one queue of a connected vif. Everything in it but stats belongs to
// its worker.
type Queue struct {
	conn   *Conn
	index  int
	worker *worker
	stats  Stats

	tx             *netif.TxBack
	rx             *netif.RxBack
	grants         Copier
	events         Events
	tap            *tap.Queue
	journal        *Journal
	txPort, rxPort evtchn.Port

	guest   offload.Guest
	vnetLen int // octets of vnet header on the TAP, 0 or tap.VnetHdrLen
	maxRx   int // largest frame the guest takes
	readLen int // octets a TAP read asks for, vnet header included

	// Where the worker knows it.
	attached bool
	id       int // number in the worker's table, and its io_uring file slot + 1
	file     int

	ready        bool // in the worker's ready list
	timed        bool // in the worker's timed list
	tapReady     bool // the TAP may have packets
	tapArmed     bool // epoll watches the TAP
	breached     bool
	masked       [2]evtchn.Port // ports that wait to be unmasked
	nMasked      int
	spurious     int // events in a row that brought no work
	slotsPerRead int
	rxWant       int // packets to read with the next call

	hold         hold
	segmenter    *offload.Segmenter // of the packet at the hold's head
	blockedSince time.Time          // since when the head waits for slots
	blockedNeed  uint32             // how many it waits for
	stalled      bool
	drainAfter   time.Duration

	rateUntil time.Time // when the rate limit allows the next packet
	unmaskAt  time.Time // when a guest that sends events for nothing is heard again
	pollAt    time.Time // when to look for rx slots nobody tells of
}

func newQueue(c *Conn, index int, cfg *QueueConfig) (*Queue, error) {
	tx, err := netif.AttachTx(cfg.TxPage)
	if err != nil {
		return nil, err
	}
	rx, err := netif.AttachRx(cfg.RxPage)
	if err != nil {
		return nil, err
	}
	q := &Queue{
		conn: c, index: index,
		tx: tx, rx: rx,
		grants: cfg.Grants, events: cfg.Events, tap: cfg.Tap, journal: cfg.Journal,
		txPort: cfg.TxPort, rxPort: cfg.RxPort,
		guest:      c.cfg.Guest,
		maxRx:      netif.PageSize,
		rxWant:     1,
		drainAfter: c.cfg.Drain,
	}
	if q.journal == nil {
		q.journal = NewJournal()
	}
	if c.cfg.VnetHdr {
		q.vnetLen = tap.VnetHdrLen
	}
	if c.cfg.SG {
		q.maxRx = maxFrame
	}
	if !c.cfg.RxNotify {
		q.drainAfter = min(q.drainAfter, noNotifyDrain)
	}
	q.readLen = q.vnetLen + maxFrame
	q.slotsPerRead = 1
	if q.guest.GSOTCPv4 || q.guest.GSOTCPv6 {
		q.slotsPerRead = int(slotsOf(maxFrame)) + 1
	}
	return q, nil
}

// dropHeld forgets the packets that wait for rx slots.
func (q *Queue) dropHeld() {
	q.hold.clear()
	q.segmenter = nil
}

// unblocked is called when the guest has given slots again.
func (q *Queue) unblocked() {
	q.blockedSince = time.Time{}
	if q.stalled {
		q.stalled = false
		q.conn.cfg.Notice(Notice{Kind: Resumed, Queue: q.index})
	}
}

// deadline is the next instant the queue has something to do without an event,
// or the zero time.
func (q *Queue) deadline() (t time.Time) {
	for _, d := range [...]time.Time{q.rateUntil, q.unmaskAt, q.pollAt, q.stallAt()} {
		if !d.IsZero() && (t.IsZero() || d.Before(t)) {
			t = d
		}
	}
	return t
}

// stallAt is when packets held have waited too long.
func (q *Queue) stallAt() time.Time {
	if q.blockedSince.IsZero() || q.breached {
		return time.Time{}
	}
	if !q.hold.empty() {
		return q.blockedSince.Add(q.drainAfter)
	}
	if !q.stalled && q.conn.cfg.RxNotify {
		return q.blockedSince.Add(q.conn.cfg.Stall)
	}
	return time.Time{}
}
