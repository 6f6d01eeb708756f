// SPDX-License-Identifier: Apache-2.0

package netif

import (
	"fmt"
	"structs"

	"github.com/netbackd/netbackd/pkg/xen"
)

// PageSize is the size of a ring page and of a granted buffer. It is part of the
// protocol and does not depend on the page size of a kernel (ring.h).
const PageSize = 4096

// Number of slots of each ring: the largest power of two that fits the page
// after its 64 byte header (ring.h, __CONST_RING_SIZE).
const (
	TxRingSize   = 256
	RxRingSize   = 256
	CtrlRingSize = 128
)

// MinSlots is the number of data slots per packet that both ends must accept
// (XEN_NETIF_NR_SLOTS_MIN).
const MinSlots = 18

// MaxTxSize is the largest packet a tx request can announce
// (XEN_NETIF_MAX_TX_SIZE): its size field has 16 bits.
const MaxTxSize = 0xFFFF

// MaxXDPHeadroom is the largest value of the frontend's key "xdp-headroom", in bytes
// (XEN_NETIF_MAX_XDP_HEADROOM of Linux's netif.h).
const MaxXDPHeadroom = 0x7FFF

// TxRequest is struct xen_netif_tx_request. In a packet's first slot Size is the
// size of the whole packet; in a later one, of that slot's data. 12 bytes.
type TxRequest struct {
	_      structs.HostLayout
	Gref   xen.Gref
	Offset uint16
	Flags  TxFlags
	ID     uint16
	Size   uint16
}

// TxResponse is struct xen_netif_tx_response. 4 bytes; the rest of its slot is
// unused.
type TxResponse struct {
	_      structs.HostLayout
	ID     uint16
	Status Status
}

// RxRequest is struct xen_netif_rx_request: one granted, writable page. 8 bytes.
type RxRequest struct {
	_    structs.HostLayout
	ID   uint16
	_    uint16
	Gref xen.Gref
}

// RxResponse is struct xen_netif_rx_response. A Status of 0 or more is the
// number of bytes in this slot's page, from Offset on. 8 bytes.
type RxResponse struct {
	_      structs.HostLayout
	ID     uint16
	Offset uint16
	Flags  RxFlags
	Status Status
}

// ExtraInfo is struct xen_netif_extra_info: a slot that describes the packet in
// whose slots it stands. 8 bytes; in a tx ring 4 unused bytes follow.
type ExtraInfo struct {
	_     structs.HostLayout
	Type  ExtraType
	Flags ExtraFlags
	Body  [6]byte
}

// CtrlRequest is struct xen_netif_ctrl_request. 16 bytes.
type CtrlRequest struct {
	_    structs.HostLayout
	ID   uint16
	Type CtrlType
	Data [3]uint32
}

// CtrlResponse is struct xen_netif_ctrl_response. 12 bytes in a slot of 16.
type CtrlResponse struct {
	_      structs.HostLayout
	ID     uint16
	Type   CtrlType
	Status CtrlStatus
	Data   uint32
}

// TxFlags are the XEN_NETTXF_ flags. Bits 0 and 1 mean the opposite of the same
// bits in [RxFlags].
type TxFlags uint16

// Flags of a tx request.
const (
	TxCsumBlank     TxFlags = 1 << 0 // XEN_NETTXF_csum_blank: L4 checksum holds only the pseudo-header sum
	TxDataValidated TxFlags = 1 << 1 // XEN_NETTXF_data_validated: checksum is known to be good
	TxMoreData      TxFlags = 1 << 2 // XEN_NETTXF_more_data: the packet goes on in the next data slot
	TxExtraInfo     TxFlags = 1 << 3 // XEN_NETTXF_extra_info: extra slots follow this one
)

// RxFlags are the XEN_NETRXF_ flags.
type RxFlags uint16

// Flags of an rx response.
const (
	RxDataValidated RxFlags = 1 << 0 // XEN_NETRXF_data_validated
	RxCsumBlank     RxFlags = 1 << 1 // XEN_NETRXF_csum_blank
	RxMoreData      RxFlags = 1 << 2 // XEN_NETRXF_more_data
	RxExtraInfo     RxFlags = 1 << 3 // XEN_NETRXF_extra_info
	RxGSOPrefix     RxFlags = 1 << 4 // XEN_NETRXF_gso_prefix: obsolete, never sent
)

// Status is a XEN_NETIF_RSP_ value. An rx response uses values of 0 and more for
// a length.
type Status int16

// Statuses of a response.
const (
	StatusDropped Status = -2 // XEN_NETIF_RSP_DROPPED
	StatusError   Status = -1 // XEN_NETIF_RSP_ERROR
	StatusOkay    Status = 0  // XEN_NETIF_RSP_OKAY
	StatusNull    Status = 1  // XEN_NETIF_RSP_NULL: answers an extra slot
)

func (s Status) String() string {
	switch s {
	case StatusDropped:
		return "dropped"
	case StatusError:
		return "error"
	case StatusOkay:
		return "okay"
	case StatusNull:
		return "null"
	}
	return fmt.Sprintf("unknown(%d)", int16(s))
}

// ExtraType is a XEN_NETIF_EXTRA_TYPE_ value.
type ExtraType uint8

// Types of an extra slot. XDP is Linux's own and not part of Xen's header.
const (
	ExtraNone     ExtraType = 0
	ExtraGSO      ExtraType = 1
	ExtraMcastAdd ExtraType = 2
	ExtraMcastDel ExtraType = 3
	ExtraHash     ExtraType = 4
	ExtraXDP      ExtraType = 5
)

// ExtraMax bounds the types a backend accepts (XEN_NETIF_EXTRA_TYPE_MAX).
const ExtraMax = 5

func (t ExtraType) String() string {
	switch t {
	case ExtraNone:
		return "none"
	case ExtraGSO:
		return "gso"
	case ExtraMcastAdd:
		return "mcast-add"
	case ExtraMcastDel:
		return "mcast-del"
	case ExtraHash:
		return "hash"
	case ExtraXDP:
		return "xdp"
	}
	return fmt.Sprintf("unknown(%d)", uint8(t))
}

// ExtraFlags are the XEN_NETIF_EXTRA_FLAG_ flags.
type ExtraFlags uint8

// ExtraMore: another extra slot follows (XEN_NETIF_EXTRA_FLAG_MORE).
const ExtraMore ExtraFlags = 1 << 0

// GSOType is a XEN_NETIF_GSO_TYPE_ value.
type GSOType uint8

// Types of segmentation that a GSO extra can request.
const (
	GSONone  GSOType = 0
	GSOTCPv4 GSOType = 1
	GSOTCPv6 GSOType = 2
)

func (t GSOType) String() string {
	switch t {
	case GSONone:
		return "none"
	case GSOTCPv4:
		return "tcpv4"
	case GSOTCPv6:
		return "tcpv6"
	}
	return fmt.Sprintf("unknown(%d)", uint8(t))
}

// CtrlType is a XEN_NETIF_CTRL_TYPE_ value.
type CtrlType uint16

// Types of a control message.
const (
	CtrlInvalid            CtrlType = 0
	CtrlGetHashFlags       CtrlType = 1
	CtrlSetHashFlags       CtrlType = 2
	CtrlSetHashKey         CtrlType = 3
	CtrlGetHashMappingSize CtrlType = 4
	CtrlSetHashMappingSize CtrlType = 5
	CtrlSetHashMapping     CtrlType = 6
	CtrlSetHashAlgorithm   CtrlType = 7
	CtrlGetGrefMappingSize CtrlType = 8
	CtrlAddGrefMapping     CtrlType = 9
	CtrlDelGrefMapping     CtrlType = 10
)

var ctrlTypeNames = [...]string{
	"invalid", "get-hash-flags", "set-hash-flags", "set-hash-key",
	"get-hash-mapping-size", "set-hash-mapping-size", "set-hash-mapping",
	"set-hash-algorithm", "get-gref-mapping-size", "add-gref-mapping",
	"del-gref-mapping",
}

func (t CtrlType) String() string {
	if int(t) < len(ctrlTypeNames) {
		return ctrlTypeNames[t]
	}
	return fmt.Sprintf("unknown(%d)", uint16(t))
}

// CtrlStatus is a XEN_NETIF_CTRL_STATUS_ value.
type CtrlStatus uint32

// Statuses of a control response.
const (
	CtrlSuccess          CtrlStatus = 0
	CtrlNotSupported     CtrlStatus = 1
	CtrlInvalidParameter CtrlStatus = 2
	CtrlBufferOverflow   CtrlStatus = 3
)

func (s CtrlStatus) String() string {
	switch s {
	case CtrlSuccess:
		return "success"
	case CtrlNotSupported:
		return "not-supported"
	case CtrlInvalidParameter:
		return "invalid-parameter"
	case CtrlBufferOverflow:
		return "buffer-overflow"
	}
	return fmt.Sprintf("unknown(%d)", uint32(s))
}

// Hash algorithms of [CtrlSetHashAlgorithm] and of a hash extra.
const (
	HashAlgorithmNone     = 0 // XEN_NETIF_CTRL_HASH_ALGORITHM_NONE
	HashAlgorithmToeplitz = 1 // XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ
)

// Hash types: the bit numbers of [CtrlSetHashFlags], and the value itself in a
// hash extra (_XEN_NETIF_CTRL_HASH_TYPE_).
const (
	HashIPv4    = 0
	HashIPv4TCP = 1
	HashIPv6    = 2
	HashIPv6TCP = 3
)

// GrefReadOnly marks a static grant that the backend may only read
// (XEN_NETIF_CTRL_GREF_F_readonly).
const GrefReadOnly = 1 << 0

// GrefEntry is struct xen_netif_gref, an element of the list page of
// [CtrlAddGrefMapping] and [CtrlDelGrefMapping]. 8 bytes.
type GrefEntry struct {
	_      structs.HostLayout
	Ref    xen.Gref
	Flags  uint16
	Status uint16
}
