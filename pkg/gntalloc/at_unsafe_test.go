// SPDX-License-Identifier: Apache-2.0

package gntalloc

import "unsafe"

func pointer(b []byte) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(b)) }
