// SPDX-License-Identifier: Apache-2.0

package virtfront

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/vhostuser"
)

// event is an eventfd.
type event int

func newEvent() (event, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	return event(fd), err
}

func (e event) close() error { return unix.Close(int(e)) }

// signal makes e readable. An eventfd does not fail.
func (e event) signal() { _ = vhostuser.Signal(int(e)) }

// clear reports whether e was readable, and makes it not readable.
func (e event) clear() bool {
	var count [8]byte
	n, _ := unix.Read(int(e), count[:])
	return n == len(count)
}

// eventBell is a bell of eventfds: one for each ring's kicks, and one for the calls of both.
type eventBell struct {
	kicks [2]event
	calls event
}

func newEventBell() (*eventBell, error) {
	b := &eventBell{kicks: [2]event{-1, -1}, calls: -1}
	for _, e := range []*event{&b.kicks[0], &b.kicks[1], &b.calls} {
		var err error
		if *e, err = newEvent(); err != nil {
			b.close()
			return nil, err
		}
	}
	return b, nil
}

func (b *eventBell) close() {
	for _, e := range []event{b.kicks[0], b.kicks[1], b.calls} {
		if e >= 0 {
			_ = e.close()
		}
	}
}

func (b *eventBell) fd() int { return int(b.calls) }

func (b *eventBell) clear() error {
	b.calls.clear()
	return nil
}

func (b *eventBell) ring(i int) error {
	b.kicks[i].signal()
	return nil
}

// portBell is a bell of event channels, one for each ring.
type portBell struct {
	dev   *evtchn.Device
	ports [2]evtchn.Port
}

// newPortBell offers event channels to dom0.
func newPortBell() (*portBell, error) {
	dev, err := evtchn.Open(evtchn.DefaultPath)
	if err != nil {
		return nil, err
	}
	b := &portBell{dev: dev}
	for i := range b.ports {
		if b.ports[i], err = dev.BindUnbound(0); err != nil {
			return nil, errors.Join(err, dev.Close())
		}
	}
	return b, nil
}

func (b *portBell) close() error     { return b.dev.Close() }
func (b *portBell) fd() int          { return b.dev.FD() }
func (b *portBell) ring(i int) error { return b.dev.Notify(b.ports[i]) }
func (b *portBell) clear() error     { return b.take(func(evtchn.Port) {}) }

// take calls f for each port that had an event.
func (b *portBell) take(f func(evtchn.Port)) error {
	var ports [8]evtchn.Port
	n, err := b.dev.Pending(ports[:])
	if err != nil || n == 0 {
		return err
	}
	for _, p := range ports[:n] {
		f(p)
	}
	return b.dev.Unmask(ports[:n])
}
