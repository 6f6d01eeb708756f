// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"time"

	"github.com/netbackd/netbackd/internal/ctrlserver"
)

// Options are the settings that all vifs of a daemon share.
type Options struct {
	// MaxQueues is the number of queues that a frontend may have.
	MaxQueues int
	// Offload makes TAPs with vnet headers, so that partial checksums and packets to
	// be segmented pass between guest and host.
	Offload bool
	// RunDir is the directory of journals and records. No other daemon may use it. If
	// it is empty, a successor knows only the contents of xenstore and the TAP.
	RunDir string
	// Drain and Stall are passed to dataplane.Config. Grace is the time that a
	// frontend has to close after the toolstack has asked for it. 0 means the default.
	Drain, Stall, Grace time.Duration
	// ControlRings are the control ring protocols that a vif offers, unless the
	// toolstack chooses others for it.
	ControlRings ctrlserver.Protocols
	// Coalesce merges packets of a guest without segmentation offload on their way to a
	// TAP that has vnet headers.
	Coalesce bool
	// StaticGrants is the number of pages that a queue keeps mapped if its
	// frontend asks for it; 0: none.
	StaticGrants int
	// NoBPF is the error with which the kernel refuses steering programs; nil: it
	// accepts them.
	NoBPF error
}
