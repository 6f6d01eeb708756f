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
	mail   []func() // guarded by mu
	closed bool     // guarded by mu; fd is only written to while false
}

func (m *mailbox) open() (err error) {
	if m.fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	return nil
}

// post leaves f for the worker and reports whether the worker is still there.
func (m *mailbox) post(f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.mail = append(m.mail, f)
	m.waiting.Store(true)
	one := [8]byte{1}
	_, _ = unix.Write(m.fd, one[:])
	return true
}

// empty runs what was posted.
func (m *mailbox) empty() {
	var n [8]byte
	_, _ = unix.Read(m.fd, n[:])
	m.mu.Lock()
	mail := m.mail
	m.mail = nil
	m.waiting.Store(false)
	m.mu.Unlock()
	for _, f := range mail {
		f()
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

// call has the worker run f and waits until it has. A panic in f is returned as
// an error: it concerns the vif that f is about and nobody else. If the worker
// is gone, or goes before it gets to f, that is [ErrClosed].
func (w *worker) call(f func() error) error { return w.ask(f)() }

// ask has the worker run f, and returns how to wait for that, as in call.
func (w *worker) ask(f func() error) (wait func() error) {
	var err error
	ran := make(chan struct{})
	posted := w.mail.post(func() {
		defer close(ran)
		defer func() {
			if r := recover(); r != nil {
				err = w.panicked(r)
			}
		}()
		err = f()
	})
	return func() error {
		if !posted {
			return ErrClosed
		}
		select {
		case <-ran:
			return err
		case <-w.done:
		}
		select {
		case <-ran:
			return err
		default:
			return ErrClosed
		}
	}
}

// panicked makes an error of a panic, and tells where it came from.
func (w *worker) panicked(r any) error {
	err := fmt.Errorf("internal error: %v", r)
	w.pool.warn(fmt.Errorf("worker %d: %w\n%s", w.index, err, debug.Stack()))
	return err
}
