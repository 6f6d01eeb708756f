// SPDX-License-Identifier: Apache-2.0

package dataplane

import "github.com/netbackd/netbackd/pkg/tap"

// Bits of virtio's features (virtio 1.2, 5.1.3 and 6) that this package serves.
const (
	virtCsum       = 1 << 0
	virtGuestCsum  = 1 << 1
	virtGuestTSO4  = 1 << 7
	virtGuestTSO6  = 1 << 8
	virtGuestECN   = 1 << 9
	virtHostTSO4   = 1 << 11
	virtHostTSO6   = 1 << 12
	virtHostECN    = 1 << 13
	virtMrgRxbuf   = 1 << 15
	virtIndirect   = 1 << 28
	virtEventIdx   = 1 << 29
	virtVersion1   = 1 << 32
	virtRingPacked = 1 << 34
	virtInOrder    = 1 << 35
	virtGuestUSO4  = 1 << 54
	virtGuestUSO6  = 1 << 55
	virtHostUSO    = 1 << 56
)

// VirtFeatures returns the features that a device can offer for its data path. vnetHdr says
// that its TAP has vnet headers, uso that the TAP takes UDP segmentation.
func VirtFeatures(vnetHdr, uso bool) uint64 {
	f := uint64(virtVersion1 | virtMrgRxbuf | virtIndirect | virtEventIdx | virtRingPacked | virtInOrder |
		virtCsum | virtHostTSO4 | virtHostTSO6 | virtHostECN)
	if vnetHdr {
		f |= virtGuestCsum | virtGuestTSO4 | virtGuestTSO6 | virtGuestECN
	}
	if vnetHdr && uso {
		f |= virtGuestUSO4 | virtGuestUSO6 | virtHostUSO
	}
	return f
}

// TapOffload returns the offloads that a TAP can have whose reader is a guest that accepted
// these features: the host then omits what the guest completes.
func TapOffload(features uint64) tap.Offload {
	has := func(f uint64) bool { return features&(virtGuestCsum|f) == virtGuestCsum|f }
	o := tap.Offload{
		Csum: has(0), TSO4: has(virtGuestTSO4), TSO6: has(virtGuestTSO6),
		USO: has(virtGuestUSO4 | virtGuestUSO6),
	}
	o.ECN = has(virtGuestECN) && (o.TSO4 || o.TSO6)
	return o
}
