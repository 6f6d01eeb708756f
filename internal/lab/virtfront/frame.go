// SPDX-License-Identifier: Apache-2.0

package virtfront

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/netbackd/netbackd/internal/lab/traffic"
)

// etherType of test frames: one of those for local experiments (IEEE 802).
const etherType = 0x88b5

const (
	addrsLen  = 12
	headLen   = addrsLen + 2 + 8 // Ethernet header and number
	minFrame  = 60
	maxFrame  = 9014 // that of an MTU of 9,000 bytes
	seqStride = 1 << 20
)

// source says which end made a frame.
type source byte

const (
	fromGuest source = 1
	fromHost  source = 2
)

// other is the end that receives what s sends.
func (s source) other() source { return fromGuest + fromHost - s }

// mac is the Ethernet address of an end.
func (s source) mac() [6]byte { return [6]byte{2, 0x88, 0xb5, 0, 0, byte(s)} }

// Errors of frames.
var (
	errOther = errors.New("no test frame")
	errFrame = errors.New("the frame is not as it was sent")
)

// frameSizes are the sizes of frames by number, in bytes: those at the ends of pages, of
// buffers and of the MTU.
var frameSizes = [...]int{minFrame, 61, 128, 1514, 577, 1500, 2048, 4096, 9014, 1000, 4095, 66, 2185, 4097, 8999, 1514}

// frameSize is the size of frame seq if none may be larger than most bytes.
func frameSize(seq uint64, most int) int { return min(frameSizes[seq%uint64(len(frameSizes))], most) }

// putFrame writes frame seq to b, whose length is its size.
func putFrame(b []byte, from source, seq uint64) {
	to, src := from.other().mac(), from.mac()
	copy(b, to[:])
	copy(b[6:], src[:])
	binary.BigEndian.PutUint16(b[addrsLen:], etherType)
	binary.LittleEndian.PutUint64(b[addrsLen+2:], seq)
	traffic.Fill(b[headLen:], uint64(from), seq*seqStride)
}

// checkFrame returns the number of a frame whose size and every byte are right.
func checkFrame(b []byte, from source, most int) (seq uint64, err error) {
	if len(b) < headLen || binary.BigEndian.Uint16(b[addrsLen:]) != etherType || [6]byte(b[6:]) != from.mac() {
		return 0, errOther
	}
	seq = binary.LittleEndian.Uint64(b[addrsLen+2:])
	if want := frameSize(seq, most); len(b) != want {
		return seq, fmt.Errorf("%w: frame %d has %d bytes, want %d", errFrame, seq, len(b), want)
	}
	if [6]byte(b) != from.other().mac() {
		return seq, fmt.Errorf("%w: frame %d has another destination", errFrame, seq)
	}
	if wrong, first := traffic.Check(b[headLen:], uint64(from), seq*seqStride); wrong > 0 {
		return seq, fmt.Errorf("%w: %d bytes of frame %d differ, the first at %d", errFrame, wrong, seq, headLen+first)
	}
	return seq, nil
}
