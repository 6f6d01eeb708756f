// SPDX-License-Identifier: Apache-2.0

// Package heldwait lets threads wait in a system call without telling the Go scheduler.
//
// A thread that waits in a system call gives its processor, a P of the Go scheduler, to
// other goroutines. For that the scheduler's monitor looks at it every 20 us, takes the P
// away, wakes a thread for it, and is itself woken when the wait ends. If events come every
// 50 us, this takes more processor time than the thread's own work. In a held wait the
// thread keeps the P, and the monitor sleeps. When other goroutines need the thread to stop,
// or after some 10 ms, the scheduler interrupts the wait by a signal; then a thread without
// events goes on waiting in the usual way. So one that has nothing to do holds no P.
//
// A held wait must end with EINTR when a signal comes, as epoll_wait and io_uring_enter do.
// A call that cannot be interrupted must not be made in this way: no goroutine of the
// process could collect garbage until it ends.
package heldwait

import (
	"os"
	"strings"
	"sync/atomic"
)

var (
	held  atomic.Int32 // waits under way that keep their P
	limit atomic.Int32
)

// Allow lets up to n threads of the process keep their P while they wait. The caller must
// have raised GOMAXPROCS by n, so that other goroutines have as many as before. The default
// is 0.
func Allow(n int) {
	if strings.Contains(os.Getenv("GODEBUG"), "asyncpreemptoff=1") {
		n = 0 // the scheduler could not interrupt a wait
	}
	limit.Store(int32(n))
}

// Begin reports whether the thread may keep its P in its next wait, and counts it. If so,
// End must follow the wait.
func Begin() bool {
	most := limit.Load()
	if most == 0 {
		return false
	}
	if held.Add(1) > most {
		held.Add(-1)
		return false
	}
	return true
}

// End notes the end of a wait for which Begin returned true.
func End() { held.Add(-1) }

// Held returns the number of waits under way that keep their P.
func Held() int { return int(held.Load()) }
