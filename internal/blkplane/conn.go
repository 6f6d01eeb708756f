// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/netbackd/netbackd/internal/iouring"
)

const (
	// DefaultMaxThreads bounds the queues of all connections, since each has a thread.
	DefaultMaxThreads = 4096

	// DefaultMaxMaps bounds the persistent grants that all queues have mapped: the
	// hypervisor has a bounded number of grant handles, which all back ends of the host
	// share.
	DefaultMaxMaps = 32 * MaxPersistent
)

// Options configure a [Pool].
type Options struct {
	// MaxThreads bounds the queues of all connections; 0: DefaultMaxThreads.
	MaxThreads int
	// MaxMaps bounds the persistent grants of all queues; 0: DefaultMaxMaps. Pages beyond
	// it are copied.
	MaxMaps int
	// Turns bounds the queues that work at a time; 0: the number of processors.
	Turns int
	// NoUring makes queues use threads for the disk even where the kernel has io_uring.
	NoUring bool
	// KeepThreads keeps the threads of queues that have ended for other ones, with the rings that
	// were reserved for them; see [iouring.Reserve].
	KeepThreads bool
	// Warn reports failures that do not stop the pool. It is called from the threads
	// of queues, must not block, and may be nil.
	Warn func(error)
	// AtStep is called from the threads of queues with the name of each step that they
	// reach; see Steps. It is for tests that end the process there. nil: nothing is called.
	AtStep func(step string)
}

// Pool makes connections and bounds their threads.
type Pool struct {
	opts    Options
	threads atomic.Int64
	maps    atomic.Int64 // persistent grants

	idle  chan func() // work for threads without a queue; see keep.go
	began time.Time
	turns turns
	lanes lanes
}

// NewPool makes a pool. It starts nothing.
func NewPool(opts Options) *Pool {
	if opts.MaxThreads <= 0 {
		opts.MaxThreads = DefaultMaxThreads
	}
	if opts.MaxMaps <= 0 {
		opts.MaxMaps = DefaultMaxMaps
	}
	if opts.Warn == nil {
		opts.Warn = func(error) {}
	}
	return &Pool{opts: opts, idle: make(chan func()), began: time.Now(), turns: newTurns(opts.Turns)}
}

// Threads returns the number of queues of all connections that are not done.
func (p *Pool) Threads() int { return int(p.threads.Load()) }

// Maps returns the number of persistent grants that all queues have mapped.
func (p *Pool) Maps() int { return int(p.maps.Load()) }

// QueueThreads returns the most threads of this process that a queue has: its own and one
// for long discards, and without io_uring those that wait for the disk.
func (p *Pool) QueueThreads() int {
	if p.opts.NoUring || iouring.Supported() != nil {
		return 2 + diskThreads
	}
	return 2
}

// diskThreads bounds the threads that run a queue's operations which take time: without
// io_uring those of this process, with it the kernel's.
const diskThreads = 4

// MaxThreads returns the bound of Threads.
func (p *Pool) MaxThreads() int { return p.opts.MaxThreads }

var (
	// ErrThreads is the error of Connect when there are too many queues already.
	ErrThreads = errors.New("the host has no threads left for queues")

	// ErrServed is the error of Connect for a ring that was served before by a back end
	// whose journal is not there. Requests in flight are not known, so the frontend has
	// to connect anew.
	ErrServed = errors.New("the ring was served before, and its journal is missing")

	// ErrJournal is the error of Connect for a ring with a journal that contradicts it.
	ErrJournal = errors.New("the journal does not fit the ring: requests in flight are not known")
)

// Conn is a connected vbd.
type Conn struct {
	pool    *Pool
	cfg     Config
	sectors atomic.Uint64
	lost    atomic.Bool // a flush has failed; see queue.synced
	queues  []*queue

	running atomic.Int64  // queues that have not ended
	done    chan struct{} // closed when all have
	started sync.Once
}

// Connect opens the devices, maps the rings and binds the event channels of a vbd, and
// reads its journals. It changes no ring except for the stamp of a new one, and serves
// nothing before [Conn.Start]. It may take long if a page of the guest is paged out.
func (p *Pool) Connect(cfg Config) (*Conn, error) {
	n := int64(len(cfg.Queues))
	if p.threads.Add(n) > int64(p.opts.MaxThreads) {
		p.threads.Add(-n)
		return nil, fmt.Errorf("%w: the bound is %d", ErrThreads, p.opts.MaxThreads)
	}
	if cfg.Notice == nil {
		cfg.Notice = func(Notice) {}
	}
	if cfg.Guest == nil {
		cfg.Guest = NewGuest(0)
	}
	c := &Conn{pool: p, cfg: cfg, done: make(chan struct{})}
	c.sectors.Store(cfg.Disk.Sectors())
	for i := range cfg.Queues {
		q, err := newQueue(c, i)
		if err != nil {
			for _, q := range c.queues {
				q.release()
			}
			p.threads.Add(-n)
			return nil, fmt.Errorf("queue %d: %w", i, err)
		}
		c.queues = append(c.queues, q)
	}
	c.running.Store(n)
	c.SetWeight(cfg.Weight)
	return c, nil
}

// Adopted reports whether the rings were served by a predecessor.
func (c *Conn) Adopted() bool {
	for _, q := range c.queues {
		if q.adopted {
			return true
		}
	}
	return false
}

// Start starts to serve. Adopted queues first start the requests again that their
// predecessor left.
func (c *Conn) Start() {
	c.started.Do(func() {
		for _, q := range c.queues {
			c.pool.run(q.run)
		}
	})
}

// Drain makes all queues consume no more requests and waits until they have answered all
// that they had consumed, or until ctx is done. Then the error is that of ctx, and requests
// are still answered late. A queue that has stopped for good counts as drained once its
// operations have ended.
func (c *Conn) Drain(ctx context.Context) error {
	for _, q := range c.queues {
		q.tell(cmdDrain)
	}
	for _, q := range c.queues {
		select {
		case <-q.drained:
		case <-q.ended:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Close makes the queues end. They consume no more requests and start none that they have
// consumed: these stay in the journal. A queue with operations under way ends when the
// last of them has ended: their memory and its mappings must stay until then. It answers
// these requests late. Close does not wait; see Done. It may be called again.
func (c *Conn) Close() {
	c.started.Do(func() { // never started: there is nothing to wait for
		for _, q := range c.queues {
			q.end()
		}
	})
	for _, q := range c.queues {
		q.tell(cmdClose)
	}
}

// Done returns a channel that is closed when all queues have ended after Close: the rings
// are unmapped, the event channels unbound, the devices closed, and the disk is not used
// any more. It is never closed if a queue cannot learn that its operations have ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// queueEnded is called by each queue when it has released everything.
func (c *Conn) queueEnded() {
	c.pool.threads.Add(-1)
	if c.running.Add(-1) == 0 {
		c.cfg.Guest.weigh(c, 0)
		close(c.done)
	}
}

// SetWeight sets the weight of the vbd, from 1 to [MaxWeight]. The guest has the largest weight
// of its vbds: with the weight n it gets n times as much as one with the weight 1, of the
// processors and of a device, if both want more than there is. It may be called from any
// goroutine until Close.
func (c *Conn) SetWeight(n int) { c.cfg.Guest.weigh(c, min(max(n, 1), MaxWeight)) }

// Weight returns the guest's weight.
func (c *Conn) Weight() int { return c.cfg.Guest.Weight() }

// Resize sets the size of the disk in sectors of 512 bytes, as the frontend is told.
// Requests that are checked after it must keep to it.
func (c *Conn) Resize(sectors uint64) { c.sectors.Store(sectors) }

// Queues returns the number of queues.
func (c *Conn) Queues() int { return len(c.queues) }

// Stats returns the counters of queue i. They stay readable after Close.
func (c *Conn) Stats(i int) *Stats { return &c.queues[i].stats }
