// SPDX-License-Identifier: Apache-2.0

package dataplane

// readRun estimates how many packets wait in a TAP queue. A run is a sequence of packets
// between two empty reads. Its length decides how many packets the next read asks for; an
// empty read is expensive with io_uring:
//
//	run        packets read       the next read asks for
//	first      0, none expected   1
//	within     < expected         expected - read
//	beyond     >= expected        read/4, at least rxFew; rxCalls without io_uring
//	endless    >= rxSure          the same, without a system call before io_uring
//
// A full read continues the run. A short one ends it; the next run is expected to be as
// long as the shorter one of the last two. A read that asks for one packet and gets it
// ends the run as well; then two are expected. Where that was in vain each time, as with a
// guest that answers a ping, it is tried less often.
type readRun struct {
	read     int // packets since the TAP was last found empty
	expected int // packets of this run
	previous int // packets of the run before

	lonely uint8 // runs of one packet in a row where two were expected, up to maxLonely
	alone  uint8 // packets to come that are taken alone before two are expected again
}

// A few runs of one packet happen among longer ones, so packets are taken alone only after
// more than someLonely of them in a row. maxLonely bounds how many in a row are: 2 to the
// power of the difference, less one. If others wait behind them, each of these costs a turn.
const (
	someLonely = 4
	maxLonely  = someLonely + 4
)

// want returns the number of packets to ask for.
func (r *readRun) want(byRing bool) int {
	most := rxCalls
	if byRing {
		most = rxReads
	}
	switch {
	case r.read < r.expected:
		return min(r.expected-r.read, most)
	case r.read == 0:
		return 1
	case byRing:
		// The run is longer than expected.
		return min(max(r.read/4, rxFew), most)
	}
	return most
}

// wantLarge returns the number of large packets to read one by one.
func (r *readRun) wantLarge() int {
	if r.read == 0 && r.expected <= 1 {
		return 1 // see note
	}
	return rxReads
}

// note updates the estimate after a read of got packets, and reports whether to read again
// at once. full is set if the read returned the requested number of packets.
func (r *readRun) note(got int, full bool) (more bool) {
	r.read += got
	// After a single packet, epoll finds out whether there is another as cheaply as
	// an empty read.
	if full && got > 1 {
		return true
	}
	// The next run is expected to be like the shorter one of the last two: an empty
	// read costs more than one more read.
	switch {
	case full && r.alone > 0:
		r.alone--
		r.expected = 1
	case full:
		r.expected = 2
	default:
		r.doubt()
		r.expected, r.previous = min(r.read, r.previous), r.read
	}
	r.read = 0
	return false
}

// doubt updates the number of packets that are taken alone, after a run.
func (r *readRun) doubt() {
	switch {
	case r.read > 1:
		r.lonely, r.alone = 0, 0
	case r.read == 1:
		r.lonely = min(r.lonely+1, maxLonely)
		r.alone = 1<<(max(r.lonely, someLonely)-someLonely) - 1
	}
}

// restart forgets the run under way and expects a single packet.
func (r *readRun) restart() { r.read, r.expected = 0, 1 }

// endless reports whether the run is so long that the next read is expected to succeed.
func (r *readRun) endless() bool { return r.read >= rxSure }
