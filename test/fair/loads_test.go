// SPDX-License-Identifier: Apache-2.0

package fair

import (
	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/hostile"
)

// load is a hostile load.
type load struct {
	name   string
	kind   hostile.Kind
	guests int
	queues int
	unit   string // of its strength
	what   string // it does, for the table
	to     target
	starve bool // its rx rings are not kept full, and the host floods them
	peer   target
	still  bool // the bridge does not flood vifs
	virt   bool // all devices are of vhost-user, each with a process
}

// target says to whom packets go.
type target int

const (
	toHost    target = iota
	toSink           // a guest that takes no large packets
	toUnknown        // an address of no port, so that the bridge sends packets to all ports
	toAll            // broadcast, beside 16 guests that take what comes
	toEach           // the same 16 guests in turn
	ports     = 16
)

// loads are all loads on vifs.
var loads = []load{
	{name: "flood", kind: hostile.Flood, guests: 1, queues: 8, unit: "packets", what: "packets of 60 bytes on 8 queues, to the host"},
	{name: "unknown", kind: hostile.Flood, guests: 1, queues: 8, unit: "packets", to: toUnknown, what: "the same to an address of no port, so that all ports get them"},
	{name: "unflooded", kind: hostile.Flood, guests: 1, queues: 8, unit: "packets", to: toUnknown, still: true, what: "the same with flood off on the vifs' ports of the bridge"},
	{name: "segments", kind: hostile.Segments, guests: 1, queues: 8, unit: "packets", to: toSink, what: "packets of 2,000 segments of 8 bytes on 8 queues, to a guest without segmentation offload"},
	{name: "broadcast", kind: hostile.Flood, guests: 1, queues: 8, unit: "packets", to: toAll, peer: toEach, what: "broadcast on 8 queues to 16 ports, whose guests take it"},
	{name: "fragments", kind: hostile.Fragments, guests: 1, queues: 8, unit: "packets", what: "packets of 60 bytes and 17 slots of one byte, on 8 queues"},
	{name: "control", kind: hostile.Control, guests: 1, queues: 8, unit: "messages", what: "hash settings with whole tables on the control ring, which is never empty"},
	{name: "static", kind: hostile.Static, guests: 1, queues: 8, unit: "messages", what: "512 static grants added to and removed from each of 8 queues in turn"},
	{name: "events", kind: hostile.Events, guests: 1, queues: 8, unit: "events", what: "events on 8 queues without work"},
	{name: "xenstore", kind: hostile.Xenstore, guests: 12, queues: 8, unit: "writes", what: "12 guests write their states and settings as fast as xenstored lets them"},
	{name: "reconnect", kind: hostile.Reconnect, guests: 12, queues: 8, unit: "connections", what: "12 guests with 8 queues connect and disconnect as fast as they can"},
	{name: "starve", kind: hostile.Starve, guests: 1, queues: 8, unit: "packets", starve: true, what: "the host floods 8 queues without rx slots"},
	{name: "drip", kind: hostile.Drip, guests: 1, queues: 8, unit: "packets", starve: true, what: "the same with rx slots that come one by one, each with an event"},
	{name: "virt-flood", kind: hostile.VirtFlood, virt: true, unit: "packets", what: "packets of 60 bytes, a descriptor each"},
	{name: "virt-tiny", kind: hostile.VirtTiny, virt: true, unit: "packets", what: "packets of 60 bytes with a descriptor for each byte"},
	{name: "virt-indirect", kind: hostile.VirtIndirect, virt: true, unit: "packets", what: "indirect tables of 1,024 descriptors with a byte each"},
	{name: "virt-kicks", kind: hostile.VirtKicks, virt: true, unit: "kicks", what: "kicks without work"},
	{name: "virt-reconnect", kind: hostile.VirtReconnect, virt: true, unit: "sessions", what: "sessions that end as soon as their rings run"},
}

// field is a host for one load.
type field struct {
	*host
	load   load
	quiet  *lab.Guest // sends and pings
	device *lab.Vhost // of quiet; nil: it has a vif
	other  *lab.Guest // reconnects and is detached
	index  int        // of other
	bad    *crew
	flood  *crew // of the host; nil: the load needs none
	peer   *crew
	dst    map[target][]string
}

// newField sets up the guests of a load.
func newField(h *host, l load) *field {
	h.tb.Helper()
	if l.virt {
		return newVirtField(h, l)
	}
	f := &field{host: h, load: l, dst: map[target][]string{toAll: {broadcast}, toUnknown: {nowhere}}}
	f.quiet = h.guest(nil)
	f.dst[toHost] = []string{h.bridgeMAC()}
	f.other = h.guest(nil)
	f.index = h.guests
	if l.to == toSink {
		sink := h.guest(func(c *lab.GuestConfig) {
			c.Front.Front.Features.GSOTCPv4, c.Front.Front.Features.GSOTCPv6 = false, false
		})
		f.dst[toSink] = []string{sink.Info.MAC}
	}
	if l.to == toAll {
		sinks := h.crew(ports, 1, 1, true)
		f.dst[toEach] = sinks.macs
		end := sinks.load(hostile.LoadArgs{Load: hostile.Sink})
		h.tb.Cleanup(func() { end() })
	}
	f.bad = h.crew(l.guests, 1, l.queues, !l.starve)
	if l.starve {
		f.flood = h.recruit()
	}
	f.peer = h.crew(1, 1, 1, true)
	if l.still {
		h.bridgeFloods(false)
	}
	return f
}

// attack begins the load, at a rate or as strong as it can be.
func (f *field) attack(rate float64) (end func() hostile.Strength) {
	f.tb.Helper()
	a := hostile.LoadArgs{Load: f.load.kind, Dst: f.dst[f.load.to], Rate: rate}
	if f.load.starve {
		return f.flooded(f.bad, f.load.kind, rate)
	}
	return f.bad.load(a)
}

// flooded begins a load on a vif that the host floods.
func (f *field) flooded(c *crew, kind hostile.Kind, rate float64) (end func() hostile.Strength) {
	f.tb.Helper()
	endGuest := c.load(hostile.LoadArgs{Load: kind})
	endFlood := f.flood.load(hostile.LoadArgs{Load: hostile.Host, Interface: ifname(c.vifs[0].Domid, 0), Rate: rate})
	return func() hostile.Strength {
		s, taken := endFlood(), endGuest()
		s.Slots, s.Notified = taken.Slots, taken.Notified
		return s
	}
}

// honest begins the load of the honest peer: packets to the host, in turn to the ports that
// the load sends to, or from the host if it floods the hostile guest.
func (f *field) honest() (end func() hostile.Strength) {
	f.tb.Helper()
	kind := hostile.Bulk
	switch {
	case f.load.starve:
		return f.flooded(f.peer, hostile.Sink, 0)
	case f.load.virt:
		kind = hostile.VirtBulk
	case f.load.peer == toEach:
		kind = hostile.Flood
	}
	return f.peer.load(hostile.LoadArgs{Load: kind, Dst: f.dst[f.load.peer]})
}
