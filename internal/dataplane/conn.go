// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Times after which a guest that gives no rx slots is left alone. Without
// feature-rx-notify the guest does not tell of new slots; xen-netback then
// keeps packets for no longer than 30 ms, and so do we.
const (
	DefaultDrain  = 10 * time.Second
	DefaultStall  = 10 * time.Second
	noNotifyDrain = 30 * time.Millisecond
	noNotifyPoll  = time.Millisecond
)

// Config is what is the same for all queues of a connection.
type Config struct {
	Domid    xen.Domid
	Guest    offload.Guest // what the frontend takes
	SG       bool          // feature-sg: the frontend takes packets of several slots
	RxNotify bool          // feature-rx-notify: it sends an event when it posts rx slots
	VnetHdr  bool          // the TAP speaks vnet headers

	Limiter *Limiter      // rate of guest to host; nil: none
	Mcast   *McastList    // the vif's multicast list
	Hash    *steer.Config // hash that packets to the guest carry from the start; nil: none

	// XDPHeadroom sets the headroom from the start, as [Conn.SetXDPHeadroom] does later.
	XDPHeadroom uint16

	// OneWorker gives all queues to one worker, which [Conn.SetSteering] needs.
	OneWorker bool

	Drain time.Duration // 0: DefaultDrain
	Stall time.Duration // 0: DefaultStall

	// Notice is called from a worker when something happens to the connection
	// that its owner must act on. It must not block.
	Notice func(Notice)
}

// NoticeKind is what a [Notice] is about.
type NoticeKind uint8

// Kinds of notice.
const (
	// Breach: the frontend broke the ring protocol. The queue is at rest and
	// stays so until the connection is closed.
	Breach NoticeKind = iota
	// Stalled: the guest has given a queue no rx slots for [Config.Stall].
	Stalled
	// Resumed: it gives slots again.
	Resumed
	// TapGone: somebody deleted the TAP.
	TapGone
	// TooBig: packets that are too big for a guest without scatter-gather were
	// dropped. It is said at most once a second.
	TooBig
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
	}
	return fmt.Sprintf("unknown(%d)", uint8(k))
}

// Notice is something that happened to a connection.
type Notice struct {
	Kind  NoticeKind
	Queue int
	Err   error // of a Breach
}

// QueueConfig is one queue: its mapped rings, its bound event channels, its TAP
// queue. From Connect on they are the worker's; after Close the owner unmaps
// and unbinds them.
type QueueConfig struct {
	TxPage, RxPage []byte
	TxPort, RxPort evtchn.Port // local ports; equal if the frontend has one channel
	Grants         Copier
	Events         Events
	Tap            *tap.Queue
	Journal        *Journal // nil: nothing outlives the process
	Stalled        bool     // a predecessor has said so of it

	// Static is the queue's static grants, perhaps some already; nil: there are
	// and will be none. After Close its owner closes it.
	Static *staticgrant.Table
}

// Conn is a connected vif as the data plane sees it.
type Conn struct {
	cfg     Config
	queues  []*Queue
	waiting vifMemory // of packets that wait

	// Of the goroutine that changes the steering.
	steering   *steer.Config // set by SetSteering
	resteering *resteering   // the last one

	hurry   chan struct{} // closed by Hurry
	hurried sync.Once
}

// ErrClosed is returned by a [Pool] that has been closed.
var ErrClosed = errors.New("dataplane: closed")

// Connect attaches to the rings of a vif and starts to serve them. Batches that
// a journal records and the rings do not show are finished first, so this is
// also how a restarted daemon takes over a running vif.
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

// serve gives the queues of a connection to workers.
func (p *Pool) serve(c *Conn) error {
	c.waiting.shared = &p.shared
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

// newConn makes a connection that nobody serves yet.
func newConn(cfg Config, queues []QueueConfig) (*Conn, error) {
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
	cfg.XDPHeadroom = min(cfg.XDPHeadroom, MaxXDPHeadroom)
	c := &Conn{cfg: cfg, hurry: make(chan struct{})}
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

// Close stops serving the vif. When it returns no worker touches its rings, its
// channels or its TAP any more. Packets that waited for rx slots are dropped.
// Closing again is fine.
func (c *Conn) Close() {
	var asked []*worker
	var waits []func() error
	for _, q := range c.queues {
		w := q.worker.Load()
		if slices.Contains(asked, w) {
			continue
		}
		asked = append(asked, w)
		waits = append(waits, q.ask(func() error { q.worker.Load().detachAll(c); return nil }))
	}
	for _, wait := range waits {
		_ = wait() // a worker that is gone has let go of everything
	}
	for _, q := range c.queues {
		q.worker.Load().pool.dropped(q)
	}
}

// Queues is the number of queues.
func (c *Conn) Queues() int { return len(c.queues) }

// Stats are the counters of queue i. They stay readable after Close.
func (c *Conn) Stats(i int) *Stats { return &c.queues[i].stats }

// QueueState is what can be seen of a queue from outside.
type QueueState struct {
	Tx, Rx       netif.RingState
	Backlog      int // packets that wait for rx slots, or for others of their flow
	BacklogBytes int // memory that they take
	Stalled      bool
	Breached     bool
	RateWaiting  bool
	Uring        bool // TAP batches go through io_uring
	Worker       int
	Static       int // static grants
	StaticInUse  int // of those, named by requests that are not answered
}

// State asks the worker of queue i for its state. After Close it is the zero
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
			Stalled: q.stalled, Breached: q.breached,
			RateWaiting: !q.rateUntil.IsZero(),
			Uring:       q.worker.Load().ring != nil,
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
