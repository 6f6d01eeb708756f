// SPDX-License-Identifier: Apache-2.0

package xentest

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/xen"
)

// side is one of the two domains.
type side int

const (
	host side = iota
	guest
)

func (s side) other() side { return 1 - s }

func (g *Guest) domidOf(s side) xen.Domid {
	if s == guest {
		return g.domid
	}
	return xen.Dom0
}

// channel is one port of a domain, with the two bits that Xen and the domain's kernel
// share about it. Guest.mu guards it.
type channel struct {
	side
	port            evtchn.Port
	dev             *Evtchn // that it was bound through; nil: the test's, see Offer
	to              xen.Domid
	peer            *channel // nil: unbound
	pending, masked bool
	sent, events    int // by this end, and to it
	wake            chan struct{}
}

// open makes a port, for a device or for the test. The caller holds mu.
func (g *Guest) open(s side, port evtchn.Port, dev *Evtchn) *channel {
	c := &channel{side: s, port: port, dev: dev}
	g.channels[s][port] = c
	if dev != nil {
		dev.bound[port] = c
		g.usage.Ports++
	}
	return c
}

// freePort returns the lowest free port, which is the one Xen takes. The caller holds
// mu.
func (g *Guest) freePort(s side) evtchn.Port {
	p := evtchn.Port(1)
	for g.channels[s][p] != nil {
		p++
	}
	return p
}

// closeChannel closes a port. The other end is unbound again, and only the same domain
// may connect to it. The caller holds mu.
func (g *Guest) closeChannel(c *channel) {
	delete(g.channels[c.side], c.port)
	if c.dev != nil {
		delete(c.dev.bound, c.port)
		g.usage.Ports--
	}
	if c.peer != nil {
		c.peer.to, c.peer.peer = g.domidOf(c.side), nil
		c.peer = nil
	}
}

// send is an event for the other end.
func (c *channel) send() {
	c.sent++
	p := c.peer
	if p == nil {
		return // lost
	}
	p.events++
	p.raise()
}

// raise is an event that arrives at c.
func (c *channel) raise() {
	if c.dev == nil {
		select {
		case c.wake <- struct{}{}:
		default:
		}
		return
	}
	c.pending = true
	c.deliver()
}

// deliver queues a pending event and masks the port.
func (c *channel) deliver() {
	if !c.pending || c.masked {
		return
	}
	c.pending, c.masked = false, true
	c.dev.queue = append(c.dev.queue, c.port)
	c.dev.poll()
}

// Offer makes a port of the guest that domain 0 may bind, with the lowest free number.
// The test plays the guest's end of it, with Send, Events and Wake.
func (g *Guest) Offer() evtchn.Port {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.offer(g.freePort(guest))
}

// OfferAt is Offer with a number of the caller's choice. It panics if there is such a
// port.
func (g *Guest) OfferAt(port evtchn.Port) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if port == 0 || g.channels[guest][port] != nil {
		panic(fmt.Sprintf("xentest: port %d is in use", port))
	}
	g.offer(port)
}

func (g *Guest) offer(port evtchn.Port) evtchn.Port {
	g.open(guest, port, nil).wake = make(chan struct{}, 1)
	return port
}

// Withdraw closes a port of the guest. Without such a port it does nothing.
func (g *Guest) Withdraw(port evtchn.Port) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c := g.channels[guest][port]; c != nil {
		g.closeChannel(c)
	}
}

// Send sends an event from a port of the guest. It is lost where nothing is bound.
func (g *Guest) Send(port evtchn.Port) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.channels[guest][port]
	if c == nil {
		return &evtchn.Error{Op: "notify", Port: port, Err: unix.EINVAL}
	}
	c.send()
	return nil
}

// Events returns the number of events that were sent to a port of the guest since it
// was made; 0 if there is no such port.
func (g *Guest) Events(port evtchn.Port) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c := g.channels[guest][port]; c != nil {
		return c.events
	}
	return 0
}

// Sent returns the number of events that were sent from a port of the guest since it was
// made, lost ones included; 0 if there is no such port.
func (g *Guest) Sent(port evtchn.Port) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c := g.channels[guest][port]; c != nil {
		return c.sent
	}
	return 0
}

// Wake returns a channel that has a value when an event has come to an offered port;
// nil if there is no such port. Events coalesce.
func (g *Guest) Wake(port evtchn.Port) <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c := g.channels[guest][port]; c != nil {
		return c.wake
	}
	return nil
}
