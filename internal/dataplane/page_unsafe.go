// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"unsafe"

	"github.com/netbackd/netbackd/pkg/staticgrant"
)

// pageAddr returns the address of a mapped page, for a system call. The page is not on
// the Go heap, so the address is valid as long as the page is mapped.
func pageAddr(p *staticgrant.Page) uintptr { return uintptr(unsafe.Pointer(p)) }
