// SPDX-License-Identifier: Apache-2.0

package vhostnet

import (
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/pkg/vhostuser"
)

// State is the state of a device.
type State string

// States of a device.
const (
	Waiting     State = "waiting"     // for a front end
	Negotiating State = "negotiating" // the front end is there, and no pair is enabled
	Connected   State = "connected"   // packets pass
	Stalled     State = "stalled"     // the guest posts no buffers
)

// Kind is the value of Status.Kind, which no vif has.
const Kind = "vhost-user"

// Status describes a device.
type Status struct {
	Kind      string            `json:"kind"`
	Name      string            `json:"name"`
	PID       int               `json:"pid"`
	State     State             `json:"state"`
	Waits     string            `json:"waits_for,omitempty"` // actor and action needed for packets to pass; empty: they pass
	Error     string            `json:"error,omitempty"`     // why the last session was ended here
	Mode      string            `json:"socket_mode"`         // listen, connect or fd
	Socket    string            `json:"socket,omitempty"`
	Frontend  int               `json:"frontend_pid,omitempty"`
	Since     time.Time         `json:"connected_since,omitzero"`
	Sessions  uint64            `json:"sessions"` // front ends that have connected
	Interface string            `json:"interface,omitempty"`
	Made      bool              `json:"interface_made"` // the interface ends with the device
	Bridge    string            `json:"bridge,omitempty"`
	Up        bool              `json:"up"`
	Carrier   bool              `json:"carrier"`
	MTU       int               `json:"mtu,omitempty"`
	GuestMTU  int               `json:"mtu_guest,omitempty"` // as the front end told it; 0: it did not
	Rate      string            `json:"rate"`
	Steering  string            `json:"steering"` // how the queue of a packet to the guest is chosen
	VnetHdr   bool              `json:"vnet_header"`
	Offered   []string          `json:"features_offered"`
	Features  []string          `json:"features"`
	Xen       bool              `json:"xen_mmap_offered"`
	Driver    uint8             `json:"driver_status"`
	Memory    []Memory          `json:"memory"`
	Logging   bool              `json:"dirty_log"`
	Pairs     int               `json:"queue_pairs_max"`
	Active    int               `json:"queue_pairs"` // enabled
	Queues    []QueueStatus     `json:"queues"`
	Counters  map[string]uint64 `json:"counters"` // sums of all queues and sessions
}

// Memory sums the regions of one kind.
type Memory struct {
	Kind    string `json:"kind"`
	Regions int    `json:"regions"`
	Bytes   uint64 `json:"bytes"`
	Domid   uint32 `json:"domid"`
	Flags   uint32 `json:"flags"`
}

// QueueStatus describes one pair of queues.
type QueueStatus struct {
	Worker      int               `json:"worker"`
	Uring       bool              `json:"io_uring"`
	Held        int               `json:"held_packets"` // packets that wait for buffers
	HeldBytes   int               `json:"held_bytes"`
	Stalled     bool              `json:"stalled"`
	RateWaiting bool              `json:"rate_waiting"`
	Tx          RingStatus        `json:"tx"`
	Rx          RingStatus        `json:"rx"`
	Counters    map[string]uint64 `json:"counters"`
}

// RingStatus describes one ring.
type RingStatus struct {
	Started   bool   `json:"started"`
	Enabled   bool   `json:"enabled"`
	Packed    bool   `json:"packed"`
	Size      int    `json:"size"`
	Base      uint32 `json:"base"`
	Available int    `json:"available"`
	Error     string `json:"error,omitempty"`
}

func ringStatus(r dataplane.VirtRingState) RingStatus {
	s := RingStatus{Started: r.Started, Enabled: r.Enabled, Packed: r.Packed, Size: r.Size, Base: r.Base, Available: r.Available}
	if r.Err != nil {
		s.Error = r.Err.Error()
	}
	return s
}

// memoryOf sums the regions of a table, which may be nil, by their kinds.
func memoryOf(t *vhostuser.Table) []Memory {
	list := []Memory{}
	if t == nil {
		return list
	}
next:
	for i := range t.Len() {
		r, kind, _ := t.Region(uint32(i))
		for j := range list {
			if m := &list[j]; m.Kind == kind.String() && m.Domid == r.Domid && m.Flags == r.Flags {
				m.Regions, m.Bytes = m.Regions+1, m.Bytes+r.Size
				continue next
			}
		}
		list = append(list, Memory{kind.String(), 1, r.Size, r.Domid, r.Flags})
	}
	return list
}

// viewed holds the parts of the status that belong to a session.
type viewed struct {
	mode, socket string
	frontend     int
	since        time.Time // zero: there is no session
	features     uint64
	memory       []Memory
	logging      bool
	status       uint8
	mtu          int
	failure      string
}

// view keeps what the status shows, for readers in other goroutines.
type view struct {
	mu sync.Mutex
	v  viewed
}

func (w *view) set(f func(*viewed)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(&w.v)
}

func (w *view) get() viewed {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.v
}

// wait notes that the device waits for a front end.
func (w *view) wait(e Endpoint) {
	w.set(func(v *viewed) { v.mode, v.socket = e.Mode(), e.Path() })
}

// begin notes a new session. The reason why the last one ended stays.
func (w *view) begin(pid int) {
	w.set(func(v *viewed) { v.frontend, v.since = pid, time.Now() })
}

// end notes the end of the session.
func (w *view) end(err error) {
	w.set(func(v *viewed) {
		*v = viewed{mode: v.mode, socket: v.socket}
		if err != nil {
			v.failure = err.Error()
		}
	})
}

// Status returns the status of the device. Any goroutine may call it.
func (d *Device) Status() Status {
	v := d.view.get()
	s := Status{
		Kind: Kind, Name: d.cfg.Name, PID: os.Getpid(), Error: v.failure, Mode: v.mode, Socket: v.socket, Frontend: v.frontend,
		Since: v.since, Sessions: d.sessions.Load(), Made: d.link.ours, GuestMTU: v.mtu,
		Rate: d.cfg.Rate.String(), Steering: d.link.steering.by(), VnetHdr: d.link.dev.VnetHdr(),
		Offered: featureNames(d.features), Features: featureNames(v.features),
		Xen: d.protocol&vhostuser.ProtocolXenMmap != 0, Driver: v.status, Memory: v.memory, Logging: v.logging && v.features&featureLogAll != 0,
		Pairs: d.Pairs(), Queues: []QueueStatus{},
	}
	if s.Memory == nil {
		s.Memory = []Memory{}
	}
	if info, err := d.link.info(); err == nil {
		s.Interface, s.Up, s.Carrier, s.MTU = info.Name, info.Up, info.Carrier, info.MTU
		s.Bridge = nameOf(info.Master)
	}
	var totals [dataplane.NumCounters]uint64
	for i := range d.Pairs() {
		n := d.rings.Stats(i).Snapshot()
		for k := range n {
			totals[k] += n[k]
		}
		q := d.rings.State(i)
		s.Queues = append(s.Queues, QueueStatus{
			Worker: q.Worker, Uring: q.Uring, Held: q.Backlog, HeldBytes: q.BacklogBytes,
			Stalled: q.Stalled, RateWaiting: q.RateWaiting,
			Tx: ringStatus(q.Tx), Rx: ringStatus(q.Rx), Counters: counterMap(&n),
		})
	}
	s.Counters = counterMap(&totals)
	active, stalled := d.link.use()
	s.Active = active
	s.State, s.Waits = state(&v, active, stalled, s.Up)
	return s
}

// State returns the state of the device. Any goroutine may call it.
func (d *Device) State() State {
	v := d.view.get()
	active, stalled := d.link.use()
	s, _ := state(&v, active, stalled, true)
	return s
}

// state returns the state, and the side that packets wait for.
func state(v *viewed, active int, stalled, up bool) (State, string) {
	switch {
	case v.since.IsZero() && v.mode == "connect":
		return Waiting, fmt.Sprintf("a front end that listens at %s", v.socket)
	case v.since.IsZero() && v.socket != "":
		return Waiting, fmt.Sprintf("a front end to connect to %s", v.socket)
	case v.since.IsZero():
		return Waiting, "a front end"
	case active == 0:
		return Negotiating, "the guest's driver"
	case stalled:
		return Stalled, "the guest to post buffers"
	case !up:
		return Connected, "an administrator to bring the interface up"
	}
	return Connected, ""
}

func counterMap(n *[dataplane.NumCounters]uint64) map[string]uint64 {
	m := make(map[string]uint64, len(n))
	for c := range n {
		m[dataplane.Counters[c].Name] = n[c]
	}
	return m
}
