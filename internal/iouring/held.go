// SPDX-License-Identifier: Apache-2.0

package iouring

import (
	"os"
	"strings"
	"sync/atomic"
)

// Held waits. A thread that waits in a system call gives its processor, a P of the Go
// scheduler, to other goroutines. For that the scheduler's monitor looks at it every 20 us,
// takes the P away, wakes a thread for it, and is itself woken when the wait ends. If
// events come every 50 us, this takes more processor time than the thread's own work. In a
// held wait the thread keeps the P, and the monitor sleeps. When other goroutines need the
// thread to stop, or after some 10 ms without an event, the scheduler interrupts the wait
// by a signal; then the thread goes on waiting in the usual way. So a thread that has
// nothing to do holds no P.
var (
	held      atomic.Int32 // waits under way that keep their P
	heldLimit atomic.Int32
)

// HoldProcessors lets up to n threads of the process keep their P while they wait in
// SubmitAndWait. The caller must have raised GOMAXPROCS by n, so that other goroutines have
// as many as before. The default is 0.
func HoldProcessors(n int) {
	if strings.Contains(os.Getenv("GODEBUG"), "asyncpreemptoff=1") {
		n = 0 // the scheduler could not interrupt a wait
	}
	heldLimit.Store(int32(n))
}

// holding returns whether the thread may keep its P in its next wait, and counts it.
func holding() bool {
	limit := heldLimit.Load()
	if limit == 0 {
		return false
	}
	if held.Add(1) > limit {
		held.Add(-1)
		return false
	}
	return true
}
