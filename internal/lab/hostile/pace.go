// SPDX-License-Identifier: Apache-2.0

package hostile

import (
	"context"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// look is the pause between two looks at the rings. A backend needs some 50 µs to empty a
// full ring of 256 slots even at 200 ns a slot.
const look = 40 * time.Microsecond

// pause sleeps for d without Go's timers, whose threads would cost more than the load.
func pause(d time.Duration) {
	ts := unix.NsecToTimespec(d.Nanoseconds())
	_ = unix.Nanosleep(&ts, nil) // an interruption is an early look
}

// rest pauses after a look, unless it found a ring empty.
func rest(empty bool) {
	if empty {
		runtime.Gosched()
		return
	}
	pause(look)
}

// pacer says how much a load may do by now.
type pacer struct {
	rate  float64 // per second; 0: no bound
	began time.Time
	done  float64
}

func newPacer(rate float64) *pacer { return &pacer{rate: rate, began: time.Now()} }

// room returns the number of items that may be done now, most at the most.
func (p *pacer) room(most int) int {
	if p.rate <= 0 {
		return most
	}
	// What was not done in time is lost, but for a few milliseconds' worth: else a load that
	// had to wait would be stronger afterwards than it may be.
	due := p.rate*time.Since(p.began).Seconds() - p.done
	if late := p.rate * 0.005; due > late+1 {
		p.done += due - late - 1
		due = late + 1
	}
	return min(max(int(due), 0), most)
}

// did counts items.
func (p *pacer) did(n int) { p.done += float64(n) }

// wait waits until one item may be done, or ctx ends.
func (p *pacer) wait(ctx context.Context) bool {
	for p.room(1) == 0 {
		if ctx.Err() != nil {
			return false
		}
		pause(min(time.Duration(float64(time.Second)/p.rate), 5*time.Millisecond))
	}
	p.did(1)
	return ctx.Err() == nil
}
