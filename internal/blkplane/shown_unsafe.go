// SPDX-License-Identifier: Apache-2.0

package blkplane

import "unsafe"

// ShownSize is the size of a [Shown] in bytes.
const ShownSize = int(unsafe.Sizeof(Shown{}))

// ShownIn returns what is shown of several queues, in memory that is shared with another
// process: n * ShownSize bytes from the start of a page on.
func ShownIn(mem []byte, n int) []Shown {
	return unsafe.Slice((*Shown)(unsafe.Pointer(unsafe.SliceData(mem[:n*ShownSize]))), n)
}
