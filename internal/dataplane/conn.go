// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Limits for a guest that posts no rx slots. Without feature-rx-notify the guest sends
// no event for new slots; xen-netback then keeps packets for 30 ms at most, and so does
// this package.
const (
	DefaultDrain  = 10 * time.Second
	DefaultStall  = 10 * time.Second
	noNotifyDrain = 30 * time.Millisecond
	noNotifyPoll  = time.Millisecond
)

// Config configures all queues of a connection.
type Config struct {
	Domid    xen.Domid
	Name     string        // of the vif, for messages
	Guest    offload.Guest // offloads that the frontend takes
	SG       bool          // feature-sg: the frontend takes packets of several slots
	RxNotify bool          // feature-rx-notify: it sends an event when it posts rx slots
	VnetHdr  bool          // the TAP has vnet headers
	Coalesce Coalesce      // of packets from the guest
	Paused   bool          // coalescing is paused from the start; see PauseCoalescing

	Limiter *Limiter      // rate limit from guest to host; nil: none
	Mcast   *McastList    // the vif's multicast list
	Hash    *steer.Config // hash of packets to the guest, from the start; nil: none

	// XDPHeadroom sets the headroom from the start, as [Conn.SetXDPHeadroom] does later.
	XDPHeadroom uint16

	// Weight is that of the guest at first; see [Conn.SetWeight].
	Weight int

	// OneWorker assigns all queues to one worker, as [Conn.SetSteering] requires.
	OneWorker bool

	Drain time.Duration // 0: DefaultDrain
	Stall time.Duration // 0: DefaultStall

	// Notice is called from a worker for events that the owner of the connection
	// must act on. It must not block.
	Notice func(Notice)
}

// setDefaults fills in what a configuration leaves open.
func (cfg *Config) setDefaults() {
	if cfg.Mcast == nil {
		cfg.Mcast = new(McastList)
	}
	if cfg.Notice == nil {
		cfg.Notice = func(Notice) {}
	}
	if cfg.Drain == 0 {
		cfg.Drain = DefaultDrain
	}
	if cfg.Stall == 0 {
		cfg.Stall = DefaultStall
	}
}

// NoticeKind is the kind of a [Notice].
type NoticeKind uint8

// Kinds of notice.
const (
	// Breach: the frontend broke the ring protocol. The queue is not served any
	// more; of a pair of virtqueues, the ring that broke it.
	Breach NoticeKind = iota
	// Stalled: the guest has posted no rx slots on a queue for [Config.Stall].
	Stalled
	// Resumed: the guest posts rx slots again.
	Resumed
	// TapGone: the TAP was deleted.
	TapGone
	// TooBig: packets too big for a guest without scatter-gather were dropped. It
	// is sent at most once a second.
	TooBig
	// Coalescing: packets from the guest were merged, or may have been if that were not
	// paused. It is sent at most once a second, or every five seconds.
	Coalescing
)

func (k NoticeKind) String() string {
	switch k {
	case Breach:
		return "breach"
	case Stalled:
		return "stalled"
	case Resumed:
		return "resumed"
	case TapGone:
		return "tap gone"
	case TooBig:
		return "too big"
	case Coalescing:
		return "coalescing"
	}
	return fmt.Sprintf("unknown(%d)", uint8(k))
}

// Notice is an event of a connection.
type Notice struct {
	Kind  NoticeKind
	Queue int
	Err   error // of a Breach
}

// QueueConfig configures one queue: its mapped rings, its bound event channels, its TAP
// queue. The worker uses them from Connect on. After Close the owner unmaps and unbinds
// them.
type QueueConfig struct {
	TxPage, RxPage []byte
	TxPort, RxPort evtchn.Port // local ports; equal if the frontend has one channel
	Grants         Copier
	Events         Events
	Tap            *tap.Queue
	Journal        *Journal // nil: its record does not outlive the process
	Stalled        bool     // it was stalled when a predecessor served it
	Stats          *Stats   // counters that outlive the process, all zero; nil: it has its own

	// Static is the queue's table of static grants, which may have some already;
	// nil: there are and will be none. Its owner closes it after Close.
	Static *staticgrant.Table
}

// Conn is a connected vif.
type Conn struct {
	cfg     Config
	virt    bool // the queues are pairs of virtqueues
	queues  []*Queue
	waiting vifMemory // memory of packets that wait
	weight  atomic.Int32
	closing atomic.Bool // no queue starts to move to another worker

	// These belong to the goroutine that changes the steering.
	steering   *steer.Config // set by SetSteering
	resteering *resteering   // the last one

	// spread has the loads of the queues, as far as the pool has measured them; nil: not at
	// all. It belongs to watchTurns.
	spread []queueSpread

	hurry   chan struct{} // closed by Hurry
	hurried sync.Once
}

// ErrClosed is the error of a [Pool] that has been closed.
var ErrClosed = errors.New("dataplane: closed")

// Connect attaches to the rings of a vif and starts to serve them. It first finishes
// batches that a journal records and the rings do not show, so a restarted daemon
// adopts a running vif the same way.
func (p *Pool) Connect(cfg Config, queues []QueueConfig) (*Conn, error) {
	c, err := newConn(cfg, queues)
	if err != nil {
		return nil, err
	}
	if err := p.serve(c); err != nil {
		return nil, err
	}
	return c, nil
}

// serve assigns the queues of a connection to workers.
func (p *Pool) serve(c *Conn) error {
	c.waiting.shared, c.waiting.half = &p.shared, p.opts.Shared/2
	p.mu.Lock()
	p.conns[c] = true
	p.mu.Unlock()
	for i, q := range c.queues {
		if i > 0 && c.cfg.OneWorker {
			p.join(q, c.queues[0].worker.Load())
		} else {
			p.pick(q)
		}
	}
	for i, q := range c.queues {
		if err := q.call(func() error { return q.worker.Load().attach(q) }); err != nil {
			c.Close()
			return fmt.Errorf("queue %d: %w", i, err)
		}
	}
	return nil
}

// newConn makes a connection that is not served yet.
func newConn(cfg Config, queues []QueueConfig) (*Conn, error) {
	cfg.setDefaults()
	cfg.XDPHeadroom = min(cfg.XDPHeadroom, MaxXDPHeadroom)
	c := &Conn{cfg: cfg, hurry: make(chan struct{})}
	c.weight.Store(int32(cfg.Weight))
	for i := range queues {
		q, err := newQueue(c, i, &queues[i])
		if err != nil {
			return nil, fmt.Errorf("queue %d: %w", i, err)
		}
		c.queues = append(c.queues, q)
	}
	c.waiting.own = int64(len(c.queues)) * waitBytes
	return c, nil
}

// Close stops serving the vif. When it returns no worker uses its rings, its event
// channels or its TAP any more. Packets that waited for rx slots are dropped. It may be
// called again.
func (c *Conn) Close() {
	c.closing.Store(true) // from now on no further queue moves
	if c.detach(false) {
		c.detach(true) // a queue may have moved while its worker was asked
	}
	for _, q := range c.queues {
		q.worker.Load().pool.dropped(q)
	}
}

// detach makes the workers detach the queues that are attached, with one message to each
// worker, or for each queue, which follows it where it goes. It waits for them, and reports
// whether there were any.
func (c *Conn) detach(each bool) bool {
	var asked []*worker
	var waits []func() error
	for _, q := range c.queues {
		w := q.worker.Load()
		if !q.served.Load() || !each && slices.Contains(asked, w) {
			continue
		}
		asked = append(asked, w)
		waits = append(waits, q.ask(func() error { q.worker.Load().detachAll(c); return nil }))
	}
	for _, wait := range waits {
		_ = wait() // a worker that has ended has detached everything
	}
	return len(waits) > 0
}

// Queues returns the number of queues.
func (c *Conn) Queues() int { return len(c.queues) }

// Stats returns the counters of queue i. They stay readable after Close.
func (c *Conn) Stats(i int) *Stats { return c.queues[i].stats }

// QueueState is a snapshot of a queue.
type QueueState struct {
	Tx, Rx       netif.RingState
	Backlog      int // packets that wait for rx slots, or for predecessors in their flow
	BacklogBytes int // bytes of memory that they take
	Stalled      bool
	Breached     bool
	RateWaiting  bool
	Uring        bool // TAP batches go through io_uring
	OwnPages     int  // own pages of its worker
	Worker       int
	Static       int // static grants
	StaticInUse  int // static grants that unanswered requests name
}

// State returns a snapshot of queue i, taken by its worker; after Close, the zero
// value.
func (c *Conn) State(i int) QueueState {
	q := c.queues[i]
	var s QueueState
	err := q.call(func() error {
		if !q.attached {
			return nil
		}
		s = QueueState{
			Tx: q.tx.State(), Rx: q.rx.State(),
			Backlog: q.waiting(), BacklogBytes: q.waitingBytes(),
			Stalled: q.blocked.stalled, Breached: q.breached,
			RateWaiting: !q.rate.until.IsZero(),
			Uring:       q.worker.Load().uring.ring != nil,
			OwnPages:    q.worker.Load().own.granted,
			Worker:      q.worker.Load().index,
			Static:      q.static.Len(),
			StaticInUse: q.staticInUse(),
		}
		return nil
	})
	if err != nil {
		return QueueState{}
	}
	return s
}
