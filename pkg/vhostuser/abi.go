// SPDX-License-Identifier: Apache-2.0

package vhostuser

import "fmt"

// Request is the kind of a message from the front end.
type Request uint32

// Requests that this package knows, with their numbers in QEMU's vhost-user.rst.
const (
	GetFeatures         Request = 1
	SetFeatures         Request = 2
	SetOwner            Request = 3
	ResetOwner          Request = 4
	SetMemTable         Request = 5
	SetLogBase          Request = 6
	SetLogFD            Request = 7
	SetVringNum         Request = 8
	SetVringAddr        Request = 9
	SetVringBase        Request = 10
	GetVringBase        Request = 11
	SetVringKick        Request = 12
	SetVringCall        Request = 13
	SetVringErr         Request = 14
	GetProtocolFeatures Request = 15
	SetProtocolFeatures Request = 16
	GetQueueNum         Request = 17
	SetVringEnable      Request = 18
	SendRARP            Request = 19
	NetSetMTU           Request = 20
	SetBackendReqFD     Request = 21
	GetConfig           Request = 24
	SetConfig           Request = 25
	GetInflightFD       Request = 31
	SetInflightFD       Request = 32
	ResetDevice         Request = 34
	GetMaxMemSlots      Request = 36
	AddMemReg           Request = 37
	RemMemReg           Request = 38
	SetStatus           Request = 39
	GetStatus           Request = 40
	SetDeviceStateFD    Request = 42
	CheckDeviceState    Request = 43

	// Request 41 is unknown here on purpose. A proposal for Xen had it announce how the
	// regions that follow are mapped. The text that was merged appends two fields to each
	// region instead (see [Region]), and 41 became GET_SHARED_OBJECT. A front end that
	// sends it means one or the other, and is refused either way.
)

// Bits of protocol features (VHOST_USER_PROTOCOL_F_*) that this package serves.
const (
	ProtocolMQ         = 1 << 0
	ProtocolLogShmFD   = 1 << 1
	ProtocolRARP       = 1 << 2
	ProtocolReplyAck   = 1 << 3
	ProtocolMTU        = 1 << 4
	ProtocolConfig     = 1 << 9
	ProtocolInflight   = 1 << 12
	ProtocolReset      = 1 << 13
	ProtocolMemSlots   = 1 << 15
	ProtocolStatus     = 1 << 16
	ProtocolXenMmap    = 1 << 17
	ProtocolNet        = ProtocolMQ | ProtocolLogShmFD | ProtocolRARP | ProtocolReplyAck | ProtocolMTU | ProtocolInflight | ProtocolReset | ProtocolMemSlots | ProtocolStatus
	protocolSupported  = ProtocolNet | ProtocolConfig | ProtocolXenMmap
	featureProtocol    = 1 << 30 // VHOST_USER_F_PROTOCOL_FEATURES
	featureLogAll      = 1 << 26 // VHOST_F_LOG_ALL
	featureEventIdx    = 1 << 29 // VIRTIO_RING_F_EVENT_IDX
	featureIndirect    = 1 << 28 // VIRTIO_RING_F_INDIRECT_DESC
	featureRingPacked  = 1 << 34 // VIRTIO_F_RING_PACKED
	featureInOrder     = 1 << 35 // VIRTIO_F_IN_ORDER
	maxRegions         = 32      // of a table: as rust-vmm accepts; the text says 8
	maxFiles           = maxRegions
	maxPayload         = 4096
	maxConfig          = 256 // bytes of a device's configuration (VHOST_USER_MAX_CONFIG_SIZE)
	maxRing            = 1 << 15
	headerSize         = 12
	flagVersion        = 1
	flagVersionMask    = 3
	flagReply          = 1 << 2
	flagNeedReply      = 1 << 3
	vringIndexMask     = 0xff
	vringNoFD          = 1 << 8
	vringLog           = 1 << 0 // VHOST_VRING_F_LOG
	narrowRegion       = 32
	wideRegion         = 40
	tableHeader        = 8
	addrSize           = 40
	configHeader       = 12
	inflightSize       = 20
	inflightSizePadded = 24
)

// body is the layout of a payload.
type body uint8

const (
	bodyNone     body = iota
	bodyU64           // u64
	bodyState         // u32 index, u32 num
	bodyAddr          // u32 index, u32 flags, u64 descriptor, used, available, log
	bodyTable         // u32 number, u32 0, regions of 32 or 40 bytes
	bodyRegion        // u64 0, a region of 32 or 40 bytes
	bodyLog           // u64 size, u64 offset
	bodyConfig        // u32 offset, size, flags, bytes
	bodyInflight      // u64 size, u64 offset, u16 queues, u16 queue size, padding to 24 or not
	bodyTransfer      // u32 direction, u32 phase
)

// layout says what a request looks like.
type layout struct {
	name     string
	body     body
	reply    body // bodyNone: an acknowledgement, if one is asked for
	minFiles int
	maxFiles int
}

var layouts = map[Request]layout{
	GetFeatures:         {name: "GET_FEATURES", reply: bodyU64},
	SetFeatures:         {name: "SET_FEATURES", body: bodyU64},
	SetOwner:            {name: "SET_OWNER"},
	ResetOwner:          {name: "RESET_OWNER"},
	SetMemTable:         {name: "SET_MEM_TABLE", body: bodyTable, maxFiles: maxFiles},
	SetLogBase:          {name: "SET_LOG_BASE", body: bodyLog, minFiles: 1, maxFiles: 1},
	SetLogFD:            {name: "SET_LOG_FD", minFiles: 1, maxFiles: 1},
	SetVringNum:         {name: "SET_VRING_NUM", body: bodyState},
	SetVringAddr:        {name: "SET_VRING_ADDR", body: bodyAddr},
	SetVringBase:        {name: "SET_VRING_BASE", body: bodyState},
	GetVringBase:        {name: "GET_VRING_BASE", body: bodyState, reply: bodyState},
	SetVringKick:        {name: "SET_VRING_KICK", body: bodyU64, maxFiles: 1},
	SetVringCall:        {name: "SET_VRING_CALL", body: bodyU64, maxFiles: 1},
	SetVringErr:         {name: "SET_VRING_ERR", body: bodyU64, maxFiles: 1},
	GetProtocolFeatures: {name: "GET_PROTOCOL_FEATURES", reply: bodyU64},
	SetProtocolFeatures: {name: "SET_PROTOCOL_FEATURES", body: bodyU64},
	GetQueueNum:         {name: "GET_QUEUE_NUM", reply: bodyU64},
	SetVringEnable:      {name: "SET_VRING_ENABLE", body: bodyState},
	SendRARP:            {name: "SEND_RARP", body: bodyU64},
	NetSetMTU:           {name: "NET_SET_MTU", body: bodyU64},
	SetBackendReqFD:     {name: "SET_BACKEND_REQ_FD", minFiles: 1, maxFiles: 1},
	GetConfig:           {name: "GET_CONFIG", body: bodyConfig, reply: bodyConfig},
	SetConfig:           {name: "SET_CONFIG", body: bodyConfig},
	GetInflightFD:       {name: "GET_INFLIGHT_FD", body: bodyInflight, reply: bodyInflight},
	SetInflightFD:       {name: "SET_INFLIGHT_FD", body: bodyInflight, minFiles: 1, maxFiles: 1},
	ResetDevice:         {name: "RESET_DEVICE"},
	GetMaxMemSlots:      {name: "GET_MAX_MEM_SLOTS", reply: bodyU64},
	AddMemReg:           {name: "ADD_MEM_REG", body: bodyRegion, minFiles: 1, maxFiles: 1},
	RemMemReg:           {name: "REM_MEM_REG", body: bodyRegion, maxFiles: 1},
	SetStatus:           {name: "SET_STATUS", body: bodyU64},
	GetStatus:           {name: "GET_STATUS", reply: bodyU64},
	SetDeviceStateFD:    {name: "SET_DEVICE_STATE_FD", body: bodyTransfer, reply: bodyU64, minFiles: 1, maxFiles: 1},
	CheckDeviceState:    {name: "CHECK_DEVICE_STATE", reply: bodyU64},
}

// String returns the name that the text has.
func (r Request) String() string {
	if l, ok := layouts[r]; ok {
		return l.name
	}
	return fmt.Sprintf("request %d", uint32(r))
}
