// SPDX-License-Identifier: Apache-2.0

package blkengine

import (
	"errors"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/blkplane"
	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/internal/disk"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Engine makes links.
type Engine interface {
	// Open makes the link of a vbd. It does not wait.
	Open(cfg LinkConfig) Link
}

// LinkConfig describes the vbd of a link.
type LinkConfig struct {
	Domid xen.Domid
	Name  string // of the vbd
	Log   *zap.Logger

	Turn   *budget.Turn    // of the goroutine that calls the link, which holds it
	Memory *blkplane.Guest // of the domain; nil: each connection has its own
}

// Link is the engine's part of a vbd. Its methods belong to the goroutine of the vbd.
type Link interface {
	// Connect opens the devices, maps the rings and binds the channels of a frontend, and
	// reads the journals. It serves nothing; see [blkplane.Pool.Connect].
	Connect(cfg *Config) (Conn, error)

	// RingStamp returns the stamp in a ring page of the guest, which need not belong to a
	// connection.
	RingStamp(ref xen.Gref) (xen.Stamp, error)

	// End ends the link. Connections that have not ended yet end as if it existed.
	End()
}

// Config describes a connection.
type Config struct {
	Protocol    blkif.Protocol
	Disk        *disk.Disk // its owner closes it after [Conn.Done]
	ReadOnly    bool       // every operation but reads is refused
	MaxSegments int        // as published in feature-max-indirect-segments; 0: no indirect requests
	Persistent  bool       // both ends published feature-persistent
	NoDiscard   bool       // discards are refused although the disk has them
	Weight      int        // 0: 1

	Queues []blkplane.QueueConfig

	// Group is the group of vbds that share a disk process, if the toolstack names one.
	Group string

	// Notice is called for events of the connection that the vbd must act on, from other
	// goroutines. It must not block.
	Notice func(blkplane.Notice)
	// Died is called from another goroutine when the process of the connection has ended. It
	// must not block. Operations at the disk may still be under way: they end before the lock
	// of the disk can be taken again.
	Died func(error)
}

// Conn is a connection of a frontend. Its methods may be called from any goroutine.
type Conn interface {
	// Adopted reports whether the rings were served by a predecessor.
	Adopted() bool
	// Start starts to serve.
	Start()
	// Drain makes all queues consume no more requests, and returns a channel that is closed
	// when they have answered all that they had consumed; see [blkplane.Conn.Drain].
	Drain() <-chan struct{}
	// Close makes the queues end, with what they have under way; see [blkplane.Conn.Close].
	Close()
	// Done is closed when all queues have ended after Close: the disk is not used any more.
	Done() <-chan struct{}
	// SetWeight sets the weight of the vbd; see [blkplane.Conn.SetWeight].
	SetWeight(n int)
	// Resize sets the size of the disk in sectors of 512 bytes, as the frontend is told.
	Resize(sectors uint64)
	// Queues returns the number of queues.
	Queues() int
	// Counters returns the counters of queue i, also after the end. It does not wait.
	Counters(i int) [blkplane.NumCounters]uint64
	// Status returns a snapshot of queue i. It does not wait.
	Status(i int) blkplane.QueueStatus
}

// ErrDied is returned if the disk process of a link has ended, or is not running at the moment.
// The vbd tries again.
var ErrDied = errors.New("the disk process does not run")
