// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"time"

	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/vhostuser"
	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// VirtConfig configures a device of vhost-user.
type VirtConfig struct {
	VnetHdr bool     // the TAP has vnet headers of tap.VnetHdrLen bytes
	Limiter *Limiter // rate limit from guest to host; nil: none

	Drain time.Duration // 0: DefaultDrain
	Stall time.Duration // 0: DefaultStall

	// Notice is called from a worker for events that the owner of the device must act
	// on. It must not block. Queue is the number of the pair.
	Notice func(Notice)

	// Pairs are the pairs of rings that the device can have. Ring 2*i is for packets to
	// the guest, ring 2*i+1 for packets from it.
	Pairs []VirtPair
}

// VirtPair is one pair of rings.
type VirtPair struct {
	Tap *tap.Queue
}

// VirtConn is a device of vhost-user. Its methods carry out what [vhostuser.Handler] asks
// for: each waits until the workers have done it. They belong to one goroutine at a time,
// except for Stats, State and Queues, which any may call.
//
// Packets go to the TAP queue of their pair. The host chooses among the queues that are
// attached to the TAP, so its owner attaches those of enabled pairs only.
type VirtConn struct {
	c *Conn
}

// VirtState is a snapshot of a pair.
type VirtState struct {
	Rx, Tx       VirtRingState // to the guest, from the guest
	Backlog      int           // packets that wait for buffers
	BacklogBytes int           // bytes of memory that they take
	Stalled      bool
	RateWaiting  bool
	Uring        bool // TAP batches go through io_uring
	Worker       int
}

// VirtRingState is a snapshot of a ring.
type VirtRingState struct {
	Started   bool // the front end has started it
	Live      bool // it was kicked since then
	Enabled   bool
	Packed    bool
	Size      int    // descriptors
	Base      uint32 // as GET_VRING_BASE returns it
	Available int    // chains, or descriptors of a packed ring, that were seen and not used
	Err       error  // the rule that the driver broke; nil: none
}

// OpenVirt makes a device without memory, whose rings are all stopped. It serves nothing
// until StartRing.
func (p *Pool) OpenVirt(cfg VirtConfig) (*VirtConn, error) {
	c := newVirtConn(cfg)
	if err := p.serve(c); err != nil {
		return nil, err
	}
	return &VirtConn{c: c}, nil
}

// Close stops serving the device. When it returns no worker uses its memory, its
// descriptors or its TAP queues. It may be called again.
func (v *VirtConn) Close() { v.c.Close() }

// Queues returns the number of pairs.
func (v *VirtConn) Queues() int { return v.c.Queues() }

// Stats returns the counters of a pair. They stay readable after Close.
func (v *VirtConn) Stats(pair int) *Stats { return v.c.Stats(pair) }

// SetFeatures sets the virtio features that the front end accepted.
func (v *VirtConn) SetFeatures(features uint64) error {
	return v.each(func(*Queue) error { return nil })
}

// SetMemory replaces the memory of the device and the parts of the rings that are started.
// When it returns the old memory is not used.
func (v *VirtConn) SetMemory(t *vhostuser.Table, rings []vhostuser.Ring) error {
	return v.each(func(*Queue) error { return nil })
}

// StartRing serves a ring from its first kick on.
func (v *VirtConn) StartRing(r vhostuser.Ring, t *vhostuser.Table, log *virtqueue.Log) error {
	return v.each(func(*Queue) error { return nil })
}

// UpdateRing changes the descriptors of a ring that is started, whether it is enabled, and
// what it records in the log. When it returns the old descriptors are not used.
func (v *VirtConn) UpdateRing(r vhostuser.Ring) error {
	return v.each(func(*Queue) error { return nil })
}

// StopRing ends the use of a ring and returns its base.
func (v *VirtConn) StopRing(index int) (base uint32, err error) {
	return 0, v.each(func(*Queue) error { return nil })
}

// SetLog replaces the log of dirty pages; nil ends it. When it returns the old one is not
// used.
func (v *VirtConn) SetLog(l *virtqueue.Log) error {
	return v.each(func(*Queue) error { return nil })
}

// State returns a snapshot of a pair, taken by its worker; after Close, the zero value.
func (v *VirtConn) State(pair int) VirtState { return VirtState{} }

// each makes the worker of each pair run f.
func (v *VirtConn) each(f func(*Queue) error) error {
	for _, q := range v.c.queues {
		if err := q.call(func() error { return f(q) }); err != nil {
			return err
		}
	}
	return nil
}
