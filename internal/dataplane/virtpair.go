// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/vhostuser"
	"github.com/netbackd/netbackd/pkg/virtqueue"
	"github.com/netbackd/netbackd/pkg/xen"
)

// virtPair is the part of a queue that serves a pair of virtqueues: two passes of its own
// over the rings, and all else as for a vif's queue. It belongs to the queue's worker.
type virtPair struct {
	rx, tx virtRing // to the guest, from the guest
	memory *virtMemory
	log    *virtqueue.Log // nil: nothing is recorded

	features uint64
	hdrLen   int  // bytes of vnet header in the guest's buffers, 12 or 10
	merge    bool // a packet for the guest may take several chains
	takes    virtTakes
}

// virtTakes lists the offloads that a guest takes.
type virtTakes struct {
	csum bool
	ecn  bool
	gso  uint8 // bit n: GSO type n
}

// passes reports whether a packet with these fields of its vnet header can go to the guest
// as it is.
func (t *virtTakes) passes(v *tap.VnetHdr) bool {
	gso := v.GSOType &^ tap.VnetGSOECN
	switch {
	case v.Flags&tap.VnetNeedsCsum != 0 && !t.csum:
		return false
	case gso == tap.VnetGSONone:
		return v.CsumOffset != csumOffsetSCTP // its sum is another one
	case v.GSOType&tap.VnetGSOECN != 0 && !t.ecn:
		return false
	}
	return gso < 8 && t.gso&(1<<gso) != 0
}

// csumOffsetSCTP is the offset of the checksum in an SCTP header.
const csumOffsetSCTP = 8

// setFeatures notes the features that the front end accepted.
func (v *virtPair) setFeatures(f uint64) {
	v.features = f
	v.hdrLen = tap.VnetHdrLen
	if f&(virtVersion1|virtMrgRxbuf) == 0 {
		v.hdrLen = tap.VnetHdrLen - 2 // without num_buffers
	}
	v.merge = f&virtMrgRxbuf != 0
	v.takes = virtTakes{csum: f&virtGuestCsum != 0, ecn: f&virtGuestECN != 0}
	if f&virtGuestTSO4 != 0 {
		v.takes.gso |= 1 << tap.VnetGSOTCPv4
	}
	if f&virtGuestTSO6 != 0 {
		v.takes.gso |= 1 << tap.VnetGSOTCPv6
	}
	if uso := uint64(virtGuestUSO4 | virtGuestUSO6); f&uso == uso {
		v.takes.gso |= 1 << tap.VnetGSOUDP
	}
}

// delivers reports whether packets from the TAP can go to the guest.
func (v *virtPair) delivers() bool { return v.rx.runs() && v.rx.set.Enabled }

// ring returns one of the two rings by its index.
func (v *virtPair) ring(index int) *virtRing {
	if index%2 == 0 {
		return &v.rx
	}
	return &v.tx
}

// rings returns both rings.
func (v *virtPair) rings() [2]*virtRing { return [2]*virtRing{&v.rx, &v.tx} }

// virtMemory is the memory of a device. It never changes.
type virtMemory struct {
	table   *vhostuser.Table
	memory  *virtqueue.Memory
	regions []virtRegion // by the tag of a piece
	copies  bool         // some region has to be copied
}

// virtRegion is a region: its memory, or how it is copied if it is not mapped.
type virtRegion struct {
	mem    []byte
	grants Copier
	domid  xen.Domid
}

// newVirtMemory returns the memory of a table; nil has none.
func newVirtMemory(t *vhostuser.Table) *virtMemory {
	m := &virtMemory{table: t}
	if t == nil {
		m.memory, _ = virtqueue.NewMemory() // no region is no error
		return m
	}
	m.memory = t.Memory()
	for i := range t.Len() {
		r, kind, grants := t.Region(uint32(i))
		m.regions = append(m.regions, virtRegion{mem: m.memory.Bytes(r.Guest, r.Size), grants: grants, domid: xen.Domid(r.Domid)})
		m.copies = m.copies || kind == vhostuser.KindGrantCopy
	}
	return m
}

// newVirtConn makes a device that is not served yet.
func newVirtConn(cfg VirtConfig) *Conn {
	c := &Conn{
		virt: true,
		cfg: Config{
			Name: cfg.Name, VnetHdr: cfg.VnetHdr, Coalesce: cfg.Coalesce, Paused: cfg.Paused, Limiter: cfg.Limiter,
			Drain: cfg.Drain, Stall: cfg.Stall, Notice: cfg.Notice,
			SG: true, RxNotify: true,
		},
		hurry: make(chan struct{}),
	}
	c.cfg.setDefaults()
	for i := range cfg.Pairs {
		c.queues = append(c.queues, newVirtQueue(c, i, cfg.Pairs[i].Tap))
	}
	c.waiting.own = int64(len(c.queues)) * waitBytes
	return c
}

// newVirtQueue makes a queue for a pair of rings that are stopped.
func newVirtQueue(c *Conn, index int, t *tap.Queue) *Queue {
	q := &Queue{
		conn: c, index: index, tap: t, mostSegs: turnSegments,
		blocked: slotWait{drainAfter: c.cfg.Drain},
		maxRx:   maxFrame,
		virt:    &virtPair{memory: newVirtMemory(nil)},
	}
	q.stats = &q.own
	v := q.virt
	v.rx.kind, v.tx.kind = onKickRx, onKickTx
	v.rx.detach()
	v.tx.detach()
	v.setFeatures(0)
	q.coalescer.what, q.coalescer.paused = c.cfg.Coalesce, c.cfg.Paused
	if c.cfg.VnetHdr {
		q.vnetLen = tap.VnetHdrLen
	}
	q.reader = tapReader{tap: t, vnetLen: q.vnetLen, readLen: q.vnetLen + maxFrame}
	q.reader.resize(maxFramePages)
	q.backlog.vif = &c.waiting
	return q
}
