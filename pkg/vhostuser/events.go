// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// events are the descriptors by which a session notifies its front end: eventfds that are
// never read here. The front end has the same open files. It can make one blocking and fill
// its counter, and then [Signal] waits for a reader: a worker waits, and with it the session,
// which waits for the worker. So a session that waits for long empties full counters. A front
// end that means well has none.
type events struct {
	mu   sync.Mutex // held while one of them is read, so that none is closed then
	open map[int]bool
}

// patience is the time after which full counters are emptied.
const patience = 100 * time.Millisecond

// keep makes a descriptor one of the events. It fails if it is no eventfd.
func (e *events) keep(fd int) error {
	if _, err := eventCount(fd); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.open == nil {
		e.open = map[int]bool{}
	}
	e.open[fd] = true
	return nil
}

// close closes a descriptor that is kept, or any other one.
func (e *events) close(fd int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.open, fd)
	_ = unix.Close(fd) // an event was signalled or not
}

// waiting runs f, which waits for workers.
func (e *events) waiting(f func()) {
	var mu sync.Mutex // guards t
	var t *time.Timer
	mu.Lock()
	t = time.AfterFunc(patience, func() {
		e.empty()
		mu.Lock()
		defer mu.Unlock()
		if t != nil {
			t.Reset(patience)
		}
	})
	mu.Unlock()
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		t.Stop()
		t = nil
	}()
	f()
}

// empty empties the counters that are full. A read with RWF_NOWAIT never blocks.
func (e *events) empty() {
	e.mu.Lock()
	defer e.mu.Unlock()
	var b [8]byte
	for fd := range e.open {
		if n, err := eventCount(fd); err == nil && n == math.MaxUint64-1 {
			_, _ = unix.Preadv2(fd, [][]byte{b[:]}, -1, unix.RWF_NOWAIT)
		}
	}
}

// eventCount returns the counter of an eventfd, and ErrEvent for another file. Without
// procfs it returns 0.
func eventCount(fd int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return 0, nil
	}
	_, rest, ok := bytes.Cut(b, []byte("eventfd-count:"))
	if !ok {
		return 0, ErrEvent
	}
	text, _, _ := bytes.Cut(rest, []byte("\n"))
	n, err := strconv.ParseUint(string(bytes.TrimSpace(text)), 16, 64)
	if err != nil {
		return 0, ErrEvent
	}
	return n, nil
}
