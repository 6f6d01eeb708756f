// SPDX-License-Identifier: Apache-2.0

package netfront

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/evtchn"
)

// waker is an eventfd with which any goroutine ends the sleep of the goroutine that owns
// a queue.
type waker struct {
	mu sync.Mutex // keeps wake from writing to a closed and reused fd
	fd int        // -1 once closed; written under mu

	ports [2]evtchn.Port // buffer of takeEvents for all ports of a queue
}

func newWaker() (*waker, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("netfront: eventfd: %w", err)
	}
	return &waker{fd: fd}, nil
}

func (w *waker) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fd >= 0 {
		// EAGAIN means that it is set already.
		_, _ = unix.Write(w.fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

// drain resets the eventfd. Only the goroutine that sleeps may call it.
func (w *waker) drain() {
	var b [8]byte
	_, _ = unix.Read(w.fd, b[:])
}

// close may be called on a nil waker.
func (w *waker) close() {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = unix.Close(w.fd)
	w.fd = -1
}

// sleep waits for an event or a wake-up, without a timeout, and reports whether there was
// an event.
func sleep(e Events, w *waker) (event bool, err error) {
	fds := [2]unix.PollFd{
		{Fd: int32(e.FD()), Events: unix.POLLIN},
		{Fd: int32(w.fd), Events: unix.POLLIN},
	}
	for {
		if _, err := unix.Poll(fds[:], -1); err == nil {
			break
		} else if err != unix.EINTR {
			return false, fmt.Errorf("netfront: poll: %w", err)
		}
	}
	if fds[1].Revents != 0 {
		w.drain()
	}
	if fds[0].Revents == 0 {
		return false, nil
	}
	return takeEvents(e, w)
}

// takeEvents reads the ports that had events and unmasks them.
func takeEvents(e Events, w *waker) (event bool, err error) {
	n, err := e.Pending(w.ports[:])
	if err != nil || n == 0 {
		return false, err
	}
	return true, e.Unmask(w.ports[:n])
}
