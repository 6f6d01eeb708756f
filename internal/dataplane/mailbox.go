// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// mailbox holds functions that other goroutines post to a worker, which runs them
// between two turns. It is for control alone, so a lock and an eventfd are cheap enough.
type mailbox struct {
	fd      int         // eventfd, readable while there is mail
	waiting atomic.Bool // there is mail; the worker checks it between two turns

	mu     sync.Mutex
	mail   []letter // guarded by mu
	closed bool     // guarded by mu; fd is only written to while false

	// heir has replaced the worker for all queues except those of slow vifs; nil: not
	// replaced. Guarded by mu.
	heir *worker
}

// letter is a function for a worker to run. q is the queue that it concerns, or nil.
type letter struct {
	q      *Queue
	f      func(*worker)
	adopts []*Queue // f makes the worker adopt these; nil: it does not
}

func (m *mailbox) open() (err error) {
	if m.fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	return nil
}

// owns reports whether this worker must run mail about q; q may be nil. Preconditions:
// mail.mu held.
func (w *worker) owns(q *Queue) bool {
	if q == nil {
		return w.mail.heir == nil
	}
	return q.worker.Load() == w && (w.mail.heir == nil || q.onSpare.Load())
}

// next returns the worker to which mail about q is forwarded. Preconditions: mail.mu
// held; owns(q) is false.
func (w *worker) next(q *Queue) *worker {
	if heir := w.mail.heir; q == nil || heir != nil && q.worker.CompareAndSwap(w, heir) {
		return heir
	}
	return q.worker.Load()
}

// post makes the worker run f, or the worker that has taken over q by now. f concerns q,
// which may be nil. It returns false if that worker has ended.
func (w *worker) post(q *Queue, f func(*worker)) bool {
	m := &w.mail
	m.mu.Lock()
	if !w.owns(q) {
		next := w.next(q)
		m.mu.Unlock()
		return next.post(q, f)
	}
	defer m.mu.Unlock()
	return m.put(letter{q: q, f: f})
}

// receive makes this worker that of the queues which l adopts, instead of from, and posts l.
// All mail about them comes behind it. With whole, queues of their vifs that are not attached
// yet go with them. If this worker has been replaced its heir gets the letter, unless the
// queues are those of a slow vif, which a slow lane adopts.
func (w *worker) receive(from *worker, l letter, whole bool) {
	m := &w.mail
	m.mu.Lock()
	if heir := m.heir; heir != nil && !l.q.onSpare.Load() {
		m.mu.Unlock()
		heir.receive(from, l, whole)
		return
	}
	defer m.mu.Unlock()
	for _, q := range l.adopts {
		q.worker.CompareAndSwap(from, w)
		if !whole {
			continue
		}
		for _, o := range q.conn.queues {
			if from.gives(o, l.adopts) {
				o.worker.CompareAndSwap(from, w)
			}
		}
	}
	m.put(l)
}

// forward sends a letter on that is not for this worker any more. Preconditions: mail.mu held;
// owns(l.q) is false.
func (w *worker) forward(l letter) {
	if heir := w.mail.heir; l.adopts != nil && heir != nil {
		heir.receive(w, l, false)
		return
	}
	w.next(l.q).post(l.q, l.f)
}

// put posts a letter to this worker without asking owns. Preconditions: mu held.
func (m *mailbox) put(l letter) bool {
	if m.closed {
		return false
	}
	m.mail = append(m.mail, l)
	m.waiting.Store(true)
	one := [8]byte{1}
	_, _ = unix.Write(m.fd, one[:])
	return true
}

// isClosed reports whether the worker takes no more mail.
func (m *mailbox) isClosed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}

// readMail runs the functions that were posted.
func (w *worker) readMail() {
	m := &w.mail
	var n [8]byte
	_, _ = unix.Read(m.fd, n[:])
	m.mu.Lock()
	mail := m.mail
	m.mail = nil
	m.waiting.Store(false)
	m.mu.Unlock()
	for _, l := range mail {
		if w.keeps(l) {
			l.f(w)
		}
	}
	w.epoll.held.Release() // the senders are ready
}

// keeps reports whether a letter that was read is still for this worker: one before it may have
// moved the queue away. If not, it forwards it.
func (w *worker) keeps(l letter) bool {
	if l.q == nil {
		return true
	}
	w.mail.mu.Lock()
	if w.owns(l.q) {
		w.mail.mu.Unlock()
		return true
	}
	next := w.next(l.q)
	w.mail.mu.Unlock()
	next.post(l.q, l.f)
	return false
}

// close refuses all further mail, and drops mail that was not read.
func (m *mailbox) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	m.closed = true
	m.mail = nil
	if m.fd >= 0 {
		_ = unix.Close(m.fd)
	}
}

// call makes the queue's worker run f and waits for the result. A panic in f is returned
// as an error: it concerns the queue's vif and no other. If the worker has ended, or ends
// before it runs f, the error is [ErrClosed].
func (q *Queue) call(f func() error) error { return q.ask(f)() }

// ask makes the queue's worker run f, and returns a function that waits for the result as
// call does.
func (q *Queue) ask(f func() error) (wait func() error) {
	var err error
	ran := make(chan struct{})
	posted := q.worker.Load().post(q, func(w *worker) {
		defer close(ran)
		defer func() {
			if r := recover(); r != nil {
				err = w.panicked(q, r)
			}
		}()
		err = f()
	})
	return func() error {
		for posted {
			w := q.worker.Load()
			select {
			case <-ran:
				return err
			case <-w.done:
			}
			select {
			case <-ran:
				return err
			default:
				posted = q.worker.Load() != w // another worker may have taken the queue over
			}
		}
		return ErrClosed
	}
}

// panicked returns an error for a panic in the service of a queue. Unless it is a fault in
// memory that a front end has taken away, it is logged with the stack.
func (w *worker) panicked(q *Queue, r any) error {
	if q.virt != nil {
		if err := q.virt.fault(r); err != nil {
			return err
		}
	}
	err := fmt.Errorf("internal error: %v", r)
	w.pool.warn(fmt.Errorf("worker %d: %w\n%s", w.index, err, debug.Stack()))
	return err
}
