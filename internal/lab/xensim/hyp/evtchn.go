// SPDX-License-Identifier: Apache-2.0

package hyp

import (
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/xen"
)

// channelState is the state of a port: ECS_*. The other states of Xen do not occur here.
type channelState uint8

const (
	channelFree channelState = iota
	channelUnbound
	channelInterdomain
)

// channel is one port of a domain, struct evtchn, with its two bits that Xen and the
// domain's kernel share.
type channel struct {
	state    channelState
	offered  xen.Domid // unbound: the domain that may connect
	peer     *Domain   // interdomain: the connected domain
	peerPort uint32    // interdomain: its port
	pending  bool
	masked   bool
	upcall   Upcall
}

// Upcall is the domain's kernel for one port. Event is called with the port masked and no
// longer pending. It is called under the hypervisor's lock: it must return at once and
// make no hypercall.
type Upcall interface {
	Event(port uint32)
}

// AllocUnbound implements EVTCHNOP_alloc_unbound: a new port that remote may connect to.
func (d *Domain) AllocUnbound(remote xen.Domid, up Upcall) (uint32, unix.Errno) {
	d.h.ev.Lock()
	defer d.h.ev.Unlock()
	d.counters.eventBinds.Add(1)
	port, errno := d.freePort()
	if errno != 0 {
		return 0, errno
	}
	if remote == DomidSelf {
		remote = d.id
	}
	d.use(port, channel{state: channelUnbound, offered: remote, upcall: up})
	return port, 0
}

// BindInterdomain implements EVTCHNOP_bind_interdomain: a new port connected to one that
// the remote domain has offered. An event is pending from the start, since earlier ones
// may have been lost.
func (d *Domain) BindInterdomain(remote xen.Domid, remotePort uint32, up Upcall) (uint32, unix.Errno) {
	rd := d.h.Domain(remote, d.id)
	d.counters.eventBinds.Add(1)
	if rd == nil {
		return 0, unix.ESRCH
	}
	d.h.ev.Lock()
	defer d.h.ev.Unlock()
	port, errno := d.freePort()
	if errno != 0 {
		return 0, errno
	}
	rc := rd.channel(remotePort)
	if rc == nil || rc.state != channelUnbound || rc.offered != d.id {
		return 0, unix.EINVAL
	}
	rc.state, rc.peer, rc.peerPort = channelInterdomain, d, port
	d.use(port, channel{state: channelInterdomain, peer: rd, peerPort: remotePort, pending: true, upcall: up})
	d.deliver(port)
	return port, 0
}

// CloseChannel implements EVTCHNOP_close. The other end, if there is one, is unbound
// again, and only d may connect to it.
func (d *Domain) CloseChannel(port uint32) unix.Errno {
	d.h.ev.Lock()
	defer d.h.ev.Unlock()
	d.counters.eventCloses.Add(1)
	return d.close(port)
}

// close is like CloseChannel with h.ev held.
func (d *Domain) close(port uint32) unix.Errno {
	c := d.channel(port)
	if c == nil || c.state == channelFree {
		return unix.EINVAL
	}
	if c.state == channelInterdomain {
		rc := c.peer.channel(c.peerPort)
		rc.state, rc.offered, rc.peer, rc.peerPort = channelUnbound, d.id, nil, 0
	}
	*c = channel{}
	d.ports--
	d.lowest = min(d.lowest, port)
	return 0
}

// Send implements EVTCHNOP_send. An event on an unconnected port is lost without an
// error.
func (d *Domain) Send(port uint32) unix.Errno {
	d.counters.eventSends.Add(1)
	d.h.ev.Lock()
	defer d.h.ev.Unlock()
	c := d.channel(port)
	if c == nil || c.state == channelFree {
		return unix.EINVAL
	}
	if c.state == channelUnbound {
		d.counters.eventsDropped.Add(1)
		return 0
	}
	rc := c.peer.channel(c.peerPort)
	if rc.pending {
		c.peer.counters.eventsCoalesced.Add(1)
		return 0
	}
	rc.pending = true
	c.peer.deliver(c.peerPort)
	return 0
}

// Unmask lets a port raise events again, and raises the one that came while it
// was masked.
func (d *Domain) Unmask(port uint32) {
	d.h.ev.Lock()
	defer d.h.ev.Unlock()
	if c := d.channel(port); c != nil && c.state != channelFree {
		c.masked = false
		d.deliver(port)
	}
}

// deliver passes a pending event to the domain's kernel, which masks the port. The caller
// holds h.ev.
func (d *Domain) deliver(port uint32) {
	c := d.channel(port)
	if c == nil || !c.pending || c.masked || c.upcall == nil || d.paused != nil {
		return
	}
	c.pending, c.masked = false, true
	d.counters.eventsDelivered.Add(1)
	c.upcall.Event(port)
}

// channel returns a port, or nil if its number is out of range. The caller holds h.ev.
func (d *Domain) channel(port uint32) *channel {
	if port == 0 || uint64(port) >= uint64(len(d.channels)) {
		return nil
	}
	return &d.channels[port]
}

// freePort finds the lowest free port, as Xen does: a closed number is used again at
// once. The caller holds h.ev.
func (d *Domain) freePort() (uint32, unix.Errno) {
	if d.dead {
		return 0, unix.EINVAL
	}
	port := d.lowest
	for ; uint64(port) < uint64(len(d.channels)); port++ {
		if d.channels[port].state == channelFree {
			break
		}
	}
	d.lowest = port
	if uint64(port) > uint64(d.config.MaxEventChannels) {
		return 0, unix.ENOSPC
	}
	return port, 0
}

// use makes a free port into c. The caller holds h.ev.
func (d *Domain) use(port uint32, c channel) {
	if n := int(port) + 1 - len(d.channels); n > 0 {
		d.channels = append(d.channels, make([]channel, n)...)
	}
	d.channels[port] = c
	d.ports++
}
