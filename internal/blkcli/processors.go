// SPDX-License-Identifier: Apache-2.0

package blkcli

import (
	"runtime"
	"sync"

	"github.com/netbackd/netbackd/internal/heldwait"
)

// heldWaits is the most threads of queues that keep their P, a processor of the Go
// scheduler, while they wait for an event that is likely to come soon.
const heldWaits = 8

// raiseProcessors gives the process more Ps by so many, so that other goroutines have as many
// as before.
var raiseProcessors = sync.OnceFunc(func() {
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + heldWaits)
	heldwait.Allow(heldWaits)
})
