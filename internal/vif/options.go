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
	// Offload makes TAPs with vnet headers, so that checksums and segmentation
	// are left to who needs them.
	Offload bool
	// RunDir is the directory of journals and records, which no other daemon may
	// use. If it is empty, a successor learns nothing that neither xenstore nor the
	// TAP tells.
	RunDir string
	// Drain and Stall are those of dataplane.Config. Grace is the time that a
	// frontend has to close after the toolstack has asked for it. 0 is the default.
	Drain, Stall, Grace time.Duration
	// ControlRings are the control ring protocols that a vif offers, unless the
	// toolstack chooses others for it.
	ControlRings ctrlserver.Protocols
	// StaticGrants is the number of pages that a queue keeps mapped if its
	// frontend asks for it; 0: none.
	StaticGrants int
	// NoBPF tells why the kernel takes no steering program; nil: it does.
	NoBPF error
}
