// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"sync/atomic"
	"time"

	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/tap"
)

// Queue is one queue of a connected vif. Everything in it but stats belongs to
// its worker.
type Queue struct {
	conn   *Conn
	index  int
	worker atomic.Pointer[worker] // changed by the worker that lets go of the queue
	// The worker is a spare; guarded by the mail.mu of the worker.
	onSpare atomic.Bool
	stats   Stats

	tx             *netif.TxBack
	rx             *netif.RxBack
	grants         Copier
	events         Events
	tap            *tap.Queue
	journal        *Journal
	txPort, rxPort evtchn.Port

	static *staticgrant.Table
	hash   *steer.Config // what the guest is told of each packet
	steer  *steer.Config // whose packets the host's are; nil: of the TAP queue they came on

	guest    offload.Guest
	xdpRoom  int    // bytes before each packet in its first page
	xdpExtra uint32 // slots that say so: 1, or 0 if there is no such room

	vnetLen int // octets of vnet header on the TAP, 0 or tap.VnetHdrLen
	maxRx   int // largest frame the guest takes

	tooBigAt time.Time // when the owner was last told of larger ones

	counted bool // in its worker's load; guarded by the pool's mu

	account *account // of its vif, where time is accounted for

	turnSegs int // segments of what the turn under way took from the guest
	mostSegs int // how many of these the next turn may take

	// Where the worker knows it.
	attached bool
	id       int // number in the worker's table, and slot in its io_uring

	ready    bool // in the worker's ready list
	timed    bool // in the worker's timed list
	fired    bool // the handle for events is readable
	tapReady bool // the TAP may have packets
	tapArmed bool // epoll watches the TAP
	tapGone  bool // somebody deleted the TAP
	breached bool
	masked   [2]evtchn.Port // ports that wait to be unmasked
	nMasked  int
	spurious int // events in a row that brought no work

	reader       tapReader
	backlog      backlog
	resteer      *queueResteer // nil: none is under way
	blockedSince time.Time     // since when there are not enough slots to go on
	blockedNeed  uint32        // how many it takes
	stalled      bool
	stale        int // packets in the TAP that have waited for too long, at most
	drainAfter   time.Duration

	share     share     // of the vif's rate
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
		static:     cfg.Static,
		mostSegs:   turnSegments,
		drainAfter: c.cfg.Drain,
	}
	if cfg.Stalled {
		q.stalled, q.blockedSince, q.blockedNeed = true, time.Now(), 1
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
		q.drainAfter = min(q.drainAfter, noNotifyDrain)
	}
	q.reader = tapReader{tap: q.tap, vnetLen: q.vnetLen, readLen: q.vnetLen + maxFrame}
	q.backlog.vif = &c.waiting
	q.hash = c.cfg.Hash
	q.setXDPHeadroom(int(c.cfg.XDPHeadroom))
	return q, nil
}

// setHash changes what the guest is told of packets.
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

// waitsForSlots reports whether the rx ring has to be looked at although the
// TAP has nothing.
func (q *Queue) waitsForSlots() bool { return !q.backlog.empty() || !q.blockedSince.IsZero() }

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
func (q *Queue) deadline() time.Time {
	d := earlier(earlier(q.rateUntil, q.unmaskAt), q.pollAt)
	if q.breached {
		return d
	}
	if !q.backlog.empty() {
		d = earlier(d, q.backlog.head().since.Add(q.drainAfter))
	}
	if v := q.resteer; v != nil && v.phase < released {
		d = earlier(d, v.until)
	}
	if q.canStall() {
		d = earlier(d, q.blockedSince.Add(q.conn.cfg.Stall))
	}
	return d
}

// canStall reports whether the guest is on its way to be called stalled. One
// that does not tell of its slots cannot be judged.
func (q *Queue) canStall() bool {
	return !q.blockedSince.IsZero() && !q.stalled && q.conn.cfg.RxNotify
}
