// SPDX-License-Identifier: Apache-2.0

package vhostfront

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/tap"
)

// ErrStopped is returned for a pump that does not run any more.
var ErrStopped = errors.New("vhostfront: the pump has stopped")

// batch is the number of packets that a pump moves in one direction before it publishes
// them and turns to the other direction.
const batch = 64

// maxFaults bounds the breaches that a pair describes. It counts all.
const maxFaults = 32

// Pair is a pair of queues. While a Pump runs it belongs to the pump.
type Pair struct {
	index  int
	rx     *rxSide
	tx     *txSide
	stats  Stats
	faults []string
	held   bool // the rings are not to be touched
	silent bool // the back end may not notify
}

// Stats returns the counters of the pair.
func (p *Pair) Stats() Stats { return p.stats }

// Faults returns the first breaches of the back end. Stats.Violations is the number of all.
func (p *Pair) Faults() []string { return append([]string(nil), p.faults...) }

func (p *Pair) fault(format string, args ...any) {
	p.stats.Violations++
	if len(p.faults) < maxFaults {
		p.faults = append(p.faults, fmt.Sprintf(format, args...))
	}
}

// begin makes both rings empty and gives the back end buffers.
func (p *Pair) begin(r *rules) error {
	for _, g := range []*ring{p.rx.ring, p.tx.ring} {
		g.stats, g.fault = &p.stats, p.fault
	}
	if err := errors.Join(p.rx.begin(r), p.tx.begin(r)); err != nil {
		return err
	}
	p.rx.post()
	p.rx.drv.Publish()
	return nil
}

// Outstanding returns the number of packets that the back end has not sent yet.
func (p *Pair) Outstanding() int { return len(p.tx.order) }

// Pump moves packets between a pair of queues and a queue of a TAP, whose host side is then
// the guest's network card. It owns both while it runs.
type Pump struct {
	pair    *Pair
	tap     *tap.Queue
	epoll   int
	wake    int  // an eventfd
	reading bool // the pump waits for the TAP to become readable
	jobs    chan func()
	done    chan struct{}
}

// NewPump makes a pump. The TAP puts a vnet header before each frame.
func NewPump(p *Pair, t *tap.Queue) (*Pump, error) {
	u := &Pump{pair: p, tap: t, wake: -1, reading: true, jobs: make(chan func(), 1), done: make(chan struct{})}
	var err error
	if u.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("vhostfront: pump: %w", err)
	}
	if u.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err == nil {
		for _, fd := range []int{p.rx.call, p.tx.call, u.wake, t.FD()} {
			ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
			err = errors.Join(err, unix.EpollCtl(u.epoll, unix.EPOLL_CTL_ADD, fd, &ev))
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("vhostfront: pump: %w", err), u.close())
	}
	return u, nil
}

func (u *Pump) close() error {
	err := unix.Close(u.epoll)
	if u.wake >= 0 {
		err = errors.Join(err, unix.Close(u.wake))
	}
	return err
}

// Do runs f on the pump's thread, between two passes, and waits for it. It fails with
// ErrStopped if the pump ends before that.
func (u *Pump) Do(f func(*Pair)) error {
	ran := make(chan struct{})
	select {
	case u.jobs <- func() { f(u.pair); close(ran) }:
	case <-u.done:
		return ErrStopped
	}
	select {
	case <-u.done:
		return ErrStopped
	default:
		notify(u.wake)
	}
	select {
	case <-ran:
		return nil
	case <-u.done:
		return ErrStopped
	}
}

// Run moves packets on a thread of its own until ctx ends, and returns nil then. The pump
// cannot be run again.
func (u *Pump) Run(ctx context.Context) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(u.done)
	defer context.AfterFunc(ctx, func() { notify(u.wake) })()
	for ctx.Err() == nil {
		select {
		case f := <-u.jobs:
			f()
		default:
		}
		work, err := u.pass()
		if err != nil {
			return err
		}
		if work {
			continue
		}
		if err := u.setReading(!u.pair.held && u.pair.tx.room()); err != nil {
			return err
		}
		if !u.pair.held && u.arm() {
			continue
		}
		if err := u.sleep(); err != nil {
			return err
		}
	}
	return nil
}

// arm asks for notifications of packets, and of sent ones if there is no room for others. It
// reports whether there is something already.
func (u *Pump) arm() bool {
	p := u.pair
	if p.rx.dead == nil && p.rx.drv.Arm() {
		return true
	}
	if p.tx.dead == nil && !p.tx.room() {
		return p.tx.drv.Arm()
	}
	p.tx.drv.Disarm()
	return false
}

// pass moves up to a batch in each direction and publishes it. It reports whether it moved
// any packet.
func (u *Pump) pass() (work bool, err error) {
	p := u.pair
	if p.held {
		return false, nil
	}
	n := p.tx.reap()
	got, err := u.fromRing()
	if err != nil {
		return false, err
	}
	if p.rx.post() > 0 {
		p.rx.publish()
	}
	sent, err := u.fromTap()
	if sent > 0 {
		p.tx.publish()
	}
	return n+got+sent > 0, err
}

// fromRing moves packets from the ring to the TAP.
func (u *Pump) fromRing() (n int, err error) {
	x := u.pair.rx
	for ; n < batch && x.next(); n++ {
		err := x.write(u.tap)
		x.release()
		switch err {
		case nil:
		case unix.EAGAIN:
			u.pair.stats.TapFull++
		case unix.EBADFD, unix.EBADF:
			return n, fmt.Errorf("vhostfront: write to tap: %w", err)
		default:
			u.pair.stats.TapErrors++
		}
	}
	return n, nil
}

// fromTap moves packets from the TAP to the ring.
func (u *Pump) fromTap() (n int, err error) {
	t := u.pair.tx
	for ; n < batch; n++ {
		if !t.room() {
			u.pair.stats.TxFull++
			return n, nil
		}
		switch err := t.read(u.tap); err {
		case nil:
		case unix.EAGAIN, unix.EIO: // empty, or the device is down
			return n, nil
		default:
			return n, fmt.Errorf("vhostfront: read from tap: %w", err)
		}
	}
	return n, nil
}

// setReading adds the TAP to the poll set or removes it, so that a full ring does not make
// the pump spin.
func (u *Pump) setReading(on bool) error {
	if u.reading == on {
		return nil
	}
	ev := unix.EpollEvent{Fd: int32(u.tap.FD())}
	if on {
		ev.Events = unix.EPOLLIN
	}
	if err := unix.EpollCtl(u.epoll, unix.EPOLL_CTL_MOD, u.tap.FD(), &ev); err != nil {
		return fmt.Errorf("vhostfront: pump: %w", err)
	}
	u.reading = on
	return nil
}

// sleep waits for the back end, the TAP or a job.
func (u *Pump) sleep() error {
	var evs [4]unix.EpollEvent
	n, err := unix.EpollWait(u.epoll, evs[:], -1)
	if err == unix.EINTR {
		return nil
	}
	if err != nil {
		return fmt.Errorf("vhostfront: pump: %w", err)
	}
	p := u.pair
	for _, ev := range evs[:n] {
		switch int(ev.Fd) {
		case u.wake:
			var b [8]byte
			_, _ = unix.Read(u.wake, b[:])
		case u.tap.FD():
			if ev.Events&unix.EPOLLERR != 0 {
				return fmt.Errorf("vhostfront: pump: %w", tap.ErrGone)
			}
		default:
			r := p.rx.ring
			if int(ev.Fd) == p.tx.call {
				r = p.tx.ring
			}
			if r.takeCall() {
				p.stats.Calls++
				if p.silent {
					p.fault("ring %d: notified while it is stopped", r.index)
				}
			}
		}
	}
	return nil
}
