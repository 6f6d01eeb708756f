// SPDX-License-Identifier: Apache-2.0

package dataplane

import "unsafe"

// StatsSize is the memory of the counters of one queue, in bytes.
const StatsSize = int(unsafe.Sizeof(Stats{}))

// StatsIn returns the counters of several queues in memory that is shared with another
// process, n * StatsSize bytes from the start of a page on.
func StatsIn(mem []byte, n int) []Stats {
	return unsafe.Slice((*Stats)(unsafe.Pointer(unsafe.SliceData(mem[:n*StatsSize]))), n)
}
