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
	waiting atomic.Bool // there is mail; what the worker looks at between two turns

	mu     sync.Mutex
	mail   []letter // guarded by mu
	closed bool     // guarded by mu; fd is only written to while false

	// heir has taken the worker's place, but for the queues of slow vifs; nil: none
	// has. Guarded by mu.
	heir *worker
}

// letter is a function for a worker to run. q is the queue that it is about, or nil.
type letter struct {
	q *Queue
	f func(*worker)
}

func (m *mailbox) open() (err error) {
	if m.fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	return nil
}

// owns reports whether mail about q, or about no queue if that is nil, is for this
// worker. Preconditions: mail.mu held.
func (w *worker) owns(q *Queue) bool {
	return w.mail.heir == nil || q != nil && q.onSpare.Load() && q.worker.Load() == w
}

// next returns the worker that gets mail about q which is not for this one.
// Preconditions: mail.mu held; owns(q) is false.
func (w *worker) next(q *Queue) *worker {
	if q == nil || q.worker.CompareAndSwap(w, w.mail.heir) {
		return w.mail.heir
	}
	return q.worker.Load()
}

// post leaves f, which is about q or about no queue if that is nil, for the worker,
// or for the one that has the queue by now. It reports whether that one is still there.
func (w *worker) post(q *Queue, f func(*worker)) bool {
	m := &w.mail
	m.mu.Lock()
	if !w.owns(q) {
		next := w.next(q)
		m.mu.Unlock()
		return next.post(q, f)
	}
	defer m.mu.Unlock()
	return m.put(letter{q, f})
}

// putFirst leaves a letter that has the worker take over queues, or the one that has
// taken its place by now, and returns which. A slow lane has an heir as well, but takes
// slow vifs over.
func (w *worker) putFirst(l letter) *worker {
	m := &w.mail
	m.mu.Lock()
	if heir := m.heir; heir != nil && !l.q.onSpare.Load() {
		m.mu.Unlock()
		return heir.putFirst(l)
	}
	defer m.mu.Unlock()
	m.put(l)
	return w
}

// put leaves a letter for this worker, whatever it is about. Preconditions: mu held.
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

// readMail runs what was posted.
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
		l.f(w)
	}
}

// close refuses all further mail, and drops what was not read.
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

// call has the queue's worker run f and waits until it has. A panic in f is returned
// as an error: it concerns the queue's vif and no other. If the worker is gone, or
// goes before it gets to f, that is [ErrClosed].
func (q *Queue) call(f func() error) error { return q.ask(f)() }

// ask has the queue's worker run f, and returns a function that waits for it as call does.
func (q *Queue) ask(f func() error) (wait func() error) {
	var err error
	ran := make(chan struct{})
	posted := q.worker.Load().post(q, func(w *worker) {
		defer close(ran)
		defer func() {
			if r := recover(); r != nil {
				err = w.panicked(r)
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
				posted = q.worker.Load() != w // it may be another's by now
			}
		}
		return ErrClosed
	}
}

// panicked returns an error for a panic, and logs it with the stack.
func (w *worker) panicked(r any) error {
	err := fmt.Errorf("internal error: %v", r)
	w.pool.warn(fmt.Errorf("worker %d: %w\n%s", w.index, err, debug.Stack()))
	return err
}
