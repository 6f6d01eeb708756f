// SPDX-License-Identifier: Apache-2.0

package virtqueue

import (
	"errors"
	"fmt"
)

// ErrMax is the error of a TakeFor that would need more chains than allowed. The queue stays
// usable.
var ErrMax = errors.New("virtqueue: a packet needs more chains than allowed")

// Reason says which rule a ring breaks. Reasons are small numbers, so that a program can
// count them in an array of [Reasons] elements.
type Reason uint8

// What a driver or a front end can do wrong. After any of these a queue takes no more
// chains, since it cannot tell where the next one starts.
const (
	// ReasonNone: nothing is wrong.
	ReasonNone Reason = iota
	// ReasonAvailIndex: more chains were made available than the queue has
	// descriptors, or fewer than were taken.
	ReasonAvailIndex
	// ReasonHead: the available ring names a descriptor that does not exist.
	ReasonHead
	// ReasonNext: a descriptor is followed by one that does not exist.
	ReasonNext
	// ReasonLoop: a chain has more descriptors than the queue or the indirect table.
	ReasonLoop
	// ReasonTooLong: a chain has more than [MaxPieces] pieces, or 4 GiB.
	ReasonTooLong
	// ReasonZeroLength: a descriptor has no bytes.
	ReasonZeroLength
	// ReasonAddress: a descriptor or indirect table is not within guest memory.
	ReasonAddress
	// ReasonOrder: a readable descriptor follows a writable one.
	ReasonOrder
	// ReasonIndirect: an indirect descriptor without VIRTIO_F_INDIRECT_DESC.
	ReasonIndirect
	// ReasonIndirectNested: an indirect descriptor in an indirect table.
	ReasonIndirectNested
	// ReasonIndirectNext: a descriptor follows an indirect one.
	ReasonIndirectNext
	// ReasonIndirectLength: the length of an indirect table is 0 or not a multiple
	// of 16.
	ReasonIndirectLength
	// ReasonIndirectRead: an indirect table could not be read.
	ReasonIndirectRead
	// ReasonNotWritable: a chain for data from the device has nothing to write to.
	ReasonNotWritable
	// ReasonSize: the size of a queue is 0, over [MaxSize], or, of a split ring, not a
	// power of 2.
	ReasonSize
	// ReasonRing: a part of the ring is too short or not aligned.
	ReasonRing
	// ReasonBase: the base of a packed ring is out of bounds.
	ReasonBase
	// ReasonInflight: the inflight region is too short, or is not that of this queue.
	ReasonInflight

	// Reasons is the number of reasons, ReasonNone included.
	Reasons = int(iota)
)

var reasonNames = [Reasons]string{
	"none", "avail_index", "head", "next", "loop", "too_long", "zero_length", "address", "order",
	"indirect", "indirect_nested", "indirect_next", "indirect_length", "indirect_read",
	"not_writable",
	"size", "ring", "base", "inflight",
}

var reasonTexts = [Reasons]string{
	"no error",
	"the available index is out of bounds",
	"the head of a chain is no descriptor of the queue",
	"the next descriptor of a chain does not exist",
	"a chain is a loop, or longer than its table",
	"a chain has too many pieces or bytes",
	"a descriptor has no bytes",
	"a descriptor is outside of guest memory",
	"a readable descriptor follows a writable one",
	"an indirect descriptor without the feature",
	"an indirect descriptor in an indirect table",
	"a descriptor follows an indirect one",
	"an indirect table has a bad length",
	"an indirect table could not be read",
	"a chain for data from the device has nothing to write to",
	"the size of the queue is not valid",
	"a part of the ring is too short or not aligned",
	"the base of the queue is out of bounds",
	"the inflight region does not fit the queue",
}

// String returns the name of a counter for r: lower case, with underscores.
func (r Reason) String() string {
	if int(r) < Reasons {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason_%d", uint8(r))
}

// Error is a broken rule. Fields that do not apply are 0.
type Error struct {
	Reason Reason
	// ID is the head of the chain in a split ring, the buffer id in a packed one. An
	// index that is out of bounds stands here too.
	ID uint16
	// Addr and Len are those of the descriptor.
	Addr uint64
	Len  uint32
	// Err is the error of a [Fetcher].
	Err error
}

func (e *Error) Error() string {
	text := e.Reason.String()
	if int(e.Reason) < Reasons {
		text = reasonTexts[e.Reason]
	}
	if e.Err != nil {
		return fmt.Sprintf("virtqueue: %s (chain %d, address %#x, %d bytes): %v", text, e.ID, e.Addr, e.Len, e.Err)
	}
	return fmt.Sprintf("virtqueue: %s (chain %d, address %#x, %d bytes)", text, e.ID, e.Addr, e.Len)
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }
