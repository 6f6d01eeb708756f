// SPDX-License-Identifier: Apache-2.0

package offload

// VnetHeader is struct virtio_net_hdr as values (linux/virtio_net.h). It has
// the fields of pkg/tap's VnetHdr in the same order, so either converts to the
// other.
type VnetHeader struct {
	Flags      uint8
	GSOType    uint8
	HdrLen     uint16 // octets of headers; a hint
	GSOSize    uint16 // payload octets per segment
	CsumStart  uint16 // where the checksum starts, from the start of the frame
	CsumOffset uint16 // where it is stored, from CsumStart
}

// VnetHeader.Flags.
const (
	VnetNeedsCsum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM: the checksum is partial
	VnetDataValid = 2 // VIRTIO_NET_HDR_F_DATA_VALID: it was verified
)

// VnetHeader.GSOType.
const (
	VnetGSONone  = 0
	VnetGSOTCPv4 = 1
	VnetGSOTCPv6 = 4
	VnetGSOECN   = 0x80 // added if the TCP header has CWR set
)

// GSOType is a type of segmentation by netif's numbers (XEN_NETIF_GSO_TYPE_).
type GSOType uint8

// Types of segmentation that netif has.
const (
	GSONone  GSOType = 0
	GSOTCPv4 GSOType = 1
	GSOTCPv6 GSOType = 2
)

// checkGSO tells whether a packet can be segmented as t asks, whoever asked.
func checkGSO(h *Headers, t GSOType, size uint16) error {
	var ipv uint8
	switch t {
	case GSOTCPv4:
		ipv = 4
	case GSOTCPv6:
		ipv = 6
	default:
		return ErrGSOType
	}
	switch {
	case size == 0 || size == 0xffff:
		return ErrGSOSize
	case h.Fragment || h.Atomic:
		return ErrFragment
	case h.Proto != ProtoTCP || h.L4 == 0 || h.IPv != ipv:
		return ErrGSOMismatch
	case h.Auth:
		// The header signs the packet as one; no segment would verify.
		return ErrGSOMismatch
	}
	return nil
}
