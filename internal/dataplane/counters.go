// SPDX-License-Identifier: Apache-2.0

package dataplane

import "sync/atomic"

// Counter is the number of a counter of a queue. [Counters] describes them all.
type Counter uint8

// Counters of a queue. As the guest sees it, tx is guest to host and rx host to guest.
const (
	TxPackets Counter = iota
	TxBytes
	TxSlots
	TxGSO
	TxMerged
	TxCoalesced
	RxPackets
	RxBytes
	RxSlots
	RxGSO
	RxHash
	RxXDP
	RxXDPSplit
	RxSteered
	RxMoved
	RxUnordered
	CsumCompleted
	Segmented
	RateWaits
	McastChanges
	RxParked

	Wakes
	SpuriousWakes
	Syscalls
	GrantCalls
	GrantOps
	GrantOwnOps
	StaticHits
	StaticMisses
	Notifies
	EventCalls
	TapWriteCalls
	TapReadCalls
	Polls
	SlowCopies
	HostSegments
	WorkerNS
	Rests
	WorkerMoves

	DropTxSlots
	DropTxSize
	DropTxShort
	DropTxCross
	DropTxGSO
	DropTxGSOSmall
	DropTxSegments
	DropTxGrant
	DropTxCsum
	DropTxTooBig
	DropTxDisabled
	DropTxTapDown
	DropTxTapFull
	DropTxTapRefused
	DropMcastFull
	DropRxMcast
	DropRxSize
	DropRxGrant
	DropRxReadOnly
	DropRxCsum
	DropRxBacklog
	DropRxMemory
	DropRxStalled

	NumCounters
)

// notDropped is the drop reason of a packet that is not dropped. It is not the number
// of a drop.
const notDropped Counter = 0

// coalesced is the drop reason of a packet that is written as a part of the one before it.
const coalesced = NumCounters

// Kind groups counters by their readers.
type Kind uint8

// Kinds of counter.
const (
	Traffic Kind = iota // packets and their offloads
	Work                // cost for the host
	Drop                // packets that were not delivered, by reason
)

// CounterInfo describes a counter.
type CounterInfo struct {
	Name string // as in JSON and metrics; a drop's name is its reason
	Kind Kind
	Help string
}

// Counters describes every [Counter], by its number.
var Counters = [NumCounters]CounterInfo{
	TxPackets:     {"tx_packets", Traffic, "packets from the guest written to the TAP"},
	TxBytes:       {"tx_bytes", Traffic, "bytes of those packets"},
	TxSlots:       {"tx_slots", Traffic, "tx ring slots answered, or chains of a virtqueue used"},
	TxGSO:         {"tx_gso", Traffic, "packets from the guest of several segments each"},
	TxMerged:      {"tx_merged", Traffic, "GSO packets for the TAP that were made of several packets from the guest"},
	TxCoalesced:   {"tx_coalesced", Traffic, "packets from the guest that are part of those"},
	RxPackets:     {"rx_packets", Traffic, "packets delivered to the guest"},
	RxBytes:       {"rx_bytes", Traffic, "bytes of those packets"},
	RxSlots:       {"rx_slots", Traffic, "rx ring slots answered, or chains of a virtqueue used"},
	RxGSO:         {"rx_gso", Traffic, "packets to the guest of several segments each"},
	RxHash:        {"rx_hash", Traffic, "packets to the guest that carried a hash extra"},
	RxXDP:         {"rx_xdp", Traffic, "packets to the guest with headroom for its XDP program"},
	RxXDPSplit:    {"rx_xdp_split", Traffic, "of those, in several slots, which Linux drops while a program is attached"},
	RxSteered:     {"rx_steered", Traffic, "packets to the guest that were read from the TAP queue of another guest queue"},
	RxMoved:       {"rx_moved", Traffic, "packets to the guest that were set aside until their predecessors on another queue were published"},
	RxUnordered:   {"rx_unordered", Traffic, "of those, published before their predecessors, because the guest did not empty the other queue in time"},
	CsumCompleted: {"csum_completed", Traffic, "partial checksums completed in software"},
	Segmented:     {"segmented", Traffic, "frames cut into segments in software"},
	RateWaits:     {"rate_waits", Traffic, "waits of the guest for the rate limit"},
	McastChanges:  {"mcast_changes", Traffic, "changes of the multicast list"},
	RxParked:      {"rx_parked", Traffic, "packets that waited for rx slots"},

	Wakes:         {"wakes", Work, "event channel events, or kicks of virtqueues, handled"},
	SpuriousWakes: {"spurious_wakes", Work, "events that brought no work"},
	Syscalls:      {"syscalls", Work, "system calls made for this queue"},
	GrantCalls:    {"grant_calls", Work, "grant copy calls"},
	GrantOps:      {"grant_ops", Work, "segments in those calls"},
	GrantOwnOps:   {"grant_own_ops", Work, "of those, from or to a page that this domain has granted to itself"},
	StaticHits:    {"static_hits", Work, "slots whose page is a static grant, which take no grant operation"},
	StaticMisses:  {"static_misses", Work, "slots that were copied although the queue has static grants"},
	Notifies:      {"notifies", Work, "events sent to the guest"},
	EventCalls:    {"event_calls", Work, "calls that read or unmasked event channels, or read kicks, and did nothing else"},
	TapWriteCalls: {"tap_write_calls", Work, "calls that wrote packets to the TAP"},
	TapReadCalls:  {"tap_read_calls", Work, "calls that read packets from the TAP"},
	Polls:         {"polls", Work, "waits of the worker for events before turns of this queue; they are not in syscalls"},
	SlowCopies:    {"slow_copies", Work, "grant copies that blocked a thread, because the guest's memory was paged out or shared"},
	HostSegments:  {"host_segments", Work, "segments of GSO packets from the guest"},
	WorkerNS:      {"worker_ns", Work, "time of the worker's thread for this queue in nanoseconds, while several vifs share the worker"},
	Rests:         {"rests", Work, "waits of the vif after a turn that delayed other vifs"},
	WorkerMoves:   {"worker_moves", Work, "moves of the queue from a worker that was busier to another one"},

	DropTxSlots:      {"tx_too_many_slots", Drop, "packet from the guest in more than 19 data slots"},
	DropTxSize:       {"tx_size_mismatch", Drop, "slots from the guest add up to more than the packet"},
	DropTxShort:      {"tx_too_short", Drop, "first slot, or chain, from the guest holds less than an Ethernet header"},
	DropTxCross:      {"tx_cross_page", Drop, "slot from the guest reaches beyond its page"},
	DropTxGSO:        {"tx_bad_gso", Drop, "GSO extra or vnet header from the guest that does not fit the packet"},
	DropTxGSOSmall:   {"tx_gso_too_small", Drop, "packet from the guest that asks for segments of less than 8 bytes"},
	DropTxSegments:   {"tx_too_many_segments", Drop, "packet from the guest that would be cut into more than 2048 segments"},
	DropTxGrant:      {"tx_grant", Drop, "a page of the guest's packet could not be copied"},
	DropTxCsum:       {"tx_bad_csum", Drop, "partial checksum from the guest that cannot be completed, as in a packet that is not TCP or UDP"},
	DropTxTooBig:     {"tx_too_big", Drop, "packet from the guest, in a virtqueue, that is bigger than a frame can be"},
	DropTxDisabled:   {"tx_disabled", Drop, "packet from the guest in a virtqueue that is disabled"},
	DropTxTapDown:    {"tx_tap_down", Drop, "TAP is down"},
	DropTxTapFull:    {"tx_tap_full", Drop, "TAP takes no more"},
	DropTxTapRefused: {"tx_tap_refused", Drop, "TAP refused the frame"},
	DropMcastFull:    {"mcast_full", Drop, "multicast list is full or the request is not valid"},
	DropRxMcast:      {"rx_mcast_filtered", Drop, "multicast packet for an address that is not in the guest's list"},
	DropRxSize:       {"rx_too_big", Drop, "packet is bigger than the guest can take"},
	DropRxGrant:      {"rx_grant", Drop, "a page of the guest could not be written"},
	DropRxReadOnly:   {"rx_readonly", Drop, "rx slot that names a read-only static grant"},
	DropRxCsum:       {"rx_bad_offload", Drop, "packet for the guest requests an offload that is not possible"},
	DropRxBacklog:    {"rx_backlog", Drop, "no memory for packets that wait for rx slots"},
	DropRxMemory:     {"rx_memory", Drop, "the memory budget for packets that wait is used up"},
	DropRxStalled:    {"rx_stalled", Drop, "guest posted no rx slots for too long"},
}

func (c Counter) String() string { return Counters[c].Name }

// tally collects the counts of one pass. It belongs to the worker.
type tally [NumCounters]uint32

// Stats are the counters of one queue. The worker adds to them once per pass; any
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
			s.n[i].Add(uint64(t[i]))
			t[i] = 0
		}
	}
}
