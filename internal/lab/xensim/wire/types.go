// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"time"

	"github.com/netbackd/netbackd/pkg/xen"
)

// DomainConfig describes a domain to make. The zero value makes one with xl's defaults.
type DomainConfig struct {
	// Name is shown in lists; it need not be unique.
	Name string `json:"name,omitempty"`
	// Pages is the domain's memory in pages of 4 KiB, the grant table's frames
	// not counted. Memory costs nothing until it is used. 0 means 16384.
	Pages int `json:"pages,omitempty"`
	// VCPUs is the number of vcpus that the toolstack lists. 0 means 4.
	VCPUs int `json:"vcpus,omitempty"`
	// MaxGrantFrames bounds the grant table: 512 grant references a frame.
	// 0 means 64, Xen's default (gnttab_max_frames).
	MaxGrantFrames int `json:"max_grant_frames,omitempty"`
	// MaxMaptrackFrames bounds the number of grants of other domains that the
	// domain can map: 256 a frame. 0 means 1024, Xen's default.
	MaxMaptrackFrames int `json:"max_maptrack_frames,omitempty"`
	// MaxEventChannels is the highest port the domain may use. 0 means 1023,
	// libxl's default (max_event_channels).
	MaxEventChannels int `json:"max_event_channels,omitempty"`
	// GntallocLimit is xen_gntalloc.limit of the domain's Linux: the number of
	// pages that all users of gntalloc together may grant. 0 means 1024.
	GntallocLimit int `json:"gntalloc_limit,omitempty"`
	// Paused leaves the domain paused, as xl does until its devices are there.
	Paused bool `json:"paused,omitempty"`
}

// DomainInfo is a domain as seen by the toolstack.
type DomainInfo struct {
	Domid  xen.Domid `json:"domid"`
	Name   string    `json:"name,omitempty"`
	Paused bool      `json:"paused,omitempty"`
	// Shutdown: the domain has stopped by itself and waits to be destroyed.
	Shutdown bool `json:"shutdown,omitempty"`
	// Dying: the domain was destroyed, but others still hold pages of it: it
	// is the zombie that xl list shows as (null).
	Dying bool `json:"dying,omitempty"`

	Pages       int `json:"pages"`        // without the grant table
	GrantFrames int `json:"grant_frames"` // of the grant table, at present

	// GrantsInUse is the number of the domain's grant references that a domain
	// has mapped or is copying; Pins counts every use.
	GrantsInUse int `json:"grants_in_use"`
	Pins        int `json:"pins"`
	// Maps is the number of grants of other domains that this one has mapped.
	Maps int `json:"maps"`
	// Ports is the number of event channels that are not free; Interdomain is the
	// number of connected ones.
	Ports       int `json:"ports"`
	Interdomain int `json:"interdomain"`

	Counters Counters `json:"counters"`
}

// Counters counts a domain's operations and the uses of its grants since its creation.
type Counters struct {
	// Hypercalls this domain made, each operation of a batch on its own.

	GrantMaps       uint64 `json:"grant_maps"`
	GrantUnmaps     uint64 `json:"grant_unmaps"`
	GrantCopyCalls  uint64 `json:"grant_copy_calls"` // hypercalls, of at most 16 operations
	GrantCopyOps    uint64 `json:"grant_copy_ops"`   // a segment counts once for each local page that it touches
	GrantCopyBytes  uint64 `json:"grant_copy_bytes"`
	GrantFailures   uint64 `json:"grant_failures"` // maps and copies that got a status other than okay
	EventBinds      uint64 `json:"event_binds"`
	EventCloses     uint64 `json:"event_closes"`
	EventSends      uint64 `json:"event_sends"`
	SetupTableCalls uint64 `json:"setup_table_calls"`
	EventsDelivered uint64 `json:"events_delivered"` // to this domain's processes
	EventsCoalesced uint64 `json:"events_coalesced"` // arrived while one was pending
	EventsDropped   uint64 `json:"events_dropped"`   // sent by this domain to an unconnected port
	GrantedMaps     uint64 `json:"granted_maps"`     // by others, of this domain's grants
	GrantedUnmaps   uint64 `json:"granted_unmaps"`   //
	GrantedCopies   uint64 `json:"granted_copies"`   //
}

// GrantOps returns the number of the domain's grant operations as a backend. A data path
// on static grants makes none.
func (c Counters) GrantOps() uint64 { return c.GrantMaps + c.GrantUnmaps + c.GrantCopyOps }

// FaultOp selects the operations that a Fault affects.
type FaultOp string

// The operations.
const (
	FaultCopy FaultOp = "copy"
	FaultMap  FaultOp = "map"
	// FaultCall affects copy calls that copy Ref. They fail as a whole although
	// segments may have been copied. Status is a negative errno.
	FaultCall FaultOp = "call"
)

// AnyRef in a Fault means every grant reference.
const AnyRef = ^xen.Gref(0)

// Fault makes operations on a domain's grants fail, for tests.
type Fault struct {
	Op  FaultOp  `json:"op"`
	Ref xen.Gref `json:"ref"` // or AnyRef
	// Status is the GNTST value of the outcome; 0 lets the operation continue
	// after the delay. GNTST_eagain (-12) is retried for about 32 s in all, as
	// the kernel does.
	Status int16 `json:"status,omitempty"`
	// Delay is the time the operation takes. A grant is in use meanwhile when
	// Status is 0.
	Delay time.Duration `json:"delay,omitempty"`
	// Count is the number of operations that fail, 0 for all until the faults are
	// cleared.
	Count int `json:"count,omitempty"`
}
