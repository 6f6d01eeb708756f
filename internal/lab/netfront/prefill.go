// SPDX-License-Identifier: Apache-2.0

package netfront

import "slices"

// A cheap source of packets writes the bytes once into every page, and then sends the
// free pages as they are.

// Prefill writes head to the start of every free tx page, and sorts these pages. The rest
// of each page is unchanged. Later packets of Send or a Pump overwrite the pages that they
// use.
func (q *Queue) Prefill(head []byte) {
	slices.SortFunc(q.tx.free, func(a, b uint16) int { return int(b) - int(a) })
	for _, p := range q.tx.free {
		copy(q.tx.page(p), head)
	}
}

// SendPrefilled is like Send without a frame: it sends the size bytes that the next free
// pages hold already. Any page may be the first one of a packet, so each should begin with
// the packet's headers; in the later pages of a packet they are payload.
func (q *Queue) SendPrefilled(size int, m Meta) error {
	if q.dead != nil {
		return q.dead
	}
	if _, err := q.roomFor(size, m); err != nil {
		return err
	}
	q.sendPages(size, m)
	return nil
}
