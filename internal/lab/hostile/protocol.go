// SPDX-License-Identifier: Apache-2.0

package hostile

import (
	"time"

	"github.com/netbackd/netbackd/pkg/xen"
)

// Vif names a vif or a vbd of a guest.
type Vif struct {
	Domid xen.Domid `json:"domid"`
	Devid int       `json:"devid"`
}

// JoinArgs are the arguments of join: vifs whose frontends the process plays from now on.
type JoinArgs struct {
	Xen  string `json:"xen"` // directory of the embedded Xen
	Vifs []Vif  `json:"vifs"`
	// Sockets are those of devices of vhost-user, in place of vifs.
	Sockets []string `json:"sockets,omitempty"`
	Queues  int      `json:"queues"` // of each vif
	// Disks are vbds, in place of vifs. Persistent asks for persistent grants of them.
	Disks      []Vif `json:"disks,omitempty"`
	Persistent bool  `json:"persistent,omitempty"`
	// Buffers has the process keep the rx rings full. Else they are empty, but for one slot
	// each second.
	Buffers bool `json:"buffers"`
}

// Kind names a load.
type Kind string

// The loads. Those on tx rings send to [LoadArgs.Dst], on all queues of all vifs.
const (
	Bulk      Kind = "bulk"      // packets of 1514 bytes: the honest peer
	Flood     Kind = "flood"     // packets of 60 bytes
	Segments  Kind = "segments"  // packets with the least segment size that a backend takes
	Fragments Kind = "fragments" // packets in 18 slots of a few bytes
	Sink      Kind = "sink"      // nothing but to take packets
	Starve    Kind = "starve"    // nothing, and no rx slots
	Drip      Kind = "drip"      // nothing, and rx slots one by one, each with an event
	Control   Kind = "control"   // messages on the control rings
	Static    Kind = "static"    // static grants added and removed, over the control rings
	Events    Kind = "events"    // events without work
	Xenstore  Kind = "xenstore"  // writes to the frontends' directories
	Reconnect Kind = "reconnect" // connections that end as soon as they are complete
	Host      Kind = "host"      // packets from the host to an interface
)

// The loads on devices of vhost-user.
const (
	VirtBulk      Kind = "virt-bulk"      // packets of 1514 bytes: the honest peer
	VirtFlood     Kind = "virt-flood"     // packets of 60 bytes, a descriptor each
	VirtTiny      Kind = "virt-tiny"      // the same with a descriptor for each byte
	VirtIndirect  Kind = "virt-indirect"  // the longest indirect tables, with a byte for each descriptor
	VirtKicks     Kind = "virt-kicks"     // kicks without work
	VirtReconnect Kind = "virt-reconnect" // sessions that end as soon as they have begun
)

// The loads on disks, on all queues.
const (
	DiskReads   Kind = "disk-reads"   // reads of 128 KiB: the honest peer
	DiskWrites  Kind = "disk-writes"  // writes of 1 MiB
	DiskRandom  Kind = "disk-random"  // reads and writes of 4 KiB
	DiskBad     Kind = "disk-bad"     // requests that are refused
	DiskFlush   Kind = "disk-flush"   // flushes
	DiskDiscard Kind = "disk-discard" // discards of 1 MiB
	DiskChurn   Kind = "disk-churn"   // reads and writes of 4 KiB by more persistent grants than a backend keeps
)

// LoadArgs are the arguments of begin.
type LoadArgs struct {
	Load Kind `json:"load"`
	// Dst are the Ethernet addresses that packets go to, in turn.
	Dst []string `json:"dst,omitempty"`
	// Rate bounds the load: packets, messages, events, writes or connections per second, of
	// all vifs together. 0 means no bound.
	Rate float64 `json:"rate,omitempty"`
	// Interface gets the packets of Host.
	Interface string `json:"interface,omitempty"`
}

// Strength is the measured strength of a load.
type Strength struct {
	Took     time.Duration `json:"took_ns"`
	Done     uint64        `json:"done"`     // what Rate bounds, as far as it is answered or sent
	Slots    uint64        `json:"slots"`    // answered
	Notified uint64        `json:"notified"` // events sent
	Looks    uint64        `json:"looks"`    // at rings
	Empty    uint64        `json:"empty"`    // looks that found a ring empty: the load was too weak
	Failed   uint64        `json:"failed"`   // of those done, answered with an error
}

// add adds the strength of another part of the same load.
func (s *Strength) add(o Strength) {
	s.Done += o.Done
	s.Slots += o.Slots
	s.Notified += o.Notified
	s.Looks += o.Looks
	s.Empty += o.Empty
	s.Failed += o.Failed
}

// PerSecond returns the rate of what was done.
func (s Strength) PerSecond() float64 { return float64(s.Done) / max(s.Took.Seconds(), 1e-9) }

// SlotRate returns the slots answered per second.
func (s Strength) SlotRate() float64 { return float64(s.Slots) / max(s.Took.Seconds(), 1e-9) }
