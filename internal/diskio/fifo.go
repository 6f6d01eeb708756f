// SPDX-License-Identifier: Apache-2.0

package diskio

// fifo is a queue of completions with a fixed room.
type fifo struct {
	ring []Completion
	head int // oldest
	n    int
}

func newFIFO(room int) fifo { return fifo{ring: make([]Completion, room)} }

// put appends c. There must be room.
func (f *fifo) put(c Completion) {
	at := f.head + f.n
	if at >= len(f.ring) {
		at -= len(f.ring)
	}
	f.ring[at] = c
	f.n++
}

// take removes the oldest completions into dst and returns their number.
func (f *fifo) take(dst []Completion) int {
	n := min(f.n, len(dst))
	for i := range n {
		dst[i] = f.ring[f.head]
		if f.head++; f.head == len(f.ring) {
			f.head = 0
		}
	}
	f.n -= n
	return n
}
