// SPDX-License-Identifier: Apache-2.0

package dataplane

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
