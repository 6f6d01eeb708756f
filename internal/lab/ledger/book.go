// SPDX-License-Identifier: Apache-2.0

package ledger

import "fmt"

// Ordered is the book of a flow whose packets must arrive in order and without loss. A death of
// the back end may repeat the packets that were sent and not answered: from one of the last
// packets on, all follow again.
type Ordered struct {
	next  uint64 // the number that must come
	high  uint64 // one above the highest that came
	may   int    // deaths since the back end was seen to be at rest, less rewinds
	again uint64 // packets repeated since the last call of Rest

	Repeated uint64 // packets in all
}

// Died allows one rewind.
func (o *Ordered) Died() { o.may++ }

// Rest takes the permission for rewinds back, and returns the number of packets that were
// repeated since the last call.
func (o *Ordered) Rest() uint64 {
	n := o.again
	o.again, o.may = 0, 0
	return n
}

// High returns the number of different packets that arrived.
func (o *Ordered) High() uint64 { return o.high }

// Arrived enters a packet. An error says what is wrong with its place.
func (o *Ordered) Arrived(seq uint64) (err error) {
	switch {
	case seq > o.next:
		err = fmt.Errorf("packets %d to %d are lost", o.next, seq-1)
	case seq < o.next && o.may == 0:
		err = fmt.Errorf("packet %d came after %d, without a death", seq, o.next-1)
	case seq < o.next:
		o.may--
	}
	if seq < o.high {
		o.again++
		o.Repeated++
	}
	o.next = seq + 1
	o.high = max(o.high, o.next)
	return err
}

// window is the number of packets behind the highest one of which a Loose book knows which came.
const window = 1 << 16

// Loose is the book of a flow whose packets may be lost, repeated and reordered when the back
// end dies.
type Loose struct {
	high  uint64
	seen  [window / 64]uint64 // bits of the last window packets
	since Tally
}

// Tally says what became of the packets of a flow.
type Tally struct {
	Lost, Repeated, Late uint64
}

// Add adds another tally.
func (t *Tally) Add(o Tally) {
	t.Lost += o.Lost
	t.Repeated += o.Repeated
	t.Late += o.Late
}

func (l *Loose) bit(seq uint64) (word *uint64, mask uint64) {
	return &l.seen[seq%window/64], 1 << (seq % 64)
}

// High returns one above the highest number that arrived.
func (l *Loose) High() uint64 { return l.high }

// Arrived enters a packet.
func (l *Loose) Arrived(seq uint64) error {
	if l.high > seq+window || seq >= l.high+window {
		return fmt.Errorf("packet %d came after %d", seq, int64(l.high)-1)
	}
	for ; l.high < seq; l.high++ {
		w, m := l.bit(l.high)
		*w &^= m
		l.since.Lost++
	}
	w, m := l.bit(seq)
	switch {
	case seq == l.high:
		l.high++
		*w |= m
	case *w&m != 0:
		l.since.Repeated++
	default:
		*w |= m
		l.since.Late++
		if l.since.Lost > 0 {
			l.since.Lost--
		}
	}
	return nil
}

// Rest returns what became of the packets since the last call.
func (l *Loose) Rest() Tally {
	t := l.since
	l.since = Tally{}
	return t
}
