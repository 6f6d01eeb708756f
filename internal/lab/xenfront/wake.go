// SPDX-License-Identifier: Apache-2.0

package xenfront

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/evtchn"
)

// Waker is an eventfd with which any goroutine ends the sleep of the goroutine that owns
// a queue.
type Waker struct {
	mu sync.Mutex // keeps wake from writing to a closed and reused fd
	fd int        // -1 once closed; written under mu

	ports [2]evtchn.Port // buffer of TakeEvents for all ports of a queue
}

func NewWaker() (*Waker, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("xenfront: eventfd: %w", err)
	}
	return &Waker{fd: fd}, nil
}

// FD returns the descriptor for polling; readable after Wake.
func (w *Waker) FD() int { return w.fd }

// Wake ends the present or the next sleep.
func (w *Waker) Wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fd >= 0 {
		// EAGAIN means that it is set already.
		_, _ = unix.Write(w.fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

// Drain resets the eventfd. Only the goroutine that sleeps may call it.
func (w *Waker) Drain() {
	var b [8]byte
	_, _ = unix.Read(w.fd, b[:])
}

// Close may be called on a nil waker.
func (w *Waker) Close() {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = unix.Close(w.fd)
	w.fd = -1
}

// Sleep waits for an event or a wake-up, without a timeout, and reports whether there was
// an event.
func Sleep(e Events, w *Waker) (event bool, err error) {
	fds := [2]unix.PollFd{
		{Fd: int32(e.FD()), Events: unix.POLLIN},
		{Fd: int32(w.fd), Events: unix.POLLIN},
	}
	for {
		if _, err := unix.Poll(fds[:], -1); err == nil {
			break
		} else if err != unix.EINTR {
			return false, fmt.Errorf("xenfront: poll: %w", err)
		}
	}
	if fds[1].Revents != 0 {
		w.Drain()
	}
	if fds[0].Revents == 0 {
		return false, nil
	}
	return TakeEvents(e, w)
}

// TakeEvents reads the ports that had events and unmasks them.
func TakeEvents(e Events, w *Waker) (event bool, err error) {
	n, err := e.Pending(w.ports[:])
	if err != nil || n == 0 {
		return false, err
	}
	return true, e.Unmask(w.ports[:n])
}
