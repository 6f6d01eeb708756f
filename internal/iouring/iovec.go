// SPDX-License-Identifier: Apache-2.0

package iouring

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// MaxIovecs bounds one array of iovecs.
const MaxIovecs = 1 << 16

// Iovecs is an array of struct iovec outside of the Go heap, for Readv and Writev, and
// for readv(2) and writev(2) by address.
type Iovecs struct {
	mem []byte
	vec []iovec
}

// NewIovecs makes an array of n parts.
func NewIovecs(n int) (*Iovecs, error) {
	if n < 1 || n > MaxIovecs {
		return nil, fmt.Errorf("array of %d iovecs: want 1 to %d", n, MaxIovecs)
	}
	mem, err := unix.Mmap(-1, 0, n*16, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map %d iovecs: %w", n, err)
	}
	return &Iovecs{mem: mem, vec: view[iovec](mem, 0, uint32(n))}, nil
}

// Set sets part i to the n bytes at addr, which must not be on the Go heap.
func (v *Iovecs) Set(i int, addr uintptr, n uint32) {
	v.vec[i] = iovec{base: addr, len: uint64(n)}
}

// At returns the address of part i, the start of an array of parts.
func (v *Iovecs) At(i int) uintptr { return address(v.mem[i*16:]) }

// Len returns the number of parts.
func (v *Iovecs) Len() int { return len(v.vec) }

// Close unmaps the array. No batch may use it then.
func (v *Iovecs) Close() error {
	if v.mem == nil {
		return nil
	}
	err := unix.Munmap(v.mem)
	v.mem, v.vec = nil, nil
	return err
}
