// SPDX-License-Identifier: Apache-2.0

package blkguest

import (
	"github.com/netbackd/netbackd/internal/lab/blkfront"
	"github.com/netbackd/netbackd/internal/lab/diskcheck"
	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// This file has the types of the protocol: arguments and results of each command.

// Hello is the result in the agent's first line.
type Hello struct {
	PID int `json:"pid"`
}

// DiskArgs names a disk; empty means the first one.
type DiskArgs struct {
	Disk string `json:"disk,omitempty"`
}

// ConnectArgs are the arguments of commands that connect again. Front replaces the
// configuration, if it is not nil.
type ConnectArgs struct {
	DiskArgs
	Front *blkfront.Config `json:"front,omitempty"`
}

// Info describes a disk.
type Info struct {
	Name        string          `json:"name"`
	State       xenbus.State    `json:"state"`
	Backend     xenbus.State    `json:"backend"`
	Queues      int             `json:"queues"`
	Slots       int             `json:"slots"` // of each ring
	MaxSegments int             `json:"max_segments"`
	Persistent  bool            `json:"persistent"`
	Offers      blkfront.Offers `json:"offers"`
	Uncertain   int             `json:"uncertain"` // sectors of which several contents are right
}

// LoadArgs are the arguments of a load, which runs on all queues at once, each in its own
// part of the disk. Requests are those of each queue.
type LoadArgs struct {
	DiskArgs
	diskcheck.Load
}

// StatsResult holds the counters of a disk.
type StatsResult struct {
	Total blkfront.Stats `json:"total"` // of all connections
	// Queues are those of the present connection. They are counted at the end of a load.
	Queues     []blkfront.Stats `json:"queues"`
	Violations []string         `json:"violations,omitempty"`
}

// StateArgs are the arguments of state.
type StateArgs struct {
	DiskArgs
	State xenbus.State `json:"state"`
}

// KeyArgs are the arguments of key. Op is read, read-backend, write or remove.
type KeyArgs struct {
	DiskArgs
	Op    string `json:"op"`
	Key   string `json:"key"`
	Value string `json:"value,omitempty"`
}

// SizeArgs are the arguments of size: the number of sectors to wait for.
type SizeArgs struct {
	DiskArgs
	Sectors uint64 `json:"sectors"`
}

// RequestArgs is one request, on any queue, whose pages are the agent's.
type RequestArgs struct {
	DiskArgs
	Queue     int            `json:"queue,omitempty"`
	Op        blkif.Op       `json:"op"`
	Sector    uint64         `json:"sector"`
	NrSectors uint64         `json:"nr_sectors,omitempty"`
	Flag      uint8          `json:"flag,omitempty"`
	Indirect  bool           `json:"indirect,omitempty"`
	Segments  []SegmentArgs  `json:"segments,omitempty"`
	Raw       *blkif.Request `json:"raw,omitempty"` // in place of all others but Queue
}

// SegmentArgs is a segment: of a page with this content, or of any gref.
type SegmentArgs struct {
	Data  []byte   `json:"data,omitempty"`
	Gref  xen.Gref `json:"gref,omitempty"`
	First uint8    `json:"first"`
	Last  uint8    `json:"last"`
}

// RequestResult is the answer to a request, with the content of its pages after it.
type RequestResult struct {
	Op     blkif.Op     `json:"op"`
	Status blkif.Status `json:"status"`
	Pages  [][]byte     `json:"pages,omitempty"`
}

// CaseArgs names a case of package blkcases.
type CaseArgs struct {
	DiskArgs
	Case string `json:"case"`
}

// CaseResult says how a case went.
type CaseResult struct {
	Skipped bool   `json:"skipped,omitempty"` // the disk is of another kind
	Wrong   string `json:"wrong,omitempty"`   // empty: nothing
}

// CasesResult says how all cases went.
type CasesResult struct {
	Played  int      `json:"played"`
	Skipped int      `json:"skipped"` // the disk is of another kind, or the ring would stop
	Wrong   []string `json:"wrong,omitempty"`
}
