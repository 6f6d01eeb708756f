// SPDX-License-Identifier: Apache-2.0

package vbd

import (
	"time"

	"github.com/netbackd/netbackd/internal/disk"
)

// Options are the settings that all vbds of a daemon share.
type Options struct {
	// MaxQueues is the number of queues that a frontend may have, MaxOrder the binary
	// logarithm of the pages of each ring.
	MaxQueues, MaxOrder int
	// MaxSegments is the number of segments that an indirect request may have. If it is
	// not above that of other requests, indirect requests are not offered.
	MaxSegments int
	// Persistent lets frontends keep their pages granted, so that they are mapped once.
	Persistent bool
	// Cache is the use of the host's page cache.
	Cache disk.Cache
	// RunDir is the directory of journals and records. No other daemon may use it. If it is
	// empty, a successor cannot continue connections.
	RunDir string
	// Drain bounds the wait for requests in flight when a connection ends. Grace is the
	// time that a connected frontend has to close after the toolstack has asked for it.
	// Poll is the time between two looks at the size of a disk. 0 means the default.
	Drain, Grace, Poll time.Duration
}

// Defaults of Options. libxl waits 10 s for the end of a device; Grace and Drain together
// take less.
const (
	DefaultMaxOrder = 4
	DefaultDrain    = 5 * time.Second
	DefaultGrace    = 3 * time.Second
	DefaultPoll     = time.Second
)

// withDefaults returns o with the defaults in place of zeros.
func (o Options) withDefaults() Options {
	set := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	set(&o.Drain, DefaultDrain)
	set(&o.Grace, DefaultGrace)
	set(&o.Poll, DefaultPoll)
	o.MaxQueues = max(o.MaxQueues, 1)
	return o
}
