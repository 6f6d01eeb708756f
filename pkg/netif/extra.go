// SPDX-License-Identifier: Apache-2.0

package netif

import "encoding/binary"

// GSOInfo is the body of a GSO extra.
type GSOInfo struct {
	Size     uint16 // payload bytes per segment
	Type     GSOType
	Features uint16 // no bits are defined; 0
}

// HashInfo is the body of a hash extra.
type HashInfo struct {
	Type      uint8 // HashIPv4 ... HashIPv6TCP, a number and not a mask
	Algorithm uint8
	Value     uint32
}

// More reports whether another extra slot follows.
func (e ExtraInfo) More() bool { return e.Flags&ExtraMore != 0 }

// GSO reads the body as that of a GSO extra.
func (e ExtraInfo) GSO() GSOInfo {
	return GSOInfo{
		Size:     binary.NativeEndian.Uint16(e.Body[0:]),
		Type:     GSOType(e.Body[2]),
		Features: binary.NativeEndian.Uint16(e.Body[4:]),
	}
}

// Addr reads the body as the Ethernet address of a multicast extra.
func (e ExtraInfo) Addr() [6]byte { return e.Body }

// Hash reads the body as that of a hash extra. The value has its least significant
// byte first on every host.
func (e ExtraInfo) Hash() HashInfo {
	return HashInfo{
		Type:      e.Body[0],
		Algorithm: e.Body[1],
		Value:     binary.LittleEndian.Uint32(e.Body[2:]),
	}
}

// Headroom reads the body as that of an XDP extra: the bytes before the data in the
// page of the packet's first slot.
func (e ExtraInfo) Headroom() uint16 { return binary.NativeEndian.Uint16(e.Body[0:]) }

// NewGSO makes a GSO extra.
func NewGSO(g GSOInfo) ExtraInfo {
	e := ExtraInfo{Type: ExtraGSO}
	binary.NativeEndian.PutUint16(e.Body[0:], g.Size)
	e.Body[2] = byte(g.Type)
	binary.NativeEndian.PutUint16(e.Body[4:], g.Features)
	return e
}

// NewMcast makes an extra that adds an address to the multicast list, or
// removes it.
func NewMcast(add bool, addr [6]byte) ExtraInfo {
	e := ExtraInfo{Type: ExtraMcastDel, Body: addr}
	if add {
		e.Type = ExtraMcastAdd
	}
	return e
}

// NewHash makes a hash extra.
func NewHash(h HashInfo) ExtraInfo {
	e := ExtraInfo{Type: ExtraHash}
	e.Body[0] = h.Type
	e.Body[1] = h.Algorithm
	binary.LittleEndian.PutUint32(e.Body[2:], h.Value)
	return e
}

// NewXDP makes an XDP extra.
func NewXDP(headroom uint16) ExtraInfo {
	e := ExtraInfo{Type: ExtraXDP}
	binary.NativeEndian.PutUint16(e.Body[0:], headroom)
	return e
}
