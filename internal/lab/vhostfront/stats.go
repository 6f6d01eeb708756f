// SPDX-License-Identifier: Apache-2.0

package vhostfront

// Stats holds the counters of a pair of queues.
type Stats struct {
	TxPackets uint64 `json:"tx_packets"`
	TxBytes   uint64 `json:"tx_bytes"`
	TxDone    uint64 `json:"tx_done"` // packets that the back end is done with
	TxGSO     uint64 `json:"tx_gso"`  // packets to be segmented
	TxCsum    uint64 `json:"tx_csum"` // packets with a partial checksum
	TxFull    uint64 `json:"tx_full"` // times there was no room

	RxPackets uint64 `json:"rx_packets"`
	RxBytes   uint64 `json:"rx_bytes"`
	RxChains  uint64 `json:"rx_chains"`
	RxMulti   uint64 `json:"rx_multi"` // packets of several chains
	RxGSO     uint64 `json:"rx_gso"`
	RxCsum    uint64 `json:"rx_csum"` // packets with a partial checksum

	Kicks    uint64 `json:"kicks"`
	Calls    uint64 `json:"calls"`
	Spurious uint64 `json:"spurious"` // calls without a chain

	TapFull   uint64 `json:"tap_full"`   // packets the TAP did not take
	TapErrors uint64 `json:"tap_errors"` // packets it refused
	TapDrops  uint64 `json:"tap_drops"`  // packets from it that cannot be sent

	Violations uint64 `json:"violations"`
}

// Add adds the counters of another pair.
func (s *Stats) Add(o Stats) {
	s.TxPackets += o.TxPackets
	s.TxBytes += o.TxBytes
	s.TxDone += o.TxDone
	s.TxGSO += o.TxGSO
	s.TxCsum += o.TxCsum
	s.TxFull += o.TxFull
	s.RxPackets += o.RxPackets
	s.RxBytes += o.RxBytes
	s.RxChains += o.RxChains
	s.RxMulti += o.RxMulti
	s.RxGSO += o.RxGSO
	s.RxCsum += o.RxCsum
	s.Kicks += o.Kicks
	s.Calls += o.Calls
	s.Spurious += o.Spurious
	s.TapFull += o.TapFull
	s.TapErrors += o.TapErrors
	s.TapDrops += o.TapDrops
	s.Violations += o.Violations
}
