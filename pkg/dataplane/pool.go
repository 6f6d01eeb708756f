// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/netbackd/netbackd/internal/iouring"
)

// Options configure a [Pool].
type Options struct {
	// Workers is the number of threads; 0 means one per CPU.
	Workers int
	// NoUring keeps to plain system calls even where the kernel has io_uring.
	NoUring bool
	// Warn is told what goes wrong without stopping anything: an io_uring that
	// fails, a panic that costs a vif. It is called from the workers, must not
	// block, and may be nil.
	Warn func(error)
}

// Pool is the workers of the data plane.
type Pool struct {
	opts    Options
	workers []*worker

	// mu guards load in every worker and counted in every queue.
	mu sync.Mutex
}

// NewPool starts the workers.
func NewPool(opts Options) (*Pool, error) {
	if opts.Workers <= 0 {
		opts.Workers = runtime.NumCPU()
	}
	p := &Pool{opts: opts}
	for i := range opts.Workers {
		w, err := newWorker(p, i)
		if err != nil {
			p.Close()
			return nil, err
		}
		started := make(chan struct{})
		go w.run(started)
		p.workers = append(p.workers, w)
		<-started
	}
	return p, nil
}

// Close stops the workers. Connections must have been closed.
func (p *Pool) Close() {
	for _, w := range p.workers {
		w.mail.post(func() { w.closed = true })
	}
	for _, w := range p.workers {
		<-w.done
	}
}

// Workers is the number of threads.
func (p *Pool) Workers() int { return len(p.workers) }

// Ping waits until every worker has answered, which takes each no longer than a turn
// of one queue. The error names one that has not.
func (p *Pool) Ping(ctx context.Context) error {
	answers := make([]chan struct{}, len(p.workers))
	for i, w := range p.workers {
		answer := make(chan struct{})
		answers[i] = answer
		if !w.mail.post(func() { close(answer) }) {
			return fmt.Errorf("worker %d: %w", i, ErrClosed)
		}
	}
	for i, answer := range answers {
		select {
		case <-answer:
		case <-p.workers[i].done:
			return fmt.Errorf("worker %d: %w", i, ErrClosed)
		case <-ctx.Done():
			return fmt.Errorf("worker %d does not answer: %w", i, ctx.Err())
		}
	}
	return nil
}

// openRing gives w an io_uring if that is wanted and to be had.
func (p *Pool) openRing(w *worker) {
	if p.opts.NoUring || errors.Is(iouring.Supported(), iouring.ErrNotSupported) {
		return
	}
	if err := w.openRing(); err != nil {
		w.ringFailed(err)
	}
}

func (p *Pool) warn(err error) {
	if p.opts.Warn != nil {
		p.opts.Warn(err)
	}
}

// pick chooses the worker with the fewest queues for q, which counts as its own
// until dropped.
func (p *Pool) pick(q *Queue) {
	p.mu.Lock()
	defer p.mu.Unlock()
	best := p.workers[0]
	for _, w := range p.workers[1:] {
		if w.load < best.load {
			best = w
		}
	}
	best.load++
	q.worker, q.counted = best, true
}

// join gives q to a certain worker.
func (p *Pool) join(q *Queue, w *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w.load++
	q.worker, q.counted = w, true
}

// dropped takes q off its worker's account, once.
func (p *Pool) dropped(q *Queue) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if q.counted {
		q.counted = false
		q.worker.load--
	}
}
