// SPDX-License-Identifier: Apache-2.0

package blkif

import (
	"fmt"
	"math/bits"
	"runtime"
)

// Protocol is the layout of slots that a frontend declares with its key "protocol": that
// of a C compiler for its architecture. The zero value is not valid.
type Protocol uint8

// Protocols (XEN_IO_PROTO_ABI_ of protocols.h). The layout of ARM is that of X8664.
const (
	X8664 Protocol = iota + 1
	X8632
	ARM
)

var protocolKeys = [...]string{X8664: "x86_64-abi", X8632: "x86_32-abi", ARM: "arm-abi"}

// Protocols returns all protocols.
func Protocols() []Protocol { return []Protocol{X8664, X8632, ARM} }

// NativeProtocol returns the protocol of a frontend on this machine.
func NativeProtocol() Protocol {
	switch runtime.GOARCH {
	case "amd64":
		return X8664
	case "386":
		return X8632
	}
	return ARM
}

// ParseProtocol parses the value of the key "protocol". For a frontend without the key it
// returns what backends assume: x86_32-abi on x86, even if that is not the native one,
// and the native one elsewhere.
func ParseProtocol(key string, present bool) (Protocol, error) {
	if !present {
		if NativeProtocol() == ARM {
			return ARM, nil
		}
		return X8632, nil
	}
	for p := X8664; p <= ARM; p++ {
		if protocolKeys[p] == key {
			return p, nil
		}
	}
	return 0, fmt.Errorf("protocol %q is unknown", key)
}

// String returns the value of the key "protocol".
func (p Protocol) String() string {
	if p.valid() {
		return protocolKeys[p]
	}
	return fmt.Sprintf("unknown(%d)", uint8(p))
}

func (p Protocol) valid() bool { return p >= X8664 && p <= ARM }

// Sizes of slots and responses in 32-bit words.
const (
	slotWords64 = 28
	slotWords32 = 27
	rspWords64  = 4
	rspWords32  = 3
)

func (p Protocol) slotWords() uint32 {
	if p == X8632 {
		return slotWords32
	}
	return slotWords64
}

func (p Protocol) rspWords() uint32 {
	if p == X8632 {
		return rspWords32
	}
	return rspWords64
}

// SlotSize returns the size of a slot in bytes.
func (p Protocol) SlotSize() int { return int(p.slotWords()) * 4 }

// ResponseSize returns the size of a response in bytes.
func (p Protocol) ResponseSize() int { return int(p.rspWords()) * 4 }

// RingSize returns the number of slots in a ring of 2^order pages: the largest power of two
// that fits after the header of 64 bytes (ring.h, __RING_SIZE). It is the same for all
// protocols.
func RingSize(order int) uint32 { return 32 << order }

// ringSize computes it, from the number of bytes of the ring.
func (p Protocol) ringSize(n int) uint32 {
	slots := uint32((n - 4*wRing) / p.SlotSize())
	return 1 << (bits.Len32(slots) - 1)
}
