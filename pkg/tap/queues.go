// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// SetQueues opens or closes queues at the end until there are n, 1 to
// d.MaxQueues(), and gives all of them to the host. Queues below n stay as they are, except that
// detached ones (Use) are attached again. If it fails to open one, those
// it had opened are closed again.
//
// Frames waiting in a queue that is closed are lost. The carrier does not
// change.
//
// In another network namespace queues may be what cannot be opened again. There they
// are detached rather than closed: the device then has more queues than n, and n
// active ones.
func (d *Device) SetQueues(n int) error {
	return d.wrap(fmt.Sprintf("set queues to %d", n), d.setQueues(n))
}

func (d *Device) setQueues(n int) error {
	was := len(d.queues)
	switch {
	case was == 0:
		return ErrClosed
	case n < 1 || n > d.MaxQueues():
		return errQueues
	case n < was:
		// A program that keeps them for a successor would else have the host
		// go on sending to queues that no program reads.
		if err := d.setActive(n); err != nil {
			return err
		}
		if err := d.shrink(n); err != nil {
			return err
		}
		if len(d.queues) > n {
			return nil
		}
	}
	if d.single {
		return d.hear()
	}
	// A new queue is numbered behind the attached ones, so all must be.
	if err := d.setActive(len(d.queues)); err != nil {
		return err
	}
	for len(d.queues) < n {
		fd, err := d.openQueue()
		if err != nil {
			return errors.Join(err, d.closeQueues(was))
		}
		d.push(fd)
	}
	return nil
}

// Rest has the host drop, at once, what waits in the queues and what it sends from now
// on. Use and SetQueues end that. All queues stay open. To take the carrier
// away is not enough: the kernel notices within a second, and what was sent stays in
// the queues.
//
// The carrier does not change. The device can be controlled as before, but for the
// carrier, which the kernel does not turn on (tun_net_change_carrier).
func (d *Device) Rest() error { return d.wrap("rest", d.rest()) }

// rest takes the queues away from the host: __tun_detach purges them, and tun_net_xmit
// drops what finds none (drivers/net/tun.c). The queue of a device that can have one
// only cannot be taken away. It gets a filter that lets nothing pass, and is read until
// nothing is left.
func (d *Device) rest() error {
	switch {
	case len(d.queues) == 0:
		return ErrClosed
	case d.single:
		if err := setDeaf(d.queues[0].fd, true); err != nil {
			return err
		}
		d.deaf = true
		d.queues[0].purge()
		return nil
	}
	return d.setActive(0)
}

// shrink closes queue n and those above, which are detached, unless the device is in
// another network namespace: see SetQueues.
func (d *Device) shrink(n int) error {
	p, err := d.place()
	if err != nil {
		return err
	}
	p.close()
	if p.id != here {
		return nil
	}
	return d.closeQueues(n)
}

// hear ends rest on a device that can have one queue only. A frame that the filter had
// just let pass may have come since. A predecessor may have been killed in between.
func (d *Device) hear() error {
	if d.deaf {
		d.queues[0].purge()
		d.deaf = false
	}
	return setDeaf(d.queues[0].fd, false)
}

// Use gives the host the first n queues, 1 to MaxQueues. It opens those that are missing.
// It takes the others away from the host without closing them: their descriptors stay
// good, in an epoll or io_uring too, frames can still be written to them, but none will
// arrive. So a caller that needs now more queues and now fewer opens each once.
//
// Frames waiting in a queue that is taken away are lost. The carrier does not change.
func (d *Device) Use(n int) error {
	if d.single || n > len(d.queues) {
		return d.SetQueues(n)
	}
	op := fmt.Sprintf("use %d queues", n)
	if n < 1 {
		return d.wrap(op, errQueues)
	}
	return d.wrap(op, d.setActive(n))
}

// setActive attaches the first n queues and detaches the others.
func (d *Device) setActive(n int) error {
	// From the end down, and up to the end: see closeQueues.
	for ; d.active > n; d.active-- {
		if err := d.setAttached(d.queues[d.active-1], false); err != nil {
			return err
		}
	}
	for ; d.active < n; d.active++ {
		if err := d.setAttached(d.queues[d.active], true); err != nil {
			return err
		}
	}
	return nil
}

// setAttached tells apart what the kernel does not: to TUNSETQUEUE a deleted
// device is EINVAL, like a queue which is in that state already.
func (d *Device) setAttached(q *Queue, attached bool) error {
	err := setAttached(q.fd, attached)
	if errors.Is(err, unix.EINVAL) {
		if _, nerr := ifName(q.fd); nerr != nil {
			return nerr
		}
	}
	return err
}

// push takes fd, which is attached to the device, as its next queue.
func (d *Device) push(fd int) {
	d.queues = append(d.queues, &Queue{fd: fd, index: len(d.queues)})
	d.active++
}

// openTries bounds how often openQueue starts again because the device was
// renamed under its hands. That many renames are no accident.
const openTries = 16

// openQueue opens one more queue of the device.
//
// The kernel takes a queue by name only, and makes a new device where there is
// none of that name. A script may rename the device between our asking for the
// name and our using it. So the queue wishes for an interface index as well:
// ours. An existing device does not care, and a new one cannot have it while
// ours lives: EBUSY instead of a stray device.
//
// A queue belongs to the network namespace in which it was opened, and looks for the
// name there. (A descriptor from elsewhere would make a stray device.)
func (d *Device) openQueue() (fd int, err error) {
	flags := (&Config{VnetHdr: d.vnetHdr}).flags()
	for range openTries {
		p, link, err := d.look()
		if err != nil {
			return -1, err
		}
		name := link.Name
		err = p.in(func() (err error) {
			fd, err = openTUN()
			return err
		})
		p.close()
		if err != nil {
			return -1, err
		}
		err = unix.IoctlSetPointerInt(fd, unix.TUNSETIFINDEX, link.Index)
		if err == nil {
			err = attachByName(fd, name, flags)
		}
		if err == nil {
			err = d.sameDevice(fd)
		}
		switch {
		case err == nil:
			return fd, nil
		case errors.Is(err, errRenamed), errors.Is(err, unix.EBUSY), errors.Is(err, unix.EINVAL):
			// EINVAL: the name now belongs to something else.
			if cerr := unix.Close(fd); cerr != nil {
				return -1, cerr
			}
		default:
			return -1, errors.Join(withHint(err, attachHint(err)), unix.Close(fd))
		}
	}
	return -1, errRenamed
}

// sameDevice tells whether fd is a queue of d: both then have the same name.
func (d *Device) sameDevice(fd int) error {
	theirs, err := ifName(fd)
	if err != nil {
		return err
	}
	ours, err := ifName(d.queues[0].fd)
	if err != nil {
		return err
	}
	if theirs != ours {
		return errRenamed
	}
	return nil
}
