// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/netbackd/netbackd/internal/iouring"
)

// Options configure a [Pool].
type Options struct {
	// Workers is the number of threads; 0 means one per CPU.
	Workers int
	// NoUring makes workers use plain system calls even where the kernel has io_uring.
	NoUring bool
	// OwnPager grants pages of the workers' arenas to this domain itself, which makes grant
	// copies cheaper; nil: there is none, and copies go by address.
	OwnPager OwnPager
	// Shared is the memory in bytes, beyond what each queue is guaranteed, for packets of all
	// guests that wait for rx slots; 0 means DefaultShared.
	Shared int64
	// NoPriority leaves the scheduling class of workers' threads as it is.
	NoPriority bool
	// Warn reports failures that do not stop the pool: an io_uring that fails, a
	// panic that costs a vif. It is called from the workers, must not block, and may
	// be nil.
	Warn func(error)
	// Note reports decisions about guests. It is called from the workers, must not block,
	// and may be nil.
	Note func(text string)
}

// Pool runs the workers of the data plane.
type Pool struct {
	opts Options

	// mu guards load and expected in every worker, counted in every queue, the lists of
	// workers and of connections, measured, and the classes. All moves of queues hold it.
	mu       sync.Mutex
	workers  []*worker
	spares   []*worker // held by slow turns, and slow lanes; see watch.go
	threads  sync.WaitGroup
	conns    map[*Conn]bool
	priority string // see Priority
	denied   error  // the same
	classes  [levels]class

	measured    bool // expected is known in every worker
	classWarned sync.Once

	overruns chan overrun // guests that leave their workers
	spread   spreader
	hungTime time.Duration // see watch.go; tests change it before there are connections

	own    ownCount
	shared atomic.Int64 // unused bytes for packets that wait; see membudget.go

	watching  atomic.Bool // watchTurns checks turns at every tick
	wakeup    chan struct{}
	stop      chan struct{}
	stopOnce  sync.Once
	watchDone chan struct{}
}

// NewPool starts the workers.
func NewPool(opts Options) (*Pool, error) {
	if opts.Workers <= 0 {
		opts.Workers = runtime.NumCPU()
	}
	if opts.Shared <= 0 {
		opts.Shared = DefaultShared
	}
	p := &Pool{
		opts: opts, conns: make(map[*Conn]bool), hungTime: hungTime,
		overruns: make(chan overrun, 16),
		wakeup:   make(chan struct{}, 1), stop: make(chan struct{}), watchDone: make(chan struct{}),
	}
	p.shared.Store(opts.Shared)
	go p.watchTurns()
	for i := range opts.Workers {
		w, err := newWorker(p, i)
		if err != nil {
			p.Close()
			return nil, err
		}
		started := make(chan struct{})
		p.threads.Go(func() { w.run(started) })
		p.mu.Lock()
		p.workers = append(p.workers, w)
		p.mu.Unlock()
		<-started
	}
	return p, nil
}

// Close stops the workers. Connections must have been closed.
func (p *Pool) Close() {
	p.stopOnce.Do(func() { close(p.stop) })
	<-p.watchDone
	for _, w := range p.all() {
		w.mail.mu.Lock()
		w.mail.put(letter{f: func(w *worker) { w.closed = true }})
		w.mail.mu.Unlock()
	}
	p.threads.Wait() // also for a spare that has left the list, and releases its pages
}

// all returns the workers and the spares.
func (p *Pool) all() []*worker {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Concat(p.workers, p.spares)
}

// Workers returns the number of workers. Spares, which are for slow guests, do not count.
func (p *Pool) Workers() int { return len(p.workers) }

// Ping waits until every worker has answered. A worker answers between two turns. The
// error names a worker that has not answered, and the queue of its last turn.
func (p *Pool) Ping(ctx context.Context) error {
	p.mu.Lock()
	workers := slices.Clone(p.workers)
	p.mu.Unlock()
	answers := make([]chan struct{}, len(workers))
	for i, w := range workers {
		answer := make(chan struct{})
		answers[i] = answer
		if !w.post(nil, func(*worker) { close(answer) }) {
			return fmt.Errorf("worker %d: %w", i, ErrClosed)
		}
	}
	for i, answer := range answers {
		for w := workers[i]; w != nil; {
			select {
			case <-answer:
				w = nil
			case <-ctx.Done():
				return fmt.Errorf("%s does not answer, after or in %s: %w", w, w.watch.turn(), ctx.Err())
			case <-w.done:
				// The worker that has replaced it has the letter.
				p.mu.Lock()
				heir := p.workers[i]
				p.mu.Unlock()
				if heir == w {
					return fmt.Errorf("worker %d: %w", i, ErrClosed)
				}
				w = heir
			}
		}
	}
	return nil
}

// openRing gives w an io_uring, unless options or the kernel rule it out.
func (p *Pool) openRing(w *worker) {
	if p.opts.NoUring || errors.Is(iouring.Supported(), iouring.ErrNotSupported) {
		return
	}
	if err := w.openRing(); err != nil {
		w.ringFailed(err)
	}
}

// warn reports an error that stops nothing.
func (p *Pool) warn(err error) {
	if p.opts.Warn != nil {
		p.opts.Warn(err)
	}
}

// note reports a decision.
func (p *Pool) note(text string) {
	if p.opts.Note != nil {
		p.opts.Note(text)
	}
}

// pick assigns q to the worker that is the least busy, or of several, to the one with the
// fewest queues. q counts in that worker's load until dropped.
func (p *Pool) pick(q *Queue) {
	p.mu.Lock()
	defer p.mu.Unlock()
	best := p.workers[0]
	for _, w := range p.workers[1:] {
		if w.before(best) {
			best = w
		}
	}
	p.assign(q, best)
}

// before reports whether a new queue should rather be with this worker than with another one.
// Preconditions: pool.mu held.
func (w *worker) before(other *worker) bool {
	if a, b := int(w.expected/loadStep), int(other.expected/loadStep); a != b {
		return a < b
	}
	return w.load < other.load
}

// assign makes w the worker of q. Preconditions: mu held.
func (p *Pool) assign(q *Queue, w *worker) {
	w.load++
	if p.measured {
		w.expected += newLoad
	}
	q.worker.Store(w)
	q.counted = true
}

// join assigns q to worker w. q counts in its load until dropped.
func (p *Pool) join(q *Queue, w *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.assign(q, w)
}

// dropped removes q from its worker's load. It may be called again.
func (p *Pool) dropped(q *Queue) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, q.conn)
	if !q.counted {
		return
	}
	q.counted = false
	w := q.worker.Load()
	if !slices.Contains(p.spares, w) {
		w = p.workers[w.index] // w, or the worker that has replaced it
	}
	w.load--
}
