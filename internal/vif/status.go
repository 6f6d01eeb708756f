// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"cmp"
	"context"
	"net"
	"strconv"
	"time"

	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// Status is a vif as it is shown to people and programs. Texts that a guest or a
// toolstack wrote are clipped.
type Status struct {
	Name       string             `json:"name"`                // as the TAP was made
	Revision   uint64             `json:"revision"`            // another one after each change but of counters
	ServedBy   string             `json:"served_by,omitempty"` // another back end than this: "kernel", or "nobody"
	Domid      xen.Domid          `json:"domid"`
	Devid      int                `json:"devid"`
	State      xenbus.State       `json:"state"`
	Frontend   xenbus.State       `json:"frontend_state"`
	Online     bool               `json:"online"`
	Waits      string             `json:"waits_for,omitempty"` // whose turn it is, if not everything is well
	Hotplug    string             `json:"hotplug_status"`
	Quarantine string             `json:"quarantine,omitempty"` // why it is out of service
	Error      string             `json:"error,omitempty"`      // as in the error node
	Stalled    bool               `json:"stalled"`              // on one queue at least
	MAC        string             `json:"mac"`
	Bridge     string             `json:"bridge,omitempty"`
	Script     string             `json:"script,omitempty"`
	Interface  string             `json:"interface,omitempty"` // the TAP's name now
	Network    string             `json:"network,omitempty"`   // the network namespace in which it is, if it is another
	Up         bool               `json:"up"`
	Carrier    bool               `json:"carrier"`
	MTU        int                `json:"mtu,omitempty"`            // of the TAP
	ConfigMTU  int                `json:"mtu_configured,omitempty"` // by the toolstack
	GuestMTU   int                `json:"mtu_guest,omitempty"`      // as the guest is told, 1500 if it is told nothing
	Rate       string             `json:"rate"`
	Features   []string           `json:"features"`
	Headroom   int                `json:"xdp_headroom,omitempty"` // bytes before each packet to the guest
	Mcast      []string           `json:"multicast"`
	Since      time.Time          `json:"connected_since,omitzero"`
	Grants     int                `json:"grants_mapped"`     // ring pages, for as long as the vif is connected
	Ports      int                `json:"event_channels"`    // bound
	Control    *ctrlserver.Status `json:"control,omitempty"` // of a frontend that has a control ring
	Queues     []QueueStatus      `json:"queues"`
	Counters   map[string]uint64  `json:"counters"` // of all queues and connections
	Guest      budget.Used        `json:"guest"`    // of all vifs of the domain
}

// QueueStatus is one queue of a connected vif.
type QueueStatus struct {
	Worker      int               `json:"worker"`
	Uring       bool              `json:"io_uring"`
	Held        int               `json:"held_packets"` // wait for rx slots
	HeldBytes   int               `json:"held_bytes"`
	Stalled     bool              `json:"stalled"`
	RateWaiting bool              `json:"rate_waiting"`
	Static      int               `json:"static_grants"`        // mapped
	StaticMax   int               `json:"static_grants_max"`    // that the frontend may have mapped
	StaticInUse int               `json:"static_grants_in_use"` // named by requests that wait on the rings
	Tx          RingStatus        `json:"tx"`
	Rx          RingStatus        `json:"rx"`
	Counters    map[string]uint64 `json:"counters"`
}

// RingStatus are a ring's indices.
type RingStatus struct {
	ReqProd  uint32 `json:"req_prod"`
	ReqCons  uint32 `json:"req_cons"`
	ReqEvent uint32 `json:"req_event"`
	RspProd  uint32 `json:"rsp_prod"`
	RspEvent uint32 `json:"rsp_event"`
}

// Pending is how many requests the frontend has made that were not taken yet: on
// a tx ring packets in part or whole, on an rx ring free slots.
func (r RingStatus) Pending() uint32 { return r.ReqProd - r.ReqCons }

func ringStatus(s netif.RingState) RingStatus {
	return RingStatus{
		ReqProd: uint32(s.ReqProd), ReqCons: uint32(s.ReqCons), ReqEvent: uint32(s.ReqEvent),
		RspProd: uint32(s.RspProd), RspEvent: uint32(s.RspEvent),
	}
}

// Status asks the vif how it is. If ctx ends before the vif has time to answer,
// or the vif has ended, ok is false and only what never changes is told.
func (v *Vif) Status(ctx context.Context) (s Status, ok bool) {
	var got Status
	if !v.call(ctx, func() { got = v.status() }) {
		return Status{
			Name: v.Name(), Domid: v.cfg.Domid, Devid: v.cfg.Devid,
			Features: []string{}, Mcast: []string{}, Queues: []QueueStatus{},
			Counters: map[string]uint64{},
		}, false
	}
	return got, true
}

func (v *Vif) status() Status {
	s := Status{
		Name: v.Name(), Domid: v.cfg.Domid, Devid: v.cfg.Devid,
		State: v.own, Frontend: v.front, Online: v.nodes.online,
		Hotplug: xenbus.Clip(v.nodes.hotplug), Quarantine: v.reason, Error: v.trouble,
		MAC: xenbus.Clip(v.nodes.mac), Bridge: xenbus.Clip(v.nodes.bridge), Script: xenbus.Clip(v.nodes.script),
		ConfigMTU: mtuOf(v.nodes.mtu), GuestMTU: mtuOf(cmp.Or(v.guestMTU, "1500")),
		Rate:     v.rate.String(),
		Features: []string{}, Mcast: []string{}, Queues: []QueueStatus{},
		Since: v.since,
	}
	if v.tap != nil {
		if info, err := v.tap.Info(); err == nil {
			s.Interface, s.Up, s.Carrier, s.MTU = info.Name, info.Up, info.Carrier, info.MTU
			s.Network = info.Namespace
		}
	}
	totals := v.totals
	if l := v.link; l != nil {
		s.Grants, s.Ports = len(l.mappings), l.ports
		s.Features, s.Headroom = l.front.features.names(), min(int(l.front.headroom), dataplane.MaxXDPHeadroom)
		if l.control != nil {
			s.Control = l.control.Status()
			s.Grants, s.Ports = s.Grants+1, s.Ports+1
		}
		for _, a := range v.mcast.Addrs() {
			s.Mcast = append(s.Mcast, net.HardwareAddr(a[:]).String())
		}
		for i := range l.conn.Queues() {
			n := l.conn.Stats(i).Snapshot()
			addTotals(&totals, &n)
			var state dataplane.QueueState
			v.turn.Aside(func() { state = l.conn.State(i) })
			q := queueStatus(state, &n)
			if l.control != nil {
				if t := l.control.Table(i); t != nil {
					q.StaticMax = t.Limit()
				}
			}
			s.Queues = append(s.Queues, q)
			s.Stalled = s.Stalled || l.stalled[i]
		}
	}
	s.Revision, _ = v.revision.get()
	s.Counters = counterMap(&totals)
	v.saveCounters(time.Now())
	s.Guest = v.cfg.Guest.Used()
	s.Waits = v.waits(s.Up)
	return s
}

// waits says whose turn it is.
func (v *Vif) waits(up bool) string {
	switch {
	case v.reason != "":
		return "the guest to connect anew, or netbackd reset"
	case v.tried != nil:
		return "the guest to come with something else, or netbackd reset"
	case !v.detachAt.IsZero() && v.own != xenbus.Closed:
		return "the guest to close"
	case v.own == xenbus.Closed && (!v.nodes.online || v.hidden):
		return "the toolstack to remove it"
	case v.own == xenbus.Connected && v.claimed && !v.nodes.plugged():
		return "the hotplug script"
	case v.own == xenbus.Closing, v.link == nil:
		return "the guest"
	case !v.live:
		return "the hotplug script"
	case v.link.dark:
		return "the guest to give rx slots"
	case !up:
		return "somebody to bring the interface up"
	}
	return ""
}

func queueStatus(s dataplane.QueueState, n *[dataplane.NumCounters]uint64) QueueStatus {
	return QueueStatus{
		Worker: s.Worker, Uring: s.Uring,
		Held: s.Backlog, HeldBytes: s.BacklogBytes,
		Stalled: s.Stalled, RateWaiting: s.RateWaiting,
		Static: s.Static, StaticInUse: s.StaticInUse,
		Tx: ringStatus(s.Tx), Rx: ringStatus(s.Rx),
		Counters: counterMap(n),
	}
}

// mtuOf is an MTU for people, 0 if there is none or it makes no sense.
func mtuOf(v string) int {
	n, _ := strconv.ParseUint(v, 10, 16)
	return int(n)
}

func counterMap(n *[dataplane.NumCounters]uint64) map[string]uint64 {
	m := make(map[string]uint64, len(n))
	for c := range n {
		m[dataplane.Counters[c].Name] = n[c]
	}
	return m
}

// keepTotals adds a connection's counters to those that outlive it.
func (v *Vif) keepTotals(c *dataplane.Conn) {
	for i := range c.Queues() {
		n := c.Stats(i).Snapshot()
		addTotals(&v.totals, &n)
	}
}

func addTotals(to, n *[dataplane.NumCounters]uint64) {
	for k := range n {
		to[k] += n[k]
	}
}
