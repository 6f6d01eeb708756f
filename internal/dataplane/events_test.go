// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/evtchn"
)

// Local ports of a queue at the backend.
const (
	txPort evtchn.Port = 5
	rxPort evtchn.Port = 6
)

// events simulates an event channel device: a delivered port is masked until Unmask, and
// an event that comes meanwhile is delivered then.
type events struct {
	tb testing.TB
	fd int // readable while Pending would return a port

	mu       sync.Mutex
	queue    [16]evtchn.Port
	n        int
	masked   [16]bool
	pending  [16]bool
	overflow bool
	err      error // result of the next Pending

	notified [16]int       // events sent to the guest
	count    [8]byte       // of the eventfd
	wake     chan struct{} // to the guest, if it is there
}

var _ Events = (*events)(nil)

func newEvents(tb testing.TB) *events {
	tb.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		tb.Fatal(err)
	}
	e := &events{tb: tb, fd: fd}
	tb.Cleanup(func() { unix.Close(fd) })
	e.rebind()
	return e
}

// rebind binds the ports again. Like BindInterdomain it leaves an event pending.
func (e *events) rebind() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.n, e.masked, e.pending = 0, [16]bool{}, [16]bool{}
	e.deliver(txPort)
	e.deliver(rxPort)
}

func (e *events) signal() {
	e.count = [8]byte{1}
	_, _ = unix.Write(e.fd, e.count[:])
}

// send sends an event from the guest.
func (e *events) send(p evtchn.Port) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.deliver(p)
}

func (e *events) deliver(p evtchn.Port) {
	if e.masked[p] {
		e.pending[p] = true
		return
	}
	e.masked[p] = true
	e.queue[e.n] = p
	e.n++
	e.signal()
}

func (e *events) FD() int { return e.fd }

func (e *events) Pending(ports []evtchn.Port) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err != nil {
		return 0, e.err
	}
	if e.overflow {
		return 0, evtchn.ErrOverflow
	}
	n := copy(ports, e.queue[:e.n])
	e.n = copy(e.queue[:], e.queue[n:e.n])
	if e.n == 0 {
		_, _ = unix.Read(e.fd, e.count[:])
	}
	return n, nil
}

func (e *events) Unmask(ports []evtchn.Port) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range ports {
		if p == 0 {
			e.tb.Error("port 0 unmasked")
			return unix.EINVAL
		}
		e.masked[p] = false
		if e.pending[p] {
			e.pending[p] = false
			e.deliver(p)
		}
	}
	return nil
}

func (e *events) Notify(p evtchn.Port) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.notified[p]++
	if e.wake != nil {
		select {
		case e.wake <- struct{}{}:
		default:
		}
	}
	return nil
}

// Reset discards the ports that wait for Pending. They stay masked.
func (e *events) Reset() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.overflow = false
	e.n = 0
	_, _ = unix.Read(e.fd, e.count[:])
	return nil
}

// notifies returns the number of events sent on p since the last call.
func (e *events) notifies(p evtchn.Port) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := e.notified[p]
	e.notified[p] = 0
	return n
}

// noEvents is a handle that never has an event.
type noEvents struct{ fd int }

func (e noEvents) FD() int                          { return e.fd }
func (noEvents) Pending([]evtchn.Port) (int, error) { return 0, nil }
func (noEvents) Unmask([]evtchn.Port) error         { return nil }
func (noEvents) Notify(evtchn.Port) error           { return nil }
func (noEvents) Reset() error                       { return nil }
