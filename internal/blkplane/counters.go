// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"sync/atomic"

	"github.com/netbackd/netbackd/pkg/blkif"
)

// Counter is the number of a counter of a queue. [Counters] describes them all.
type Counter uint8

// Counters of a queue.
const (
	Reads Counter = iota
	Writes
	Flushes
	Barriers
	Discards
	SecureDiscards
	Indirect
	Segments
	ReadBytes
	WriteBytes
	DiscardBytes
	OKs

	Batches
	Wakes
	SpuriousWakes
	Syscalls
	GrantCalls
	GrantOps
	Maps
	Unmaps
	MapHits
	Notifies
	NotifiesSaved
	DiskOps
	DiskShort
	Syncs
	FlushesShared
	BarrierWaits
	MemoryWaits
	DeviceWaits
	Readopted

	// Of requests that break a rule, by blkif.Reason: see refusal.
	firstRefusal
	lastRefusal = firstRefusal + Counter(blkif.Reasons) - 1 - Counter(blkif.ReasonUnknownOp)
)

// Counters of requests that fail although they keep to the rules.
const (
	ErrDisk Counter = lastRefusal + 1 + iota
	ErrShort
	ErrSync
	ErrDiscard

	NumCounters
)

// noError is the reason of a request that has not failed. It is not the number of an
// error.
const noError Counter = 0

// Kind groups counters by their readers.
type Kind uint8

// Kinds of counter.
const (
	Traffic Kind = iota // requests and bytes
	Work                // cost for the host
	Failure             // requests that were not answered with OKAY, by reason
)

// CounterInfo describes a counter.
type CounterInfo struct {
	Name string // as in JSON and metrics; a failure's name is its reason
	Kind Kind
	Help string
}

// Counters describes every [Counter], by its number.
var Counters = withRefusals([NumCounters]CounterInfo{
	Reads:          {"reads", Traffic, "read requests started"},
	Writes:         {"writes", Traffic, "write requests started"},
	Flushes:        {"flushes", Traffic, "flush requests started"},
	Barriers:       {"barriers", Traffic, "write barrier requests started"},
	Discards:       {"discards", Traffic, "discard requests started, secure ones not counted"},
	SecureDiscards: {"secure_discards", Traffic, "secure discard requests started"},
	Indirect:       {"indirect", Traffic, "of the reads and writes, those with indirect segments"},
	Segments:       {"segments", Traffic, "segments of reads, writes and barriers"},
	ReadBytes:      {"read_bytes", Traffic, "bytes of read requests that were answered with OKAY"},
	WriteBytes:     {"write_bytes", Traffic, "bytes of write requests that were answered with OKAY"},
	DiscardBytes:   {"discard_bytes", Traffic, "bytes of discard requests that were answered with OKAY"},
	OKs:            {"okay", Traffic, "requests answered with OKAY"},

	Batches:       {"batches", Work, "batches of requests consumed from the ring"},
	Wakes:         {"wakes", Work, "event channel events handled"},
	SpuriousWakes: {"spurious_wakes", Work, "events that brought no request"},
	Syscalls:      {"syscalls", Work, "system calls made for this queue"},
	GrantCalls:    {"grant_calls", Work, "grant copy calls"},
	GrantOps:      {"grant_ops", Work, "segments in those calls"},
	Maps:          {"maps", Work, "persistent grants mapped"},
	Unmaps:        {"unmaps", Work, "persistent grants unmapped"},
	MapHits:       {"map_hits", Work, "segments copied from or to a page that was mapped already"},
	Notifies:      {"notifies", Work, "events sent to the guest"},
	NotifiesSaved: {"notifies_saved", Work, "batches of responses for which the guest asked for no event"},
	DiskOps:       {"disk_ops", Work, "operations given to the disk"},
	DiskShort:     {"disk_short", Work, "operations that transferred a part and were continued"},
	Syncs:         {"syncs", Work, "flushes of the disk"},
	FlushesShared: {"flushes_shared", Work, "flush requests answered by a flush of the disk that another request began"},
	BarrierWaits:  {"barrier_waits", Work, "write barriers that waited for requests in flight"},
	MemoryWaits:   {"memory_waits", Work, "times that the queue had no memory for its next request"},
	DeviceWaits:   {"device_waits", Work, "times that the queue's next operation waited for its guest's share of a device that others use"},
	Readopted:     {"readopted", Work, "requests that a predecessor had consumed and not answered, started again"},

	ErrDisk:    {"disk_error", Failure, "the disk reported an error"},
	ErrShort:   {"disk_end", Failure, "the disk ended before the request: the file was truncated"},
	ErrSync:    {"flush_error", Failure, "the disk could not be flushed"},
	ErrDiscard: {"discard_error", Failure, "the disk could not discard"},
})

// withRefusals fills in the counters of all reasons.
func withRefusals(t [NumCounters]CounterInfo) [NumCounters]CounterInfo {
	for r := blkif.ReasonUnknownOp; int(r) < blkif.Reasons; r++ {
		t[refusal(r)] = CounterInfo{r.String(), Failure, "requests refused: " + r.Error()}
	}
	return t
}

// refusal returns the counter of requests that break a rule.
func refusal(r blkif.Reason) Counter { return firstRefusal + Counter(r-blkif.ReasonUnknownOp) }

func (c Counter) String() string { return Counters[c].Name }

// tally collects the counts of one turn. It belongs to the queue's thread.
type tally [NumCounters]uint64

// Stats are the counters of one queue. Its thread adds to them once per turn; any
// goroutine may read them.
type Stats struct{ n [NumCounters]atomic.Uint64 }

// Load returns one counter.
func (s *Stats) Load(c Counter) uint64 { return s.n[c].Load() }

// Snapshot returns all counters. They are not read at one instant.
func (s *Stats) Snapshot() (v [NumCounters]uint64) {
	for i := range v {
		v[i] = s.n[i].Load()
	}
	return v
}

// flush adds t to the counters and clears it.
func (s *Stats) flush(t *tally) {
	for i := range t {
		if t[i] != 0 {
			s.n[i].Add(t[i])
			t[i] = 0
		}
	}
}
