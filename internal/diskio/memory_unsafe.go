// SPDX-License-Identifier: Apache-2.0

package diskio

import "unsafe"

// iovec is struct iovec with the address as a number, as in package iouring.
type iovec struct {
	base uintptr
	len  uint64
}

var _ [16]byte = [unsafe.Sizeof(iovec{})]byte{}

// address returns the address of mem, which is not on the Go heap.
func address(mem []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(mem))) }

// memory returns the n bytes at addr, which are mapped and not on the Go heap.
func memory(addr uintptr, n uint64) []byte {
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&addr)), n)
}

// iovecs returns the n iovecs at addr, which are mapped and not on the Go heap.
func iovecs(addr uintptr, n uint64) []iovec {
	return unsafe.Slice(*(**iovec)(unsafe.Pointer(&addr)), n)
}
