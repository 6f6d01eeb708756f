// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"unsafe"

	"github.com/netbackd/netbackd/pkg/staticgrant"
)

// pageAddr is where a mapped page is, for a system call. The page is not the Go
// heap's, so the number stays good for as long as the page is mapped.
func pageAddr(p *staticgrant.Page) uintptr { return uintptr(unsafe.Pointer(p)) }
