// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"encoding/binary"
	"fmt"
)

// VnetHdrLen is the length of the header before each frame: struct
// virtio_net_hdr_v1, which is struct virtio_net_hdr and a word num_buffers that
// TAP devices leave alone.
const VnetHdrLen = 12

// VnetHdr is struct virtio_net_hdr (linux/virtio_net.h): what has been left
// undone of the frame behind it. Offsets count from the start of the frame.
//
//	0 u8  flags        6 u16 csum_start
//	1 u8  gso_type     8 u16 csum_offset
//	2 u16 hdr_len     10 u16 num_buffers
//	4 u16 gso_size
type VnetHdr struct {
	Flags   uint8 // VnetNeedsCsum, VnetDataValid
	GSOType uint8 // VnetGSONone, VnetGSOTCPv4, VnetGSOTCPv6, | VnetGSOECN
	// HdrLen is the length of all headers, to and with TCP's. The kernel
	// makes that much of a written frame contiguous, and takes 0 for "as you
	// like". On frames read it is a hint, wrong often enough not to be used.
	HdrLen uint16
	// GSOSize is how much payload each segment is to have.
	GSOSize uint16
	// CsumStart is where the checksum starts, at the header of TCP or UDP;
	// CsumOffset is where in that header it belongs, and where now the sum of
	// the pseudo header is.
	CsumStart, CsumOffset uint16
}

// VnetHdr.Flags.
const (
	VnetNeedsCsum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM: CsumStart and CsumOffset hold
	VnetDataValid = 2 // VIRTIO_NET_HDR_F_DATA_VALID: checksum verified; ignored on writes
)

// VnetHdr.GSOType.
const (
	VnetGSONone  = 0    // VIRTIO_NET_HDR_GSO_NONE
	VnetGSOTCPv4 = 1    // VIRTIO_NET_HDR_GSO_TCPV4
	VnetGSOTCPv6 = 4    // VIRTIO_NET_HDR_GSO_TCPV6
	VnetGSOECN   = 0x80 // VIRTIO_NET_HDR_GSO_ECN: CWR is set in the first segment
)

// Encode writes the header to the first VnetHdrLen octets of b, which must have
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

// Decode reads the header from the first VnetHdrLen octets of b, which must have
// them. num_buffers is not looked at: a read from a TAP does not fill it.
func (h *VnetHdr) Decode(b []byte) {
	_ = b[VnetHdrLen-1]
	h.Flags, h.GSOType = b[0], b[1]
	h.HdrLen = binary.NativeEndian.Uint16(b[2:])
	h.GSOSize = binary.NativeEndian.Uint16(b[4:])
	h.CsumStart = binary.NativeEndian.Uint16(b[6:])
	h.CsumOffset = binary.NativeEndian.Uint16(b[8:])
}

// VnetKind returns the flags and the GSO type of the header in b, which is not
// empty or shorter than VnetHdrLen. They say whether the rest matters.
func VnetKind(b []byte) (flags, gsoType uint8) {
	_ = b[1]
	return b[0], b[1]
}

// VnetHdrError says why a header cannot be written.
type VnetHdrError uint8

// The reasons, in the order in which Check looks.
const (
	// VnetBadFrame: the frame is shorter than an Ethernet header.
	VnetBadFrame VnetHdrError = iota + 1
	// VnetBadGSOType: a type other than those above.
	VnetBadGSOType
	// VnetBadGSOSize: 0, or 0xffff, which the kernel keeps for itself.
	VnetBadGSOSize
	// VnetBadGSOCsum: segmentation without VnetNeedsCsum, or with a checksum
	// that is not TCP's.
	VnetBadGSOCsum
	// VnetBadCsum: the checksum, or the header it belongs to, is not within
	// the frame, or is where the IP header must be.
	VnetBadCsum
	// VnetBadHdrLen: longer than the frame, or shorter than an Ethernet
	// header.
	VnetBadHdrLen
)

func (e VnetHdrError) Error() string {
	switch e {
	case VnetBadFrame:
		return "frame shorter than an Ethernet header"
	case VnetBadGSOType:
		return "unknown gso_type"
	case VnetBadGSOSize:
		return "gso_size 0 or 65535"
	case VnetBadGSOCsum:
		return "segmentation without TCP checksum offload"
	case VnetBadHdrLen:
		return "hdr_len not within the frame"
	case VnetBadCsum:
		return "checksum not within the frame"
	}
	return fmt.Sprintf("unknown(%d)", uint8(e))
}

const (
	ethLen     = 14
	ipv4Len    = 20
	ipv6Len    = 40
	tcpLen     = 20 // without options
	tcpCsum    = 16 // offset of the checksum in the TCP header
	gsoByFrags = 0xffff
)

// Check tells whether the kernel will take the header before a frame of the
// given length. It returns nil or a [VnetHdrError].
//
// A header that Check refuses some kernel from 6.1 on refuses too (EINVAL), or
// virtio forbids it: segmentation without VnetNeedsCsum, which Linux accepts from
// a TAP and may fail to segment later. The types of segmentation that are not
// above (UDP's) are refused although some kernels know them.
//
// A header that passes may still be refused: newer kernels compare CsumStart with
// the IP header they find in the frame, and none takes a CsumStart within some
// hundred octets of 64 KiB, which no frame with sane headers needs.
func (h *VnetHdr) Check(frameLen int) error {
	// All sums are of 16-bit values and cannot overflow an int.
	if frameLen < ethLen {
		return VnetBadFrame
	}
	l4, l3 := 0, ipv4Len // least lengths of the headers
	csum := h.Flags&VnetNeedsCsum != 0
	if h.GSOType != VnetGSONone {
		switch h.GSOType &^ VnetGSOECN {
		case VnetGSOTCPv4:
		case VnetGSOTCPv6:
			l3 = ipv6Len
		default:
			return VnetBadGSOType
		}
		if h.GSOSize == 0 || h.GSOSize == gsoByFrags {
			return VnetBadGSOSize
		}
		if !csum || h.CsumOffset != tcpCsum {
			return VnetBadGSOCsum
		}
		l4 = tcpLen
	}
	hdrLen := int(h.HdrLen)
	if csum {
		start, end := int(h.CsumStart), int(h.CsumStart)+int(h.CsumOffset)+2
		if start < ethLen+l3 || max(start+l4, end) > frameLen {
			return VnetBadCsum
		}
		// The kernel reads the header as covering the checksum.
		hdrLen = max(hdrLen, end)
	}
	if hdrLen > frameLen || hdrLen != 0 && hdrLen < ethLen {
		return VnetBadHdrLen
	}
	return nil
}
