// SPDX-License-Identifier: Apache-2.0

package tap

import "encoding/binary"

// VnetHdrLen is the length of the header before each frame: struct
// virtio_net_hdr_v1, which is struct virtio_net_hdr and a word num_buffers that
// TAP devices do not use.
const VnetHdrLen = 12

// VnetHdr is struct virtio_net_hdr (linux/virtio_net.h): the offloads of the frame
// behind it. Offsets count in bytes from the start of the frame.
//
//	0 u8  flags        6 u16 csum_start
//	1 u8  gso_type     8 u16 csum_offset
//	2 u16 hdr_len     10 u16 num_buffers
//	4 u16 gso_size
type VnetHdr struct {
	Flags   uint8 // VnetNeedsCsum, VnetDataValid
	GSOType uint8 // VnetGSONone, VnetGSOTCPv4, VnetGSOTCPv6, | VnetGSOECN
	// HdrLen is the length of all headers in bytes, TCP's included. The kernel
	// makes that much of a written frame contiguous; 0 leaves it to the kernel.
	// On frames read it is a hint, wrong too often to be used.
	HdrLen uint16
	// GSOSize is the payload of each segment in bytes.
	GSOSize uint16
	// CsumStart is the first byte that the checksum covers, that of the TCP or
	// UDP header. CsumOffset is the offset of the checksum field in that header;
	// until the checksum is complete the field holds the pseudo-header's sum.
	CsumStart, CsumOffset uint16
}

// VnetHdr.Flags.
const (
	VnetNeedsCsum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM: the checksum is partial
	VnetDataValid = 2 // VIRTIO_NET_HDR_F_DATA_VALID: checksum verified; ignored on writes
)

// VnetHdr.GSOType.
const (
	VnetGSONone  = 0    // VIRTIO_NET_HDR_GSO_NONE
	VnetGSOTCPv4 = 1    // VIRTIO_NET_HDR_GSO_TCPV4
	VnetGSOTCPv6 = 4    // VIRTIO_NET_HDR_GSO_TCPV6
	VnetGSOUDP   = 5    // VIRTIO_NET_HDR_GSO_UDP_L4: datagrams (Linux 6.2)
	VnetGSOECN   = 0x80 // VIRTIO_NET_HDR_GSO_ECN: CWR is set in the first segment
)

// Encode writes the header to the first VnetHdrLen bytes of b, which must have
// them, in the byte order of the machine.
func (h VnetHdr) Encode(b []byte) {
	_ = b[VnetHdrLen-1]
	b[0], b[1] = h.Flags, h.GSOType
	binary.NativeEndian.PutUint16(b[2:], h.HdrLen)
	binary.NativeEndian.PutUint16(b[4:], h.GSOSize)
	binary.NativeEndian.PutUint16(b[6:], h.CsumStart)
	binary.NativeEndian.PutUint16(b[8:], h.CsumOffset)
	b[10], b[11] = 0, 0
}

// Decode reads the header from the first VnetHdrLen bytes of b, which must have
// them. It ignores num_buffers, which a read from a TAP does not fill.
func (h *VnetHdr) Decode(b []byte) {
	_ = b[VnetHdrLen-1]
	h.Flags, h.GSOType = b[0], b[1]
	h.HdrLen = binary.NativeEndian.Uint16(b[2:])
	h.GSOSize = binary.NativeEndian.Uint16(b[4:])
	h.CsumStart = binary.NativeEndian.Uint16(b[6:])
	h.CsumOffset = binary.NativeEndian.Uint16(b[8:])
}

// VnetKind returns the flags and the GSO type of the header in b, which is not
// empty or shorter than VnetHdrLen. If both are 0, the other fields are not used.
func VnetKind(b []byte) (flags, gsoType uint8) {
	_ = b[1]
	return b[0], b[1]
}
