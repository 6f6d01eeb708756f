// SPDX-License-Identifier: Apache-2.0

package netfront

import "slices"

// A cheap source of packets leaves its bytes where they
// are: it writes them once, into every page, and sends the pages that are free.

// Prefill writes head to the start of every tx page that is not under way, and puts
// these pages in order. The rest of the pages stays as it is. Packets sent with Send or
// a Pump later on overwrite the pages they use.
func (q *Queue) Prefill(head []byte) {
	slices.SortFunc(q.tx.free, func(a, b uint16) int { return int(b) - int(a) })
	for _, p := range q.tx.free {
		copy(q.tx.page(p), head)
	}
}

// SendPrefilled is like Send without a frame: it sends size bytes that the next free
// pages hold already. As no page is told from another, each of them should begin
// with the packet's headers; of those of a packet that takes several pages that is
// payload in all but the first.
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
