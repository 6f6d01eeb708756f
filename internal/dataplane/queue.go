// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"cmp"
	"sync/atomic"
	"time"

	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/tap"
)

// Queue is one queue of a connected vif. It belongs to its worker, except for stats.
type Queue struct {
	conn   *Conn
	index  int
	worker atomic.Pointer[worker] // changed by the worker that drops the queue
	// onSpare says that the worker is a spare. It is guarded by that worker's mail.mu.
	onSpare atomic.Bool
	stats   *Stats // own, or that of QueueConfig
	own     Stats

	// The frontend's side and the host's.
	tx             *netif.TxBack
	rx             *netif.RxBack
	grants         Copier
	static         *staticgrant.Table
	events         Events
	txPort, rxPort evtchn.Port
	tap            *tap.Queue
	vnetLen        int // bytes of vnet header on the TAP, 0 or tap.VnetHdrLen
	journal        *Journal

	// Settings of packets to the guest.
	guest    offload.Guest
	hash     *steer.Config // hash that packets carry; nil: none
	steer    *steer.Config // chooses the guest queue for a packet; nil: the TAP queue it was read from
	xdpRoom  int           // bytes before each packet in its first page
	xdpExtra uint32        // slots of the XDP extra: 1, or 0 without headroom
	maxRx    int           // largest frame in bytes that the guest takes

	// virt is set for a pair of virtqueues, which uses neither the rings, grants and events
	// of a vif nor the settings of its packets. Each turn looks at it, and at what follows.
	virt *virtPair

	// The worker's bookkeeping.
	attached bool
	served   atomic.Bool // attached, for other goroutines
	breached bool
	counted  bool     // it counts in its worker's load; guarded by the pool's mu
	id       int      // index in the worker's table, and file number in its io_uring
	ready    bool     // in the worker's ready list
	timed    bool     // in the worker's timed list
	account  *account // its vif's, with the worker
	turnSegs int      // segments that the current turn took from the guest
	mostSegs int      // maximum of segments for the next turn

	ahead aheadLines

	ev   eventState
	rate rateState

	coalescer coalescer // of packets from the guest

	// From the TAP to the guest.
	tapIn   tapState
	reader  tapReader
	backlog backlog
	blocked slotWait
	resteer *queueResteer // nil: none is under way

	tooBigAt time.Time // time of the last TooBig notice; here since it is rarely used
}

// eventState is the state of a queue's event channels.
type eventState struct {
	file     int            // descriptor that takes reads and writes of ports; -1: there is none
	fired    bool           // the handle is readable
	deferred bool           // the ports that fired are read at the end of the turn; see exchange.go
	late     bool           // a port may have fired after its ring was looked at in this turn
	masked   [2]evtchn.Port // ports to be unmasked
	nMasked  int
	spurious int       // events in a row that brought no work
	unmaskAt time.Time // ports of a guest with spurious events stay masked until then
}

// rateState is a queue's part in the rate limit of its vif.
type rateState struct {
	share share
	until time.Time // the limit allows no packet before that time
}

// tapState holds what the worker has learned about the TAP queue.
type tapState struct {
	ready bool // it may have packets
	armed bool // epoll watches it
	gone  bool // the device was deleted
}

// slotWait is the state of a queue that has too few rx slots.
type slotWait struct {
	since      time.Time // start of the wait; zero: it has enough
	need       uint32    // slots that end the wait
	stalled    bool      // the wait took Config.Stall; the owner was told
	stale      int       // maximum of packets in the TAP that are too old to be delivered
	drainAfter time.Duration
	pollAt     time.Time // time to look for slots of a guest without feature-rx-notify
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
		static:   cfg.Static,
		mostSegs: turnSegments,
		blocked:  slotWait{drainAfter: c.cfg.Drain},
	}
	q.stats = cmp.Or(cfg.Stats, &q.own)
	if cfg.Stalled {
		q.blocked.stalled, q.blocked.since, q.blocked.need = true, time.Now(), 1
	}
	if q.static == nil {
		q.static = new(staticgrant.Table)
	}
	if q.journal == nil {
		q.journal = NewJournal()
	}
	if c.cfg.VnetHdr {
		q.vnetLen = tap.VnetHdrLen
	}
	if !c.cfg.RxNotify {
		q.blocked.drainAfter = min(q.blocked.drainAfter, noNotifyDrain)
	}
	q.ev.file = portsFD(cfg.Events)
	q.reader = tapReader{tap: q.tap, vnetLen: q.vnetLen, readLen: q.vnetLen + maxFrame}
	q.backlog.vif = &c.waiting
	q.hash = c.cfg.Hash
	q.coalescer.what, q.coalescer.paused = c.cfg.Coalesce, c.cfg.Paused
	q.setXDPHeadroom(int(c.cfg.XDPHeadroom))
	return q, nil
}

// setHash sets the hash that packets carry.
func (q *Queue) setHash(h *steer.Config) {
	q.hash = h
	q.sizePackets()
}

// sizePackets tells the reader how many slots a packet may take, which depends on its
// extras and its headroom.
func (q *Queue) sizePackets() {
	slots := int(q.slotsOf(q.maxRx) + q.xdpExtra)
	if q.guest.GSOTCPv4 || q.guest.GSOTCPv6 {
		slots++
	}
	if q.hash != nil {
		slots++
	}
	q.reader.resize(slots)
}

// waitsForSlots reports whether the rx ring must be checked even if the TAP is empty.
func (q *Queue) waitsForSlots() bool { return !q.backlog.empty() || !q.blocked.since.IsZero() }

// unblocked is called when the guest has posted slots again.
func (q *Queue) unblocked() {
	q.blocked.since = time.Time{}
	if q.blocked.stalled {
		q.blocked.stalled = false
		q.conn.cfg.Notice(Notice{Kind: Resumed, Queue: q.index})
	}
}

// deadline returns the next time at which the queue has work without an event, or the
// zero time.
func (q *Queue) deadline() time.Time {
	d := earlier(earlier(q.rate.until, q.ev.unmaskAt), q.blocked.pollAt)
	if q.breached {
		return d
	}
	if !q.backlog.empty() {
		d = earlier(d, q.backlog.head().since.Add(q.blocked.drainAfter))
	}
	if v := q.resteer; v != nil && v.phase < released {
		d = earlier(d, v.until)
	}
	if q.canStall() {
		d = earlier(d, q.blocked.since.Add(q.conn.cfg.Stall))
	}
	return d
}

// canStall reports whether the queue is blocked and may become stalled. A guest without
// feature-rx-notify does not announce its slots and is never called stalled.
func (q *Queue) canStall() bool {
	return !q.blocked.since.IsZero() && !q.blocked.stalled && q.conn.cfg.RxNotify
}
