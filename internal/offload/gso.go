// SPDX-License-Identifier: Apache-2.0

package offload

import "github.com/netbackd/netbackd/pkg/netif"

// gsoByFrags is a segment size that Linux reserves for itself (GSO_BY_FRAGS,
// linux/skbuff.h).
const gsoByFrags = 0xffff

// checkGSO checks that a packet from either side can be segmented as type t with
// size payload bytes per segment.
func checkGSO(h *Headers, t netif.GSOType, size uint16) error {
	var ipv uint8
	switch t {
	case netif.GSOTCPv4:
		ipv = 4
	case netif.GSOTCPv6:
		ipv = 6
	default:
		return ErrGSOType
	}
	switch {
	case size == 0 || size == gsoByFrags:
		return ErrGSOSize
	case h.Fragment || h.Atomic:
		return ErrFragment
	case h.Proto != protoTCP || h.L4 == 0 || h.IPv != ipv:
		return ErrGSOMismatch
	case h.Auth:
		// The authentication header signs the packet as a whole; its segments
		// would not verify.
		return ErrGSOMismatch
	}
	return nil
}
