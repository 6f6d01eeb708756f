// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Header begins each message. Numbers are in the byte order of the machine.
type Header struct {
	Request Request
	Flags   uint32
	Size    uint32 // of the payload
}

// Reply reports whether the message is an answer.
func (h Header) Reply() bool { return h.Flags&flagReply != 0 }

// NeedReply reports whether the sender asks for an acknowledgement.
func (h Header) NeedReply() bool { return h.Flags&flagNeedReply != 0 }

// Message is a message in private memory. Its request says which fields it has.
type Message struct {
	Header
	U64      uint64
	State    VringState
	Addr     VringAddr
	Regions  []Region
	Log      Area
	Config   ConfigSpace
	Inflight Inflight
	Transfer Transfer
	Files    []int // descriptors that came with it
	wide     bool  // regions have the two fields for Xen
}

// VringState is an index of a ring and a number.
type VringState struct{ Index, Num uint32 }

// VringAddr holds the addresses of a ring's parts: see [Table.Find] for what they refer to.
type VringAddr struct {
	Index, Flags                     uint32
	Descriptor, Used, Available, Log uint64
}

// Area is a part of a file.
type Area struct{ Size, Offset uint64 }

// ConfigSpace is a part of the device's configuration. Data has Size bytes.
type ConfigSpace struct {
	Offset, Size, Flags uint32
	Data                []byte
}

// Inflight describes the inflight region: Queues parts for rings of at most QueueSize.
type Inflight struct {
	Area
	Queues, QueueSize uint16
}

// Transfer says how the state of a device is moved.
type Transfer struct{ Direction, Phase uint32 }

// Region is a range of guest memory as the front end describes it. The last two fields are
// 0 in a message with regions of 32 bytes.
type Region struct {
	Guest  uint64 // address in descriptors
	Size   uint64
	User   uint64 // address in SET_VRING_ADDR
	Offset uint64 // in the file
	Flags  uint32 // RegionForeign and others
	Domid  uint32
}

// Errors of a message whose bytes make no sense.
var (
	ErrVersion = errors.New("the version of the protocol is not 1")
	ErrUnknown = errors.New("the request is not known")
	ErrSize    = errors.New("the size of the payload is wrong")
	ErrFiles   = errors.New("the number of descriptors is wrong")
)

// MessageError is an error of a message, with its request.
type MessageError struct {
	Request Request
	Err     error
}

func (e *MessageError) Error() string { return fmt.Sprintf("vhostuser: %v: %v", e.Request, e.Err) }

// Unwrap returns Err.
func (e *MessageError) Unwrap() error { return e.Err }

var native = binary.NativeEndian

// decodeHeader decodes the first 12 bytes of a message. It checks what is true of all.
func decodeHeader(b []byte) (Header, error) {
	h := Header{Request(native.Uint32(b)), native.Uint32(b[4:]), native.Uint32(b[8:])}
	if h.Flags&flagVersionMask != flagVersion {
		return h, &MessageError{h.Request, ErrVersion}
	}
	if h.Size > maxPayload {
		return h, &MessageError{h.Request, ErrSize}
	}
	return h, nil
}

// Decode decodes the payload of a request. A request that is not known is [ErrUnknown].
func Decode(h Header, payload []byte) (Message, error) {
	m := Message{Header: h}
	l, ok := layouts[h.Request]
	if !ok {
		return m, &MessageError{h.Request, ErrUnknown}
	}
	if err := m.decode(l.body, payload); err != nil {
		return m, err
	}
	return m, nil
}

// DecodeReply decodes the payload of an answer. An acknowledgement is in U64.
func DecodeReply(h Header, payload []byte) (Message, error) {
	m := Message{Header: h}
	b := bodyU64
	if l := layouts[h.Request]; l.reply != bodyNone {
		b = l.reply
	}
	if b == bodyConfig && len(payload) == 0 {
		return m, nil // the back end refuses
	}
	return m, m.decode(b, payload)
}

func (m *Message) decode(b body, p []byte) error {
	if uint32(len(p)) != m.Size || !fits(b, p) {
		return &MessageError{m.Request, ErrSize}
	}
	switch b {
	case bodyU64:
		m.U64 = native.Uint64(p)
	case bodyState:
		m.State = VringState{native.Uint32(p), native.Uint32(p[4:])}
	case bodyAddr:
		m.Addr = VringAddr{native.Uint32(p), native.Uint32(p[4:]), native.Uint64(p[8:]), native.Uint64(p[16:]),
			native.Uint64(p[24:]), native.Uint64(p[32:])}
	case bodyTable:
		m.decodeRegions(p[tableHeader:], int(native.Uint32(p)))
	case bodyRegion:
		m.decodeRegions(p[tableHeader:], 1)
	case bodyLog:
		m.Log = Area{native.Uint64(p), native.Uint64(p[8:])}
	case bodyConfig:
		m.Config = ConfigSpace{native.Uint32(p), native.Uint32(p[4:]), native.Uint32(p[8:]), slices.Clone(p[configHeader:])}
	case bodyInflight:
		m.Inflight = Inflight{Area{native.Uint64(p), native.Uint64(p[8:])}, native.Uint16(p[16:]), native.Uint16(p[18:])}
	case bodyTransfer:
		m.Transfer = Transfer{native.Uint32(p), native.Uint32(p[4:])}
	}
	return nil
}

// fits reports whether p has the size of b.
func fits(b body, p []byte) bool {
	switch b {
	case bodyNone:
		return len(p) == 0
	case bodyU64, bodyState, bodyTransfer:
		return len(p) == 8
	case bodyAddr:
		return len(p) == addrSize
	case bodyTable:
		if len(p) < tableHeader {
			return false
		}
		n := native.Uint32(p)
		size := uint32(len(p) - tableHeader)
		return n <= maxRegions && (size == n*narrowRegion || size == n*wideRegion)
	case bodyRegion:
		return len(p) == tableHeader+narrowRegion || len(p) == tableHeader+wideRegion
	case bodyLog:
		return len(p) == 16
	case bodyConfig:
		return len(p) >= configHeader && native.Uint32(p[4:]) <= maxConfig && len(p) == configHeader+int(native.Uint32(p[4:]))
	case bodyInflight:
		return len(p) == inflightSize || len(p) == inflightSizePadded
	}
	return false
}

// decodeRegions decodes n regions. Their size tells whether they have the fields for Xen:
// QEMU 10.0 acknowledges XEN_MMAP and sends regions without them.
func (m *Message) decodeRegions(p []byte, n int) {
	if n == 0 {
		return
	}
	size := len(p) / n
	m.wide = size == wideRegion
	m.Regions = make([]Region, n)
	for i := range m.Regions {
		q := p[i*size:][:size]
		r := &m.Regions[i]
		r.Guest, r.Size = native.Uint64(q), native.Uint64(q[8:])
		r.User, r.Offset = native.Uint64(q[16:]), native.Uint64(q[24:])
		if m.wide {
			r.Flags, r.Domid = native.Uint32(q[32:]), native.Uint32(q[36:])
		}
	}
}

// Append encodes m, with its header, as a request or, if Flags say so, as an answer, and
// appends it to b. Regions have 40 bytes if one of them needs that. Files are not part of it.
func (m *Message) Append(b []byte) []byte {
	start := len(b)
	b = native.AppendUint32(b, uint32(m.Request))
	b = native.AppendUint32(b, m.Flags&^flagVersionMask|flagVersion)
	b = native.AppendUint32(b, 0)
	l := layouts[m.Request]
	kind := l.body
	if m.Reply() {
		if kind = l.reply; kind == bodyNone {
			kind = bodyU64
		}
		if kind == bodyConfig && m.Config.Data == nil {
			kind = bodyNone
		}
	}
	b = m.appendBody(b, kind)
	native.PutUint32(b[start+8:], uint32(len(b)-start-headerSize))
	return b
}

func (m *Message) appendBody(b []byte, kind body) []byte {
	switch kind {
	case bodyU64:
		b = native.AppendUint64(b, m.U64)
	case bodyState:
		b = native.AppendUint32(native.AppendUint32(b, m.State.Index), m.State.Num)
	case bodyAddr:
		b = native.AppendUint32(native.AppendUint32(b, m.Addr.Index), m.Addr.Flags)
		for _, v := range []uint64{m.Addr.Descriptor, m.Addr.Used, m.Addr.Available, m.Addr.Log} {
			b = native.AppendUint64(b, v)
		}
	case bodyTable:
		b = native.AppendUint32(native.AppendUint32(b, uint32(len(m.Regions))), 0)
		b = m.appendRegions(b)
	case bodyRegion:
		b = m.appendRegions(native.AppendUint64(b, 0))
	case bodyLog:
		b = native.AppendUint64(native.AppendUint64(b, m.Log.Size), m.Log.Offset)
	case bodyConfig:
		b = native.AppendUint32(native.AppendUint32(b, m.Config.Offset), uint32(len(m.Config.Data)))
		b = append(native.AppendUint32(b, m.Config.Flags), m.Config.Data...)
	case bodyInflight:
		b = native.AppendUint64(native.AppendUint64(b, m.Inflight.Size), m.Inflight.Offset)
		b = native.AppendUint16(native.AppendUint16(b, m.Inflight.Queues), m.Inflight.QueueSize)
		b = native.AppendUint32(b, 0)
	case bodyTransfer:
		b = native.AppendUint32(native.AppendUint32(b, m.Transfer.Direction), m.Transfer.Phase)
	}
	return b
}

func (m *Message) appendRegions(b []byte) []byte {
	wide := m.wide || slices.ContainsFunc(m.Regions, func(r Region) bool { return r.Flags != 0 || r.Domid != 0 })
	for _, r := range m.Regions {
		for _, v := range []uint64{r.Guest, r.Size, r.User, r.Offset} {
			b = native.AppendUint64(b, v)
		}
		if wide {
			b = native.AppendUint32(native.AppendUint32(b, r.Flags), r.Domid)
		}
	}
	return b
}
