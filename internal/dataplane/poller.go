// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/heldwait"
)

// poller is a worker's epoll.
type poller struct {
	fd     int // -1: not open
	events [64]unix.EpollEvent
	held   heldwait.Epoll
}

// Kinds of epoll event, in EpollEvent.Pad. Fd has the queue's id.
const (
	onMail = iota
	onEvtchn
	onTap
	onKickRx // of a virtqueue for packets to the guest
	onKickTx // of one for packets from it
)

// open makes the epoll.
func (p *poller) open() (err error) {
	if p.fd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		p.fd = -1
		return fmt.Errorf("epoll: %w", err)
	}
	return nil
}

// close closes the epoll, if it is open.
func (p *poller) close() {
	if p.fd >= 0 {
		_ = unix.Close(p.fd)
	}
}

// watch adds, changes or removes fd. Events name id and kind.
func (p *poller) watch(op, fd, id int, kind int32, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(id), Pad: kind}
	if err := unix.EpollCtl(p.fd, op, fd, &ev); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// wait waits for events for up to timeout milliseconds, or for ever if that is negative.
// The result is good until the next call. An interrupted wait brings none.
func (p *poller) wait(timeout int) ([]unix.EpollEvent, error) {
	n, err := p.held.Wait(p.fd, p.events[:], timeout)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return nil, fmt.Errorf("epoll_wait: %w", err)
	}
	return p.events[:max(n, 0)], nil
}
