// SPDX-License-Identifier: Apache-2.0

package dataplane

import "sync/atomic"

// Counter numbers one thing that is counted per queue. [Counters] describes
// them; it is the only list.
type Counter uint8

// What is counted. "tx" is guest to host and "rx" host to guest, as the guest
// sees it.
const (
	TxPackets Counter = iota
	TxBytes
	TxSlots
	TxGSO
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
	StaticHits
	StaticMisses
	Notifies
	TapWriteCalls
	TapReadCalls
	SlowCopies
	HostSegments
	WorkerNS
	Rests

	DropTxSlots
	DropTxSize
	DropTxShort
	DropTxCross
	DropTxGSO
	DropTxGSOSmall
	DropTxSegments
	DropTxGrant
	DropTxCsum
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

// Kind tells the audiences of a counter apart.
type Kind uint8

// Kinds of counter.
const (
	Traffic Kind = iota // packets and what was done to them
	Work                // what they cost the host
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
	TxSlots:       {"tx_slots", Traffic, "tx ring slots answered"},
	TxGSO:         {"tx_gso", Traffic, "packets from the guest that carried a GSO extra"},
	RxPackets:     {"rx_packets", Traffic, "packets delivered to the guest"},
	RxBytes:       {"rx_bytes", Traffic, "bytes of those packets"},
	RxSlots:       {"rx_slots", Traffic, "rx ring slots answered"},
	RxGSO:         {"rx_gso", Traffic, "packets to the guest that carried a GSO extra"},
	RxHash:        {"rx_hash", Traffic, "packets to the guest that carried a hash extra"},
	RxXDP:         {"rx_xdp", Traffic, "packets to the guest with headroom for its XDP program"},
	RxXDPSplit:    {"rx_xdp_split", Traffic, "of those, in several slots, which Linux drops while a program is attached"},
	RxSteered:     {"rx_steered", Traffic, "packets to the guest that came on another TAP queue than theirs"},
	RxMoved:       {"rx_moved", Traffic, "packets to the guest that waited for those before them on another queue"},
	RxUnordered:   {"rx_unordered", Traffic, "of those, delivered although the guest had not taken all before them"},
	CsumCompleted: {"csum_completed", Traffic, "partial checksums finished in software"},
	Segmented:     {"segmented", Traffic, "frames cut into segments in software"},
	RateWaits:     {"rate_waits", Traffic, "times the rate limit made the guest wait"},
	McastChanges:  {"mcast_changes", Traffic, "multicast list requests honoured"},
	RxParked:      {"rx_parked", Traffic, "packets that waited for rx slots"},

	Wakes:         {"wakes", Work, "event channel events handled"},
	SpuriousWakes: {"spurious_wakes", Work, "events that brought no work"},
	Syscalls:      {"syscalls", Work, "system calls made for this queue"},
	GrantCalls:    {"grant_calls", Work, "grant copy calls"},
	GrantOps:      {"grant_ops", Work, "segments in those calls"},
	StaticHits:    {"static_hits", Work, "slots whose page is a static grant, which take no grant operation"},
	StaticMisses:  {"static_misses", Work, "slots that were copied although the queue has static grants"},
	Notifies:      {"notifies", Work, "events sent to the guest"},
	TapWriteCalls: {"tap_write_calls", Work, "calls that wrote packets to the TAP"},
	TapReadCalls:  {"tap_read_calls", Work, "calls that read packets from the TAP"},
	SlowCopies:    {"slow_copies", Work, "grant copies that held a worker's thread up, for the guest's memory was paged out or shared"},
	HostSegments:  {"host_segments", Work, "segments that GSO packets from the guest are to be cut into"},
	WorkerNS:      {"worker_ns", Work, "time of its worker's thread that the queue took, in nanoseconds, while several vifs share the worker"},
	Rests:         {"rests", Work, "times the vif had to wait since a turn took so long that others were held up"},

	DropTxSlots:      {"tx_too_many_slots", Drop, "packet from the guest in more than 19 data slots"},
	DropTxSize:       {"tx_size_mismatch", Drop, "slots from the guest add up to more than the packet"},
	DropTxShort:      {"tx_too_short", Drop, "first slot from the guest holds less than an Ethernet header"},
	DropTxCross:      {"tx_cross_page", Drop, "slot from the guest reaches beyond its page"},
	DropTxGSO:        {"tx_bad_gso", Drop, "GSO extra from the guest that does not fit the packet"},
	DropTxGSOSmall:   {"tx_gso_too_small", Drop, "GSO extra from the guest that asks for segments of less than 8 bytes"},
	DropTxSegments:   {"tx_too_many_segments", Drop, "packet from the guest that would be cut into more than 2048 segments"},
	DropTxGrant:      {"tx_grant", Drop, "a page of the guest's packet could not be copied"},
	DropTxCsum:       {"tx_bad_csum", Drop, "guest asks for a checksum on what is not TCP or UDP"},
	DropTxTapDown:    {"tx_tap_down", Drop, "TAP is down"},
	DropTxTapFull:    {"tx_tap_full", Drop, "TAP takes no more"},
	DropTxTapRefused: {"tx_tap_refused", Drop, "TAP refused the frame"},
	DropMcastFull:    {"mcast_full", Drop, "multicast list is full or the request is not valid"},
	DropRxMcast:      {"rx_mcast_filtered", Drop, "multicast the guest did not ask for"},
	DropRxSize:       {"rx_too_big", Drop, "packet is bigger than the guest can take"},
	DropRxGrant:      {"rx_grant", Drop, "a page of the guest could not be written"},
	DropRxReadOnly:   {"rx_readonly", Drop, "rx slot that names a static grant which may only be read"},
	DropRxCsum:       {"rx_bad_offload", Drop, "packet asks for an offload that cannot be done"},
	DropRxBacklog:    {"rx_backlog", Drop, "no memory for packets that wait for rx slots"},
	DropRxMemory:     {"rx_memory", Drop, "packets that wait have all the memory that the vif may have at the moment"},
	DropRxStalled:    {"rx_stalled", Drop, "guest gave no rx slots for too long"},
}

func (c Counter) String() string { return Counters[c].Name }

// tally collects what one pass counted. It belongs to the worker.
type tally [NumCounters]uint32

// Stats are the counters of one queue. The worker adds to them once per pass;
// anyone may read.
type Stats struct{ n [NumCounters]atomic.Uint64 }

// Load reads one counter.
func (s *Stats) Load(c Counter) uint64 { return s.n[c].Load() }

// Snapshot reads all counters, each for itself.
func (s *Stats) Snapshot() (v [NumCounters]uint64) {
	for i := range v {
		v[i] = s.n[i].Load()
	}
	return v
}

// flush adds what t holds and clears it.
func (s *Stats) flush(t *tally) {
	for i := range t {
		if t[i] != 0 {
			s.n[i].Add(uint64(t[i]))
			t[i] = 0
		}
	}
}
