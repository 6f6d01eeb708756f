// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"cmp"
	"context"
	"time"

	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// Status describes a vbd. `blkbackd show --json` prints it.
type Status struct {
	Name     string       `json:"name"`
	Class    xenbus.Class `json:"class"`
	Domid    xen.Domid    `json:"domid"`
	Devid    int          `json:"devid"`
	Vdev     string       `json:"vdev"`                // name in the guest, such as xvda
	ServedBy string       `json:"served_by,omitempty"` // empty: by blkbackd; "kernel", or "none"
	Revision uint64       `json:"revision"`            // a new number for each change, except of counters

	State      xenbus.State `json:"state"`
	Frontend   xenbus.State `json:"frontend_state"`
	Online     bool         `json:"online"`
	Waits      string       `json:"waits_for,omitempty"` // actor and action needed for requests to be served; empty: they are
	Hotplug    string       `json:"hotplug_status"`
	Script     string       `json:"script,omitempty"`
	Quarantine string       `json:"quarantine,omitempty"` // reason; empty: the vbd is not quarantined
	Error      string       `json:"error,omitempty"`      // text of the error node

	Disk       DiskStatus        `json:"disk"`
	Connection *ConnStatus       `json:"connection,omitempty"` // nil: there is none
	Counters   map[string]uint64 `json:"counters"`             // sums of all queues and connections
	Weight     int               `json:"weight"`               // the guest's part of processors and devices beside guests with 1: the largest of its vbds
	Guest      budget.Used       `json:"guest"`                // sums of all vbds of the domain
}

// ID returns the class, the domain and the number of the vbd.
func (s *Status) ID() xenbus.DeviceID {
	return xenbus.DeviceID{Class: s.Class, Domid: s.Domid, Devid: s.Devid}
}

// DiskStatus describes the backing store of a vbd.
type DiskStatus struct {
	Path         string    `json:"path"`
	Open         bool      `json:"open"`
	Kind         disk.Kind `json:"kind"`                       // if open
	Direct       bool      `json:"direct"`                     // the page cache is bypassed
	Buffered     string    `json:"buffered_because,omitempty"` // why it is not, though asked for
	ReadOnly     bool      `json:"read_only"`
	CDROM        bool      `json:"cdrom"`
	Sectors      uint64    `json:"sectors"` // of 512 bytes
	SectorSize   int       `json:"sector_size"`
	PhysicalSize int       `json:"physical_sector_size"`
	Discard      bool      `json:"discard"`
	Granularity  uint32    `json:"discard_granularity,omitempty"`
}

// ConnStatus describes the connection to a frontend.
type ConnStatus struct {
	Since       time.Time     `json:"since"`
	Ending      bool          `json:"ending,omitempty"` // it waits for the disk to end its operations
	Adopted     bool          `json:"adopted"`          // a predecessor served it
	Protocol    string        `json:"protocol"`
	RingOrder   int           `json:"ring_order"` // binary logarithm of the pages of a ring
	MaxSegments int           `json:"max_segments"`
	Persistent  bool          `json:"persistent"`
	Journal     bool          `json:"journal"`              // a successor can continue it
	DiskError   string        `json:"disk_error,omitempty"` // the last one
	Queues      []QueueStatus `json:"queues"`
}

// QueueStatus describes one queue of a connected vbd.
type QueueStatus struct {
	IOUring    bool              `json:"io_uring"`
	Broken     bool              `json:"broken,omitempty"`
	Held       bool              `json:"held,omitempty"` // its thread does not come back from the host's kernel
	Slots      uint32            `json:"slots"`
	InFlight   int               `json:"in_flight"`   // requests consumed and not answered, which are in the journal
	Waiting    int               `json:"waiting"`     // of these, not started
	Operations int               `json:"operations"`  // under way at the disk
	Bytes      int64             `json:"bytes"`       // of data in flight
	Persistent int               `json:"persistent"`  // pages that stay mapped
	Memory     bool              `json:"memory_wait"` // the next request waits for memory
	Ring       RingStatus        `json:"ring"`
	Counters   map[string]uint64 `json:"counters"`
}

// RingStatus holds the indices of a ring.
type RingStatus struct {
	ReqProd  blkif.Index `json:"req_prod"`
	ReqCons  blkif.Index `json:"req_cons"`
	ReqEvent blkif.Index `json:"req_event"`
	RspProd  blkif.Index `json:"rsp_prod"`
	RspEvent blkif.Index `json:"rsp_event"`
}

// NewStatus returns the constant part of the status of a vbd.
func NewStatus(id xenbus.DeviceID) Status {
	return Status{
		Name: id.String(), Class: id.Class, Domid: id.Domid, Devid: id.Devid,
		Vdev: xenbus.Vdev(id.Devid).String(), Counters: map[string]uint64{},
	}
}

// Status returns the status of the vbd. If ctx ends before the vbd answers, or the vbd has
// ended, ok is false and only the fields that never change are set.
func (v *Vbd) Status(ctx context.Context) (s Status, ok bool) {
	var got Status
	if !v.mail.Call(ctx, func() { got = v.status() }) {
		return NewStatus(v.cfg.ID), false
	}
	return got, true
}

func (v *Vbd) status() Status {
	s := NewStatus(v.cfg.ID)
	s.State, s.Frontend, s.Online = v.own, v.guest.state, v.nodes.online
	s.Hotplug, s.Script = xenbus.Clip(v.nodes.hotplug), xenbus.Clip(v.nodes.script)
	s.Quarantine, s.Error = v.block.reason, v.errorNode.Text()
	s.Disk = v.diskStatus()
	if c := cmp.Or(v.conn.now, v.conn.ending); c != nil {
		s.Connection = v.connStatus(c)
	}
	s.Revision, _ = v.revision.Get()
	s.Counters = v.counters().byName(true)
	v.saveCounters(time.Now())
	s.Weight = v.weight
	if v.cfg.Memory != nil {
		s.Weight = max(s.Weight, v.cfg.Memory.Weight())
	}
	s.Guest = v.cfg.Guest.Used()
	s.Waits = v.waits()
	return s
}

func (v *Vbd) diskStatus() DiskStatus {
	t := &v.nodes.target
	d := v.disk.open
	if d == nil {
		return DiskStatus{Path: t.path(), ReadOnly: t.readOnly(), CDROM: t.cdrom()}
	}
	t = &v.disk.target
	direct, why := d.Direct()
	s := DiskStatus{
		Path: t.path(), Open: true, Kind: d.Kind(), Direct: direct, Buffered: why,
		ReadOnly: t.readOnly(), CDROM: t.cdrom(),
		Sectors: d.Sectors(), SectorSize: d.SectorSize(), PhysicalSize: d.PhysicalSectorSize(),
	}
	if x := d.Discard(); x.OK() && !t.noDiscard && !t.readOnly() {
		s.Discard, s.Granularity = true, x.Granularity
	}
	return s
}

func (v *Vbd) connStatus(c *connection) *ConnStatus {
	s := &ConnStatus{
		Since: c.since, Ending: c != v.conn.now, Adopted: c.data.Adopted(),
		Protocol: c.frontend.protocol.String(), RingOrder: c.frontend.order,
		MaxSegments: max(v.nodes.offered.maxSegments, blkif.MaxDirect), Persistent: c.persistent,
		Journal: v.cfg.RunDir != "", DiskError: c.diskError,
	}
	for i := range c.data.Queues() {
		n := totals(c.data.Counters(i))
		s.Queues = append(s.Queues, queueStatus(c.data.Status(i), &n))
	}
	return s
}

func queueStatus(q blkplane.QueueStatus, n *totals) QueueStatus {
	return QueueStatus{
		IOUring: q.IOUring, Broken: q.Broken, Held: q.Stuck, Slots: q.Size,
		InFlight: q.InFlight, Waiting: q.Waiting, Operations: q.Operations, Bytes: q.Bytes,
		Persistent: q.Persistent, Memory: q.Memory,
		Ring: RingStatus{
			ReqProd: q.Ring.ReqProd, ReqCons: q.Ring.Cons, ReqEvent: q.Ring.ReqEvent,
			RspProd: q.Ring.RspProd, RspEvent: q.Ring.RspEvent,
		},
		Counters: n.byName(true),
	}
}

// waits describes the actor and the action that requests wait for. It is empty if they are
// served.
func (v *Vbd) waits() string {
	front := v.guest.state
	switch {
	case v.conn.ending != nil:
		return "the disk to end its operations"
	case v.block.phase() == blockQuarantined:
		return "the guest to reconnect, or blkbackd reset"
	case v.block.phase() == blockRefused:
		return "the guest to try something else, or blkbackd reset"
	case v.own == xenbus.Closed && (!v.nodes.online || front == xenbus.Unknown):
		return "the toolstack to remove it"
	case v.conn.now != nil && !v.detachAt.IsZero() && front == xenbus.Closing:
		return "the guest to stop using the disk, or the toolstack to force its removal"
	case !v.detachAt.IsZero():
		return "the guest to close"
	case v.conn.now != nil && v.own == xenbus.Connected:
		return ""
	case v.own == xenbus.InitWait || v.own == xenbus.Connected:
		return v.waitsForDisk()
	}
	return "the guest"
}

// waitsForDisk describes the thing that a vbd without a connection waits for, the disk first.
func (v *Vbd) waitsForDisk() string {
	switch phase := v.diskPhase(); {
	case phase == diskOpening:
		return "the disk to open, or its lock to be free"
	case phase == diskFailed:
		return "the disk to be there: it is tried again, or at once by blkbackd reset"
	case phase == diskNone && !v.nodes.plugged():
		return "the hotplug script"
	}
	return "the guest"
}

// gist holds the fields of a vbd whose changes make a new revision.
type gist struct {
	own, node, front xenbus.State
	online           bool
	hotplug          string
	error, blocked   string
	disk             diskPhase
	sectors          string
	conn, ending     *connection
}

func (v *Vbd) gist() gist {
	return gist{
		own: v.own, node: v.lastNode, front: v.guest.state, online: v.nodes.online, hotplug: v.nodes.hotplug,
		error: v.errorNode.Text(), blocked: v.block.reason, disk: v.diskPhase(), sectors: v.nodes.shown.sectors,
		conn: v.conn.now, ending: v.conn.ending,
	}
}
