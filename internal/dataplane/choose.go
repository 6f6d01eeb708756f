// SPDX-License-Identifier: Apache-2.0

package dataplane

// Queues are spread over workers by what they cost. A queue moves from one worker to another if
// the busier one of the two gets better by leastGain. Then it cannot be of use to move it back
// while loads stay as they are: that would gain less than nothing.
//
// The load of a worker that is never idle does not tell how much more it would do. So of such
// workers one with more guests gives one of them to one with fewer. If that does not help, one
// with more busy queues gives a queue to one with fewer. Each such move makes the sum of the
// squares of these numbers less, so moves come to an end.
const (
	// busyLoad is the part of a processor from which on a worker is to be relieved.
	busyLoad = 0.5

	// leastGain is the part of a processor that a move must spare the busier worker.
	leastGain = 0.15

	// fullLoad is that of a worker which is hardly ever idle.
	fullLoad = 0.9

	// someLoad is that of a queue which counts among the busy ones.
	someLoad = 0.05
)

// portion names the queues that move together: one, or all of a vif with one worker.
type portion struct {
	queue *Queue // or the first one
	guest guestID
	from  int     // number of its worker
	load  float64 // part of a processor
	stays bool    // it must not move now

	ns, slots uint64 // since the last sample; see loads
}

// differ reports whether loads of workers are such that a move may be of use.
func differ(loads []float64) bool {
	most, least, full := 0.0, 1.0, 0
	for _, l := range loads {
		most, least = max(most, l), min(least, l)
		if l >= fullLoad {
			full++
		}
	}
	return most >= busyLoad && most-least >= 2*leastGain || full > 1
}

// choose returns the portion that is to move, and the number of its new worker; ok is false if
// none is.
func choose(loads []float64, portions []portion) (best *portion, to int, ok bool) {
	gain := leastGain
	for i := range portions {
		p := &portions[i]
		if p.stays || loads[p.from] < busyLoad {
			continue
		}
		for w, l := range loads {
			g := min(p.load, loads[p.from]-l-p.load)
			if w != p.from && (g > gain || best == nil && g == gain) {
				best, to, gain = p, w, g
			}
		}
	}
	if best == nil {
		best, to = chooseByNumber(loads, portions)
	}
	return best, to, best != nil
}

// chooseByNumber does the same for workers that are never idle, by the numbers of guests and of
// busy portions. It prefers the portion with the least load.
func chooseByNumber(loads []float64, portions []portion) (best *portion, to int) {
	type place struct {
		worker int
		guest  guestID
	}
	own := make(map[place]int) // busy portions of a guest
	guests, busy := make([]int, len(loads)), make([]int, len(loads))
	for i := range portions {
		p := &portions[i]
		if p.load < someLoad {
			continue
		}
		at := place{p.from, p.guest}
		if own[at]++; own[at] == 1 {
			guests[p.from]++
		}
		busy[p.from]++
	}
	var least [2]int // changes of the sums of squares
	for i := range portions {
		p := &portions[i]
		if p.stays || p.load < someLoad || loads[p.from] < fullLoad {
			continue
		}
		for w, l := range loads {
			if w == p.from || l < fullLoad {
				continue
			}
			leaves, comes := own[place{p.from, p.guest}] == 1, own[place{w, p.guest}] == 0
			if leaves != comes {
				continue // the guest would be with more workers than before, or fewer
			}
			more := [2]int{0, squares(busy[p.from], busy[w])}
			if leaves {
				more[0] = squares(guests[p.from], guests[w])
			}
			if less(more, least) || best != nil && more == least && p.load < best.load {
				best, to, least = p, w, more
			}
		}
	}
	return best, to
}

// squares returns by how much a*a + b*b grows if a becomes less by one, and b more.
func squares(a, b int) int { return 2*b + 1 - (2*a - 1) }

// less compares two pairs, the first numbers first.
func less(a, b [2]int) bool { return a[0] < b[0] || a[0] == b[0] && a[1] < b[1] }
