// SPDX-License-Identifier: Apache-2.0

package netfront

// Stats holds a queue's counters. A packet is counted when its slots are filled (tx) or
// taken (rx).
type Stats struct {
	TxPackets   uint64 `json:"tx_packets"`
	TxBytes     uint64 `json:"tx_bytes"`
	TxSlots     uint64 `json:"tx_slots"`      // data slots and extras
	TxGSO       uint64 `json:"tx_gso"`        // packets to be segmented
	TxCsumBlank uint64 `json:"tx_csum_blank"` // packets with a blank checksum
	TxResponses uint64 `json:"tx_responses"`  // NULL ones included
	TxErrors    uint64 `json:"tx_errors"`     // slots answered ERROR
	TxDropped   uint64 `json:"tx_dropped"`    // slots answered DROPPED
	TxReordered uint64 `json:"tx_reordered"`  // slots answered out of order, which is allowed
	TxFull      uint64 `json:"tx_full"`       // times there was no room

	RxPackets   uint64 `json:"rx_packets"`
	RxBytes     uint64 `json:"rx_bytes"`
	RxSlots     uint64 `json:"rx_slots"` // data slots and extras
	RxMulti     uint64 `json:"rx_multi"` // packets of several data slots
	RxGSO       uint64 `json:"rx_gso"`
	RxHash      uint64 `json:"rx_hash"`   // packets with a hash
	RxXDP       uint64 `json:"rx_xdp"`    // packets with room before them
	RxAstray    uint64 `json:"rx_astray"` // packets on another queue than the guest's hashing selects
	RxCsumBlank uint64 `json:"rx_csum_blank"`
	RxValidated uint64 `json:"rx_validated"` // checksum verified, not blank
	RxErrors    uint64 `json:"rx_errors"`    // packets with a slot that failed
	RxPosted    uint64 `json:"rx_posted"`    // buffers

	McastOkay  uint64 `json:"mcast_okay"` // list edits the backend took
	McastError uint64 `json:"mcast_error"`

	Notifies     uint64 `json:"notifies"`      // events sent
	NotifiesHeld uint64 `json:"notifies_held"` // pushes for which the backend asked for no event
	Wakeups      uint64 `json:"wakeups"`       // times an event came
	Spurious     uint64 `json:"spurious"`      // events without a response

	Violations uint64 `json:"violations"`

	// Counters of a Pump.
	TapFull   uint64 `json:"tap_full"`   // packets the TAP did not take
	TapErrors uint64 `json:"tap_errors"` // packets it refused
	TapDrops  uint64 `json:"tap_drops"`  // packets from it that netif cannot carry
}

// Add adds another queue's counters.
func (s *Stats) Add(o Stats) {
	s.TxPackets += o.TxPackets
	s.TxBytes += o.TxBytes
	s.TxSlots += o.TxSlots
	s.TxGSO += o.TxGSO
	s.TxCsumBlank += o.TxCsumBlank
	s.TxResponses += o.TxResponses
	s.TxErrors += o.TxErrors
	s.TxDropped += o.TxDropped
	s.TxReordered += o.TxReordered
	s.TxFull += o.TxFull
	s.RxPackets += o.RxPackets
	s.RxBytes += o.RxBytes
	s.RxSlots += o.RxSlots
	s.RxMulti += o.RxMulti
	s.RxGSO += o.RxGSO
	s.RxHash += o.RxHash
	s.RxXDP += o.RxXDP
	s.RxAstray += o.RxAstray
	s.RxCsumBlank += o.RxCsumBlank
	s.RxValidated += o.RxValidated
	s.RxErrors += o.RxErrors
	s.RxPosted += o.RxPosted
	s.McastOkay += o.McastOkay
	s.McastError += o.McastError
	s.Notifies += o.Notifies
	s.NotifiesHeld += o.NotifiesHeld
	s.Wakeups += o.Wakeups
	s.Spurious += o.Spurious
	s.Violations += o.Violations
	s.TapFull += o.TapFull
	s.TapErrors += o.TapErrors
	s.TapDrops += o.TapDrops
}
