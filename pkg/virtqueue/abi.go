// SPDX-License-Identifier: Apache-2.0

package virtqueue

// MaxSize is the largest number of descriptors of a queue (virtio 1.2, 2.7 and 2.8).
const MaxSize = 1 << 15

// MaxPieces is the largest number of pieces of one chain, those of an indirect table
// included. It is the limit of writev(2) and of QEMU, and bounds the memory of a batch.
const MaxPieces = 1024

// Flags of a descriptor (VIRTQ_DESC_F_*). The last two exist in packed rings only.
const (
	descNext     = 1 << 0
	descWrite    = 1 << 1
	descIndirect = 1 << 2
	descAvail    = 1 << 7
	descUsed     = 1 << 15
)

// descBytes is the size of a descriptor: of either format, and of an indirect table.
const descBytes = 16

const (
	availNoInterrupt = 1 // VRING_AVAIL_F_NO_INTERRUPT
	usedNoNotify     = 1 // VRING_USED_F_NO_NOTIFY
)

// Flags of an event suppression structure of a packed ring (RING_EVENT_FLAGS_*).
const (
	eventEnable  = 0
	eventDisable = 1
	eventDesc    = 2
)

// needEvent reports whether moving an index from old to now passed event, so that the
// other side asked to be notified (virtio 1.2, 2.7.7.2). It is correct across the wrap.
func needEvent(event, now, old uint16) bool { return now-event-1 < now-old }

// NumBuffersOffset is the offset of num_buffers in struct virtio_net_hdr: a 16-bit word
// that holds the number of chains of one packet, if VIRTIO_NET_F_MRG_RXBUF was accepted.
const NumBuffersOffset = 10

// PutNumBuffers sets num_buffers in the vnet header of a packet. It panics if hdr is
// shorter than the 12 bytes of a header that has the field.
func PutNumBuffers(hdr []byte, n int) {
	_ = hdr[NumBuffersOffset+1]
	hdr[NumBuffersOffset] = byte(n)
	hdr[NumBuffersOffset+1] = byte(n >> 8)
}
