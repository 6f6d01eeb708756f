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
	"github.com/netbackd/netbackd/internal/netengine"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// Status describes a vif. Texts that a guest or a toolstack wrote are clipped.
type Status struct {
	Name       string             `json:"name"`                // name that the TAP was created with
	Revision   uint64             `json:"revision"`            // changes with everything below except counters
	ServedBy   string             `json:"served_by,omitempty"` // another back end: "kernel", or "none"
	Domid      xen.Domid          `json:"domid"`
	Devid      int                `json:"devid"`
	State      xenbus.State       `json:"state"`
	Frontend   xenbus.State       `json:"frontend_state"`
	Online     bool               `json:"online"`
	Waits      string             `json:"waits_for,omitempty"` // actor and action needed for packets to pass; empty: they pass
	Hotplug    string             `json:"hotplug_status"`
	Quarantine string             `json:"quarantine,omitempty"` // reason; empty: the vif is not quarantined
	Error      string             `json:"error,omitempty"`      // text of the error node
	Stalled    bool               `json:"stalled"`              // the guest posts no rx slots on at least one queue
	MAC        string             `json:"mac"`
	Bridge     string             `json:"bridge,omitempty"`
	Script     string             `json:"script,omitempty"`
	Interface  string             `json:"interface,omitempty"` // present name of the TAP
	Network    string             `json:"network,omitempty"`   // network namespace of the TAP; empty: the daemon's own
	Up         bool               `json:"up"`
	Carrier    bool               `json:"carrier"`
	MTU        int                `json:"mtu,omitempty"`            // of the TAP
	ConfigMTU  int                `json:"mtu_configured,omitempty"` // set by the toolstack
	GuestMTU   int                `json:"mtu_guest,omitempty"`      // the frontend's key mtu; 1500 if there is none
	Rate       string             `json:"rate"`
	Weight     int                `json:"weight"` // the guest's part of a worker's time beside guests with 1: the largest of its vifs
	Features   []string           `json:"features"`
	Headroom   int                `json:"xdp_headroom,omitempty"` // bytes before each packet to the guest
	Mcast      []string           `json:"multicast"`
	Since      time.Time          `json:"connected_since,omitzero"`
	Grants     int                `json:"grants_mapped"`     // ring pages
	Ports      int                `json:"event_channels"`    // bound
	Control    *ctrlserver.Status `json:"control,omitempty"` // nil: the frontend has no control ring
	Queues     []QueueStatus      `json:"queues"`
	Counters   map[string]uint64  `json:"counters"` // sums of all queues and connections
	Guest      budget.Used        `json:"guest"`    // sums of all vifs of the domain
}

// ID returns the domain and the number of the vif.
func (s *Status) ID() xenbus.VifID { return xenbus.VifID{Domid: s.Domid, Devid: s.Devid} }

// QueueStatus describes one queue of a connected vif.
type QueueStatus struct {
	Worker      int               `json:"worker"`
	Uring       bool              `json:"io_uring"`
	OwnPages    int               `json:"own_pages"`    // of the worker; packets elsewhere are copied by address
	Held        int               `json:"held_packets"` // packets that wait for rx slots
	HeldBytes   int               `json:"held_bytes"`
	Stalled     bool              `json:"stalled"`
	RateWaiting bool              `json:"rate_waiting"`
	Static      int               `json:"static_grants"`        // number of mapped static grants
	StaticMax   int               `json:"static_grants_max"`    // bound of that number
	StaticInUse int               `json:"static_grants_in_use"` // static grants named by unanswered requests
	Tx          RingStatus        `json:"tx"`
	Rx          RingStatus        `json:"rx"`
	Counters    map[string]uint64 `json:"counters"`
}

// RingStatus holds the indices of a ring.
type RingStatus struct {
	ReqProd  uint32 `json:"req_prod"`
	ReqCons  uint32 `json:"req_cons"`
	ReqEvent uint32 `json:"req_event"`
	RspProd  uint32 `json:"rsp_prod"`
	RspEvent uint32 `json:"rsp_event"`
}

// Pending returns the number of requests that the frontend has made and the backend has
// not taken: slots of packets on a tx ring, free slots on an rx ring.
func (r RingStatus) Pending() uint32 { return r.ReqProd - r.ReqCons }

func ringStatus(s netif.RingState) RingStatus {
	return RingStatus{
		ReqProd: uint32(s.ReqProd), ReqCons: uint32(s.ReqCons), ReqEvent: uint32(s.ReqEvent),
		RspProd: uint32(s.RspProd), RspEvent: uint32(s.RspEvent),
	}
}

// Status returns the status of the vif. If ctx ends before the vif answers, or the vif has
// ended, ok is false and only the fields that never change are set.
func (v *Vif) Status(ctx context.Context) (s Status, ok bool) {
	var got Status
	if !v.mail.Call(ctx, func() { got = v.status() }) {
		return Status{
			Name: v.cfg.ID.String(), Domid: v.cfg.ID.Domid, Devid: v.cfg.ID.Devid,
			Features: []string{}, Mcast: []string{}, Queues: []QueueStatus{},
			Counters: map[string]uint64{},
		}, false
	}
	return got, true
}

func (v *Vif) status() Status {
	s := Status{
		Name: v.cfg.ID.String(), Domid: v.cfg.ID.Domid, Devid: v.cfg.ID.Devid,
		State: v.own, Frontend: v.guest.state, Online: v.nodes.online,
		Hotplug: xenbus.Clip(v.nodes.hotplug), Quarantine: v.block.reason, Error: v.errorNode.Text(),
		MAC: xenbus.Clip(v.nodes.mac), Bridge: xenbus.Clip(v.nodes.bridge), Script: xenbus.Clip(v.nodes.script),
		ConfigMTU: mtuOf(v.nodes.mtu), GuestMTU: mtuOf(cmp.Or(v.guest.mtu, "1500")),
		Rate: v.rate.String(), Weight: v.weight,
		Features: []string{}, Mcast: []string{}, Queues: []QueueStatus{},
	}
	if v.tap != nil {
		if info, err := v.tap.Info(); err == nil {
			s.Interface, s.Up, s.Carrier, s.MTU = info.Name, info.Up, info.Carrier, info.MTU
			s.Network = info.Namespace
		}
	}
	totals := v.totals
	if c := v.conn; c != nil {
		s.Since = c.since
		s.Features, s.Headroom = c.frontend.features.names(), min(int(c.frontend.headroom), dataplane.MaxXDPHeadroom)
		now := v.link.Status()
		s.Grants, s.Ports, s.Control = now.Mapped, now.Ports, now.Control
		for _, a := range now.Mcast {
			s.Mcast = append(s.Mcast, net.HardwareAddr(a[:]).String())
		}
		for i := range now.Queues {
			q := &now.Queues[i]
			netengine.AddCounters(&totals, &q.Counters)
			s.Queues = append(s.Queues, queueStatus(q))
			s.Stalled = s.Stalled || c.stalled[i]
		}
	}
	s.Revision, _ = v.revision.Get()
	s.Counters = counterMap(&totals)
	v.saveCounters(time.Now())
	s.Guest = v.cfg.Guest.Used()
	s.Waits = v.waits(s.Up)
	return s
}

// waits describes the actor and the action that packets wait for. It is empty if they pass.
func (v *Vif) waits(up bool) string {
	switch {
	case v.block.phase() == blockQuarantined:
		return "the guest to reconnect, or netbackd reset"
	case v.block.phase() == blockRefused:
		return "the guest to try something else, or netbackd reset"
	case !v.detachAt.IsZero() && v.own != xenbus.Closed:
		return "the guest to close"
	case v.own == xenbus.Closed && (!v.nodes.online || v.guest.hidden):
		return "the toolstack to remove it"
	case v.own == xenbus.Connected && v.claimed && !v.nodes.plugged():
		return "the hotplug script"
	case v.own == xenbus.Closing, v.conn == nil:
		return "the guest"
	case v.conn.carrier == carrierWaiting:
		return "the hotplug script"
	case v.conn.carrier == carrierOff:
		return "the guest to post rx slots"
	case !up:
		return "an administrator to bring the interface up"
	}
	return ""
}

func queueStatus(q *netengine.QueueStatus) QueueStatus {
	return QueueStatus{
		Worker: q.Worker, Uring: q.Uring, OwnPages: q.OwnPages,
		Held: q.Backlog, HeldBytes: q.BacklogBytes,
		Stalled: q.Stalled, RateWaiting: q.RateWaiting,
		Static: q.Static, StaticMax: q.StaticMax, StaticInUse: q.StaticInUse,
		Tx: ringStatus(q.Tx), Rx: ringStatus(q.Rx),
		Counters: counterMap(&q.Counters),
	}
}

// mtuOf parses an MTU. It returns 0 if there is none or it is no number.
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
