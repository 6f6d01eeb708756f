// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"runtime"
	"sync"

	"github.com/netbackd/netbackd/internal/heldwait"
)

// maxHeldWaits is the most workers that keep their P, a processor of the Go scheduler, while
// they wait for an event that is likely to come soon.
const maxHeldWaits = 32

// firstProcessors returns the number of Ps with which the process began: one for each CPU,
// unless GOMAXPROCS in the environment says otherwise.
var firstProcessors = sync.OnceValue(func() int { return runtime.GOMAXPROCS(0) })

// setProcessors gives the process its Ps.
//
// A worker that waits in the kernel in the usual way holds its P until the runtime takes it
// away. If no P is free, that is within 20 µs, and again after each wake, with a thread that
// sleeps 20 µs at a time: more work than the wake itself. One free P avoids that.
func setProcessors(workers int) {
	runtime.GOMAXPROCS(processors(firstProcessors(), workers))
	heldwait.Allow(heldWaits(workers))
}

// processors returns the number of Ps for so many workers on a host with so many CPUs.
func processors(cpus, workers int) int { return max(cpus, workers+1) + heldWaits(workers) }

func heldWaits(workers int) int { return min(workers, maxHeldWaits) }
