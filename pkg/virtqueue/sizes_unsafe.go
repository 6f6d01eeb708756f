// SPDX-License-Identifier: Apache-2.0

package virtqueue

import "unsafe"

// The sizes of the inflight region's structures, checked by the compiler: a struct of
// another size makes one of the two differences a negative constant, which uint refuses.
const (
	_ = uint(unsafe.Sizeof([2]uint64{})-descBytes) + uint(descBytes-unsafe.Sizeof([2]uint64{}))
)
