// SPDX-License-Identifier: Apache-2.0

package heldwait

import (
	"time"

	"golang.org/x/sys/unix"
)

// soon is the longest time between two events after which the next one is expected soon.
const soon = time.Millisecond

// enough is the number of held waits that events ended after which an interruption says
// nothing about the next event. The scheduler interrupts a thread that runs for 10 ms.
const enough = 16

// Epoll waits for events of an epoll, on one thread. The zero value is ready for use.
//
// The first wait after a quiet time is a usual one. If an event ends it soon, the next wait
// is held, and so are those after it, until the scheduler interrupts one before enough waits
// have brought events. A usual wait in between would wake the scheduler's monitor for a
// millisecond, in which it runs every 20 us.
type Epoll struct {
	busy  bool // events come in short intervals
	ended int  // held waits that events ended since the last interruption, up to enough
}

// Wait stores events in buf and returns their number. It waits for up to timeout
// milliseconds, or for ever if that is negative. An interrupted wait returns EINTR.
func (e *Epoll) Wait(fd int, buf []unix.EpollEvent, timeout int) (int, error) {
	switch {
	case timeout == 0:
		return epollRaw(fd, buf, 0)
	case !Begin():
		return unix.EpollWait(fd, buf, timeout)
	case e.busy:
		n, err := epollRaw(fd, buf, timeout)
		End()
		switch {
		case err != nil:
			e.busy, e.ended = e.ended == enough, 0
		case n > 0:
			e.ended = min(e.ended+1, enough)
		}
		return n, err
	}
	End()
	start := time.Now()
	n, err := unix.EpollWait(fd, buf, timeout)
	e.busy = n > 0 && time.Since(start) < soon
	return n, err
}

// Release makes the next wait a usual one. It is called when the thread has made other
// goroutines ready, which may be waiting for its P.
func (e *Epoll) Release() { e.busy, e.ended = false, 0 }
