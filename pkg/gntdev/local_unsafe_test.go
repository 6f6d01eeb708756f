// SPDX-License-Identifier: Apache-2.0

package gntdev

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/xen"
)

// local makes s a copy between the whole of mem and the start of a guest's
// page.
func (s *Segment) local(dir Direction, domid xen.Domid, ref xen.Gref, mem []byte) {
	addr := uintptr(unsafe.Pointer(unsafe.SliceData(mem)))
	if dir == GuestIsDest {
		s.toGuest(domid, ref, 0, addr, uint16(len(mem)))
		return
	}
	s.fromGuest(domid, ref, 0, addr, uint16(len(mem)))
}

// bytes returns the segment as the kernel reads it.
func (s *Segment) bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(s)), unsafe.Sizeof(*s))
}

// mincore tells which pages of mem are present, one byte each.
func mincore(mem, here []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mem[0])), uintptr(len(mem)), uintptr(unsafe.Pointer(&here[0])))
	if errno != 0 {
		return errno
	}
	return nil
}
