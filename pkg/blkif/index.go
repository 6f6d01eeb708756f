// SPDX-License-Identifier: Apache-2.0

package blkif

// Index is a ring index: it runs freely over 32 bits and wraps. Two indices of
// one ring compare only by their distance.
type Index uint32

// Sub returns the distance from b to i, modulo 2^32.
func (i Index) Sub(b Index) uint32 { return uint32(i - b) }

// Add returns the index n slots later.
func (i Index) Add(n uint32) Index { return i + Index(n) }

// crossed reports whether moving a producer from old to now passed event, so that the
// peer wants to be notified (ring.h, RING_PUSH_RESPONSES_AND_CHECK_NOTIFY). It is
// correct across the wrap.
func crossed(event, old, now Index) bool {
	return now.Sub(event) < now.Sub(old)
}
