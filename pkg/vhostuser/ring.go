// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// Ring is a ring as its handler gets it. The memory is valid until [Handler.StopRing] or
// the next [Handler.SetMemory] has returned. The descriptors stay the session's and are
// replaced only by [Handler.UpdateRing], after which the old ones are closed.
type Ring struct {
	Index  int
	Size   int
	Base   uint32 // for [virtqueue.Config]
	Packed bool
	// Features are those that the front end accepted.
	Features uint64
	// Desc, Avail and Used are the parts of the ring. Those of a packed one are the
	// descriptors and the event suppression of driver and device.
	Desc, Avail, Used Part
	// LogRing says that writes to the ring belong in the log, at LogAddr.
	LogRing bool
	LogAddr uint64
	// Inflight is the ring's part of the inflight region, nil if there is none.
	Inflight []byte
	// Enabled: a ring that is not discards what the guest sends, and gives it nothing.
	Enabled bool
	// Kick is readable when there are chains. Serve the ring from the first time on, or,
	// if Kick is -1, poll it. Call, -1 if there is none, is for [Signal].
	Kick, Call int
	// Err is for Signal if the ring is broken; -1 if there is none.
	Err int
}

// SplitRings returns the parts for a queue.
func (r *Ring) SplitRings() virtqueue.SplitRings {
	return virtqueue.SplitRings{Desc: r.Desc.Mem, Avail: r.Avail.Mem, Used: r.Used.Mem}
}

// PackedRings returns the parts for a queue.
func (r *Ring) PackedRings() virtqueue.PackedRings {
	return virtqueue.PackedRings{Desc: r.Desc.Mem, Driver: r.Avail.Mem, Device: r.Used.Mem}
}

// Config returns the configuration for a queue. If the table has regions of
// [KindGrantCopy], set its Fetcher to one of [NewFetcher].
func (r *Ring) Config(m *Table) virtqueue.Config {
	return virtqueue.Config{
		Size: r.Size, Memory: m.Memory(), Base: r.Base, Inflight: r.Inflight,
		EventIdx: r.Features&featureEventIdx != 0,
		Indirect: r.Features&featureIndirect != 0,
		InOrder:  r.Features&featureInOrder != 0,
	}
}

// Logging returns what a queue records in l, which is nil while nothing is recorded.
func (r *Ring) Logging(l *virtqueue.Log) virtqueue.Logging {
	if l == nil || r.Features&featureLogAll == 0 {
		return virtqueue.Logging{}
	}
	out := virtqueue.Logging{Log: l, Ring: r.LogRing, RingAddr: r.LogAddr}
	if r.Packed {
		// The one address of the message is that of the smallest part, which is not
		// where a packed ring is written.
		out.RingAddr, out.EventAddr = r.Desc.Guest, r.Used.Guest
	}
	return out
}

// find looks the parts of the ring up in a table.
func (r *Ring) find(t *Table, a VringAddr) error {
	if t == nil {
		return ErrAddress
	}
	n := uint64(r.Size)
	desc, avail, used := 16*n, 4+2*n, 4+8*n
	if r.Features&featureEventIdx != 0 {
		avail, used = avail+2, used+2
	}
	if r.Packed {
		avail, used = 4, 4
	}
	for _, p := range []struct {
		part    *Part
		addr, n uint64
		name    string
	}{{&r.Desc, a.Descriptor, desc, "descriptors"}, {&r.Avail, a.Available, avail, "available ring"}, {&r.Used, a.Used, used, "used ring"}} {
		part, err := t.Find(p.addr, p.n)
		if err != nil {
			return errors.Join(fmt.Errorf("%s of ring %d: %w", p.name, r.Index, err), r.release())
		}
		*p.part = part
	}
	return nil
}

// release unmaps what was mapped for the ring alone.
func (r *Ring) release() error {
	return errors.Join(r.Desc.release(), r.Avail.release(), r.Used.release())
}

// Signal notifies the other side through the descriptor of a [Ring]: Call or Err. It does
// nothing if fd is -1, and nothing more if a notification is pending already.
func Signal(fd int) error {
	if fd < 0 {
		return nil
	}
	one := [8]byte{}
	native.PutUint64(one[:], 1)
	for {
		switch _, err := unix.Write(fd, one[:]); err {
		case unix.EINTR:
		case unix.EAGAIN:
			return nil
		default:
			return err
		}
	}
}

// checkEvent checks that a descriptor can be one of events: an eventfd, a pipe or a
// socket. Reads and writes of it do not block from then on, unless the other side, which has
// the same open file, changes that.
func checkEvent(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case 0, unix.S_IFIFO, unix.S_IFSOCK: // an eventfd has no type
		return unix.SetNonblock(fd, true)
	}
	return ErrEvent
}
