// SPDX-License-Identifier: Apache-2.0

package vhostfront

import (
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/vhostuser"
)

// Bits of virtio features.
const (
	featCsum      = 1 << 0
	featGuestCsum = 1 << 1
	featMTU       = 1 << 3
	featGuestTSO4 = 1 << 7
	featGuestTSO6 = 1 << 8
	featGuestECN  = 1 << 9
	featHostTSO4  = 1 << 11
	featHostTSO6  = 1 << 12
	featHostECN   = 1 << 13
	featMergeable = 1 << 15
	featStatus    = 1 << 16
	featCtrlVQ    = 1 << 17
	featAnnounce  = 1 << 21
	featMQ        = 1 << 22
	featLogAll    = 1 << 26
	featIndirect  = 1 << 28
	featEventIdx  = 1 << 29
	featVersion1  = 1 << 32
	featPacked    = 1 << 34
	featInOrder   = 1 << 35
)

// Config is the configuration of a front end. Its zero value, with a socket, is that of
// Linux's driver with one pair of queues.
type Config struct {
	// Socket is the path of the unix socket.
	Socket string `json:"socket,omitempty"`
	// Server listens on Socket instead of connecting to it.
	Server bool `json:"server,omitempty"`
	// Pairs is the number of pairs of queues; 0 means 1.
	Pairs int `json:"pairs,omitempty"`
	// Size is the number of descriptors of a ring; 0 means 256.
	Size int `json:"size,omitempty"`

	// Features that are asked for in addition.
	Packed  bool `json:"packed,omitempty"`
	InOrder bool `json:"in_order,omitempty"`
	// Features that are not asked for.
	NoMergeable bool `json:"no_mergeable,omitempty"`
	NoIndirect  bool `json:"no_indirect,omitempty"`
	NoEventIdx  bool `json:"no_event_idx,omitempty"`
	NoCsum      bool `json:"no_csum,omitempty"`       // checksums and segments that the guest leaves to the host
	NoTSO       bool `json:"no_tso,omitempty"`        // only the segments
	NoGuestCsum bool `json:"no_guest_csum,omitempty"` // the same that the host leaves to the guest
	NoGuestTSO  bool `json:"no_guest_tso,omitempty"`
	// Legacy is a device of before virtio 1.0: its vnet header has 10 bytes unless buffers
	// are mergeable.
	Legacy bool `json:"legacy,omitempty"`
	// MTU is sent to the back end if it offers that; 0 means none.
	MTU int `json:"mtu,omitempty"`

	// Inflight keeps the back end's inflight region for its successor.
	Inflight bool `json:"inflight,omitempty"`
	// Slots adds and removes single regions of memory instead of sending whole tables.
	Slots bool `json:"slots,omitempty"`
	// Regions is the number of regions of memory, with gaps between them; 0 means 1.
	Regions int `json:"regions,omitempty"`
	// RxBuffer is the size of a mergeable buffer in bytes; 0 means 4096.
	RxBuffer int `json:"rx_buffer,omitempty"`
	// Strict varies how packets are laid out in descriptors, and checks each byte of memory
	// that the back end may not write.
	Strict bool `json:"strict,omitempty"`
}

// maxPairs bounds the pairs of queues.
const maxPairs = 8

func (c Config) withDefaults() Config {
	c.Pairs = min(max(c.Pairs, 1), maxPairs)
	if c.Size == 0 {
		c.Size = 256
	}
	c.Regions = min(max(c.Regions, 1), 8)
	if c.RxBuffer == 0 {
		c.RxBuffer = 4096
	}
	return c
}

// features returns the bits to ask for.
func (c Config) features() uint64 {
	f := uint64(featVersion1 | featMergeable | featIndirect | featEventIdx | featStatus | featCtrlVQ | featAnnounce)
	csum := uint64(featCsum | featHostTSO4 | featHostTSO6 | featHostECN)
	guest := uint64(featGuestCsum | featGuestTSO4 | featGuestTSO6 | featGuestECN)
	f |= csum | guest
	for _, o := range []struct {
		off  bool
		bits uint64
	}{
		{c.NoMergeable, featMergeable}, {c.NoIndirect, featIndirect}, {c.NoEventIdx, featEventIdx},
		{c.NoCsum, csum}, {c.NoTSO, csum &^ featCsum},
		{c.NoGuestCsum, guest}, {c.NoGuestTSO, guest &^ featGuestCsum},
		{c.Legacy, featVersion1},
	} {
		if o.off {
			f &^= o.bits
		}
	}
	for _, o := range []struct {
		on   bool
		bits uint64
	}{{c.Packed, featPacked}, {c.InOrder, featInOrder}, {c.MTU > 0, featMTU}, {c.Pairs > 1, featMQ}} {
		if o.on {
			f |= o.bits
		}
	}
	return f
}

// protocol returns the protocol features to ask for.
func (c Config) protocol() uint64 {
	p := uint64(vhostuser.ProtocolNet)
	if !c.Inflight {
		p &^= vhostuser.ProtocolInflight
	}
	if !c.Slots {
		p &^= vhostuser.ProtocolMemSlots
	}
	return p
}

// rules holds the features in use and the limits that follow from them.
type rules struct {
	features uint64
	hdr      int // length of a vnet header in the rings
	strict   bool
	mtu      int // of the guest's card; 0: not checked
}

func newRules(features uint64, c Config) rules {
	r := rules{features: features, hdr: tap.VnetHdrLen, strict: c.Strict, mtu: c.MTU}
	if features&(featVersion1|featMergeable) == 0 {
		r.hdr = tap.VnetHdrLen - 2
	}
	return r
}

func (r *rules) has(bit uint64) bool { return r.features&bit != 0 }

// offload returns the offloads for the TAP of the guest's card: the work that the back end
// completes.
func (r *rules) offload() tap.Offload {
	o := tap.Offload{Csum: r.has(featCsum)}
	o.TSO4 = o.Csum && r.has(featHostTSO4)
	o.TSO6 = o.Csum && r.has(featHostTSO6)
	return o
}
