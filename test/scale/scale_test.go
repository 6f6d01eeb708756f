// SPDX-License-Identifier: Apache-2.0

package scale

import (
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/lab/crowd"
)

// The bars: connected vifs whose guests send nothing do not make the daemon run, and each
// takes so much of its memory beyond the rings that it has mapped.
const (
	idleTime   = 2100 * time.Millisecond // longer than the daemon's heap takes between two looks, until it rests
	vifMemory  = 32 << 10
	fewMemory  = 48 << 10 // what 130 vifs may seem to take: the heaps of both processes grow in steps
	restWithin = 40 * time.Second
)

// threadMemory is about what Go takes for a thread: stacks of its scheduler and of its signal
// handler. The number of threads depends on how many calls block at a time, which is bounded,
// and not on the number of vifs.
const threadMemory = 40 << 10

// ringMemory is the size of the rings of a vif of one queue, in bytes.
const ringMemory = 8192

// sharedMemory is the page of a vif's counters, which the daemon and its packet process have both
// mapped: the kernel's figures have it twice.
const sharedMemory = 4096

// perVif returns the bytes of the daemon, with its packet processes, for each of n vifs of one queue
// that were connected between two readings, without the rings, which it has mapped.
func perVif(before, after crowd.Usage, n int) int64 {
	more := after.Memory.All() - before.Memory.All()
	return (more-int64(len(after.Threads)-len(before.Threads))*threadMemory)/int64(n) - ringMemory - sharedMemory
}

// TestIdle: connected vifs without traffic do not wake the daemon, and take little of its
// memory. A successor serves them all, and lists them.
func TestIdle(t *testing.T) {
	h := newHost(t)
	const few, many = 20, 150
	h.connected(few)
	before := h.comeToRest(idleTime, restWithin)
	h.connected(many - few)
	after := h.comeToRest(idleTime, restWithin)
	each := perVif(before, after, many-few)
	t.Logf("%d vifs: %d bytes each; %d threads, %d before", many, each, len(after.Threads), len(before.Threads))
	if each > fewMemory {
		t.Errorf("%d bytes for each vif, at most %d", each, fewMemory)
	}
	h.takeover()
	h.listed(1)
}
