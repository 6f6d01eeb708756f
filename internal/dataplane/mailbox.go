// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// mailbox is how other goroutines talk to a worker: they post functions, which
// the worker runs between two turns. Control traffic only, so a lock and an
// eventfd are cheap enough.
type mailbox struct {
	fd      int         // eventfd, readable while there is mail
	waiting atomic.Bool // there is mail: what a worker looks at between two turns

	mu     sync.Mutex
	mail   []letter // guarded by mu
	closed bool     // guarded by mu; fd is only written to while false

	// Of a worker that others have taken the place of: who gets what is not for
	// a queue of vif keeps. Guarded by mu.
	heir  *worker
	keeps *Conn
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

// mine reports whether mail about q stays here. Preconditions: mu held.
func (m *mailbox) mine(q *Queue) bool {
	return m.heir == nil || q != nil && q.conn == m.keeps
}

// post leaves f, which is about q or about no queue if that is nil, for the worker
// and reports whether the worker is still there. If the queue has gone to another
// worker, that one gets it.
func (w *worker) post(q *Queue, f func(*worker)) bool {
	m := &w.mail
	m.mu.Lock()
	if !m.mine(q) {
		heir := m.heir
		m.mu.Unlock()
		if q != nil {
			q.worker.CompareAndSwap(w, heir)
		}
		return heir.post(q, f)
	}
	defer m.mu.Unlock()
	return m.put(letter{q, f})
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

// close refuses all further mail. What is left unread stays unread.
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

// ask has the queue's worker run f, and returns how to wait for that, as in call.
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

// panicked makes an error of a panic, and tells where it came from.
func (w *worker) panicked(r any) error {
	err := fmt.Errorf("internal error: %v", r)
	w.pool.warn(fmt.Errorf("worker %d: %w\n%s", w.index, err, debug.Stack()))
	return err
}
