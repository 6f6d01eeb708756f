// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"fmt"
	"net"
	"time"

	"github.com/netbackd/netbackd/pkg/dataplane"
	"github.com/netbackd/netbackd/pkg/netif"
)

// Status is a vif as it is shown to people and programs.
type Status struct {
	Name       string            `json:"name"` // as the TAP was made
	Domid      uint16            `json:"domid"`
	Devid      int               `json:"devid"`
	State      State             `json:"state"`
	Frontend   State             `json:"frontend_state"`
	Online     bool              `json:"online"`
	Hotplug    string            `json:"hotplug_status"`
	Quarantine string            `json:"quarantine,omitempty"` // why it is out of service
	Error      string            `json:"error,omitempty"`      // the last one
	Stalled    bool              `json:"stalled"`
	MAC        string            `json:"mac"`
	Bridge     string            `json:"bridge,omitempty"`
	Script     string            `json:"script,omitempty"`
	Interface  string            `json:"interface,omitempty"` // the TAP's name now
	Up         bool              `json:"up"`
	Carrier    bool              `json:"carrier"`
	MTU        int               `json:"mtu,omitempty"`
	Rate       string            `json:"rate"`
	Features   []string          `json:"features"`
	Mcast      []string          `json:"multicast"`
	Since      time.Time         `json:"connected_since,omitzero"`
	Queues     []QueueStatus     `json:"queues"`
	Counters   map[string]uint64 `json:"counters"` // of all queues and connections
}

// QueueStatus is one queue of a connected vif.
type QueueStatus struct {
	Worker      int               `json:"worker"`
	Uring       bool              `json:"io_uring"`
	Held        int               `json:"held_packets"`
	HeldBytes   int               `json:"held_bytes"`
	Stalled     bool              `json:"stalled"`
	RateWaiting bool              `json:"rate_waiting"`
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

func ringStatus(s netif.RingState) RingStatus {
	return RingStatus{
		ReqProd: uint32(s.ReqProd), ReqCons: uint32(s.ReqCons), ReqEvent: uint32(s.ReqEvent),
		RspProd: uint32(s.RspProd), RspEvent: uint32(s.RspEvent),
	}
}

// Status asks the vif how it is.
func (v *Vif) Status() (s Status, ok bool) {
	ok = v.Do(func() { s = v.status() })
	return s, ok
}

func (v *Vif) status() Status {
	s := Status{
		Name: v.Name(), Domid: v.cfg.Domid, Devid: v.cfg.Devid,
		State: v.own, Frontend: v.front, Online: v.online,
		Hotplug: v.nodes.hotplug, Quarantine: v.reason, Error: v.trouble,
		Stalled: len(v.stalled) > 0,
		MAC:     clip(v.nodes.mac), Bridge: clip(v.nodes.bridge), Script: clip(v.nodes.script),
		Rate:     v.rate.String(),
		Features: []string{}, Mcast: []string{}, Queues: []QueueStatus{},
	}
	if v.tap != nil {
		if info, err := v.tap.Info(); err == nil {
			s.Interface, s.Up, s.Carrier, s.MTU = info.Name, info.Up, info.Carrier, info.MTU
		}
	}
	for _, a := range v.mcast.Addrs() {
		s.Mcast = append(s.Mcast, net.HardwareAddr(a[:]).String())
	}
	totals := v.totals
	if v.link != nil {
		s.Since = v.connected
		s.Features = append(s.Features, v.link.front.Features.Names()...)
		for i := range v.link.conn.Queues() {
			st := v.link.conn.State(i)
			n := v.link.conn.Stats(i).Snapshot()
			for c := range n {
				totals[c] += n[c]
			}
			s.Queues = append(s.Queues, QueueStatus{
				Worker: st.Worker, Uring: st.Uring,
				Held: st.Held, HeldBytes: st.HeldBytes,
				Stalled: st.Stalled, RateWaiting: st.RateWaiting,
				Tx: ringStatus(st.Tx), Rx: ringStatus(st.Rx),
				Counters: counterMap(&n),
			})
		}
	}
	s.Counters = counterMap(&totals)
	return s
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
		for k := range n {
			v.totals[k] += n[k]
		}
	}
}

// String is for logs.
func (s Status) String() string { return fmt.Sprintf("%s %v", s.Name, s.State) }
