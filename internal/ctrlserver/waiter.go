// SPDX-License-Identifier: Apache-2.0

package ctrlserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/evtchn"
)

// portWaiter waits for events in Go's network poller, so that a thousand idle control
// rings take a thousand goroutines and no threads.
type portWaiter struct {
	events Events
	file   *os.File
	raw    syscall.RawConn
	stop   func() bool
	masked bool
}

// newPortWaiter returns a waiter. Its wait fails once ctx has ended.
func newPortWaiter(ctx context.Context, ev Events) (*portWaiter, error) {
	// os.File closes the descriptor it is given.
	fd, err := unix.FcntlInt(uintptr(ev.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("event channel: %w", err)
	}
	w := &portWaiter{events: ev, file: os.NewFile(uintptr(fd), "event channels")}
	if w.raw, err = w.file.SyscallConn(); err != nil {
		_ = w.file.Close()
		return nil, fmt.Errorf("event channel: %w", err)
	}
	w.stop = context.AfterFunc(ctx, func() { _ = w.file.SetReadDeadline(time.Unix(1, 0)) })
	return w, nil
}

// wait unmasks the port, and waits until it has an event. Call it after the ring was
// found empty.
func (w *portWaiter) wait(p evtchn.Port) error {
	if w.masked {
		w.masked = false
		if err := w.events.Unmask([]evtchn.Port{p}); err != nil {
			return err
		}
	}
	var ports [2]evtchn.Port
	var n int
	var err error
	if e := w.raw.Read(func(uintptr) bool {
		n, err = w.events.Pending(ports[:])
		return n > 0 || err != nil
	}); e != nil {
		return e
	}
	w.masked = true
	if errors.Is(err, evtchn.ErrOverflow) {
		return w.events.Reset()
	}
	return err
}

func (w *portWaiter) close() {
	w.stop()
	_ = w.file.Close()
}
