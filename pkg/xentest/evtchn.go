// SPDX-License-Identifier: Apache-2.0

package xentest

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Evtchn is a double of [evtchn.Device]. Its errors are those of the device.
type Evtchn struct {
	g *Guest
	side
	fd int // eventfd, readable while queue is not empty; -1: closed

	// All below are guarded by g.mu.
	only     xen.Domid // restricted to it; 0: not restricted
	bound    map[evtchn.Port]*channel
	queue    []evtchn.Port // for Pending
	overflow bool
	word     [8]byte // of the eventfd
}

// OpenEvtchn opens the event channel device of domain 0, in which the program runs.
func (g *Guest) OpenEvtchn() (*Evtchn, error) { return g.openEvtchn(host) }

// OpenGuestEvtchn opens the event channel device of the guest, for a frontend.
func (g *Guest) OpenGuestEvtchn() (*Evtchn, error) { return g.openEvtchn(guest) }

func (g *Guest) openEvtchn(s side) (*Evtchn, error) {
	if err := g.check(Call{Op: OpOpenEvtchn, By: g.domidOf(s)}); err != nil {
		return nil, &evtchn.Error{Op: "open", Err: err}
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, &evtchn.Error{Op: "open", Err: err}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.usage.Devices++
	e := &Evtchn{g: g, side: s, fd: fd, bound: map[evtchn.Port]*channel{}}
	g.evtchns[e] = struct{}{}
	return e, nil
}

// Close unbinds all ports and closes the device. It may be called again, which does
// nothing.
func (e *Evtchn) Close() error {
	e.g.mu.Lock()
	defer e.g.mu.Unlock()
	return e.close()
}

// close is Close with g.mu held.
func (e *Evtchn) close() error {
	if e.fd < 0 {
		return nil
	}
	for _, c := range e.bound {
		e.g.closeChannel(c)
	}
	e.g.usage.Devices--
	delete(e.g.evtchns, e)
	fd := e.fd
	e.fd = -1
	return unix.Close(fd)
}

// FD returns the descriptor for polling, -1 once closed.
func (e *Evtchn) FD() int {
	e.g.mu.Lock()
	defer e.g.mu.Unlock()
	return e.fd
}

// Restrict does what [evtchn.Device.Restrict] does.
func (e *Evtchn) Restrict(domid xen.Domid) error {
	e.g.mu.Lock()
	defer e.g.mu.Unlock()
	var err error
	switch {
	case e.fd < 0:
		err = evtchn.ErrClosed
	case domid == xen.Dom0 || domid >= xen.FirstReservedDomid:
		err = unix.EINVAL
	case e.only != 0:
		err = unix.EACCES
	default:
		e.only = domid
		return nil
	}
	return &evtchn.Error{Op: "restrict", Domid: domid, Err: err}
}

// BindInterdomain does what [evtchn.Device.BindInterdomain] does. The local port is the
// lowest free one, and has an event pending.
func (e *Evtchn) BindInterdomain(domid xen.Domid, remote evtchn.Port) (evtchn.Port, error) {
	if err := e.g.check(Call{Op: OpBind, By: e.g.domidOf(e.side), Port: remote}); err != nil {
		return 0, evtchn.BindError("bind", domid, remote, err)
	}
	e.g.mu.Lock()
	defer e.g.mu.Unlock()
	p := e.g.channels[e.side.other()][remote]
	var err error
	switch {
	case e.fd < 0:
		err = evtchn.ErrClosed
	case remote == 0:
		err = unix.EINVAL
	case e.only != 0 && domid != e.only:
		err = unix.EACCES
	case domid != e.g.domidOf(e.side.other()):
		err = unix.ESRCH
	case p == nil || p.peer != nil || p.to != e.g.domidOf(e.side):
		err = unix.EINVAL
	}
	if err != nil {
		return 0, evtchn.BindError("bind", domid, remote, err)
	}
	c := e.g.open(e.side, e.g.freePort(e.side), e)
	c.peer, p.peer = p, c
	c.raise()
	return c.port, nil
}

// BindUnbound does what [evtchn.Device.BindUnbound] does.
func (e *Evtchn) BindUnbound(domid xen.Domid) (evtchn.Port, error) {
	if err := e.g.check(Call{Op: OpOffer, By: e.g.domidOf(e.side)}); err != nil {
		return 0, evtchn.BindError("offer", domid, 0, err)
	}
	e.g.mu.Lock()
	defer e.g.mu.Unlock()
	var err error
	switch {
	case e.fd < 0:
		err = evtchn.ErrClosed
	case e.only != 0:
		err = unix.EACCES
	default:
		c := e.g.open(e.side, e.g.freePort(e.side), e)
		c.to = domid
		return c.port, nil
	}
	return 0, evtchn.BindError("offer", domid, 0, err)
}

// Unbind does what [evtchn.Device.Unbind] does. The other end can then be bound again.
func (e *Evtchn) Unbind(port evtchn.Port) error {
	e.g.mu.Lock()
	defer e.g.mu.Unlock()
	c, err := e.local(port)
	if err != nil {
		return &evtchn.Error{Op: "unbind", Port: port, Err: err}
	}
	e.g.closeChannel(c)
	return nil
}

// Notify sends an event to the other end of port. It is lost where nothing is bound.
func (e *Evtchn) Notify(port evtchn.Port) error {
	if err := e.g.check(Call{Op: OpNotify, By: e.g.domidOf(e.side), Port: port}); err != nil {
		return &evtchn.Error{Op: "notify", Port: port, Err: err}
	}
	e.g.mu.Lock()
	defer e.g.mu.Unlock()
	c, err := e.local(port)
	if err != nil {
		return &evtchn.Error{Op: "notify", Port: port, Err: err}
	}
	c.send()
	return nil
}

// local returns a port that was bound through e. The caller holds g.mu.
func (e *Evtchn) local(port evtchn.Port) (*channel, error) {
	switch c := e.bound[port]; {
	case e.fd < 0:
		return nil, evtchn.ErrClosed
	case port == 0:
		return nil, unix.EINVAL
	case c == nil:
		return nil, unix.ENOTCONN
	default:
		return c, nil
	}
}

// Pending stores ports that had events and are now masked in buf, and returns the
// number of them.
func (e *Evtchn) Pending(buf []evtchn.Port) (int, error) {
	err := e.g.check(Call{Op: OpPending, By: e.g.domidOf(e.side)})
	e.g.mu.Lock()
	defer e.g.mu.Unlock()
	switch {
	case e.fd < 0:
		err = evtchn.ErrClosed
	case err == nil && e.overflow:
		err = evtchn.ErrOverflow
	}
	if err != nil {
		return 0, &evtchn.Error{Op: "pending", Err: err}
	}
	n := copy(buf, e.queue)
	e.queue = e.queue[:copy(e.queue, e.queue[n:])]
	e.poll()
	return n, nil
}

// Unmask lets ports deliver events again. Those that are not bound are passed over.
func (e *Evtchn) Unmask(ports []evtchn.Port) error {
	e.g.mu.Lock()
	defer e.g.mu.Unlock()
	switch {
	case slices.Contains(ports, 0):
		return &evtchn.Error{Op: "unmask", Err: unix.EINVAL}
	case e.fd < 0:
		return &evtchn.Error{Op: "unmask", Err: evtchn.ErrClosed}
	}
	for _, p := range ports {
		if c := e.bound[p]; c != nil {
			c.masked = false
			c.deliver()
		}
	}
	return nil
}

// Reset throws away the ports that wait for Pending and ends an overflow. These ports
// stay masked.
func (e *Evtchn) Reset() error {
	e.g.mu.Lock()
	defer e.g.mu.Unlock()
	if e.fd < 0 {
		return &evtchn.Error{Op: "reset", Err: evtchn.ErrClosed}
	}
	e.queue, e.overflow = e.queue[:0], false
	e.poll()
	return nil
}

// Overflow makes the device lose events: Pending fails until Reset.
func (e *Evtchn) Overflow() {
	e.g.mu.Lock()
	defer e.g.mu.Unlock()
	e.overflow = true
	e.poll()
}

// poll makes the eventfd readable if Pending has something to say, and only then. The
// caller holds g.mu.
func (e *Evtchn) poll() {
	if len(e.queue) > 0 || e.overflow {
		e.word = [8]byte{1}
		_, _ = unix.Write(e.fd, e.word[:])
	} else {
		_, _ = unix.Read(e.fd, e.word[:])
	}
}
