// SPDX-License-Identifier: Apache-2.0

package xentest

import (
	"runtime"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/gntdev"
)

// mapPages maps pages of a file side by side, with one call for each run of consecutive
// ones.
func mapPages(fd int, pages []int, prot gntdev.Prot) ([]byte, error) {
	flags := unix.PROT_READ
	if prot == gntdev.ReadWrite {
		flags |= unix.PROT_WRITE
	}
	size := uintptr(len(pages)) * pageSize
	base, err := unix.MmapPtr(-1, 0, nil, size, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(pages); {
		n := 1
		for i+n < len(pages) && pages[i+n] == pages[i]+n {
			n++
		}
		if _, err := unix.MmapPtr(fd, int64(pages[i])*pageSize, unsafe.Add(base, i*pageSize), uintptr(n)*pageSize,
			flags, unix.MAP_SHARED|unix.MAP_FIXED); err != nil {
			_ = unix.MunmapPtr(base, size)
			return nil, err
		}
		i += n
	}
	return unsafe.Slice((*byte)(base), size), nil
}

// unmapPages undoes mapPages.
func unmapPages(mem []byte) error {
	return unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(mem)), uintptr(len(mem)))
}

// replace puts shared pages in the place of mem, and maps them a second time.
func replace(mem []byte) (view []byte, err error) {
	fd, err := unix.MemfdCreate("xentest", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(len(mem))); err != nil {
		return nil, err
	}
	const flags = unix.PROT_READ | unix.PROT_WRITE
	p, err := unix.MmapPtr(fd, 0, nil, uintptr(len(mem)), flags, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	if _, err := unix.MmapPtr(fd, 0, unsafe.Pointer(unsafe.SliceData(mem)), uintptr(len(mem)), flags, unix.MAP_SHARED|unix.MAP_FIXED); err != nil {
		_ = unix.MunmapPtr(p, uintptr(len(mem)))
		return nil, err
	}
	return unsafe.Slice((*byte)(p), len(mem)), nil
}

// clearPlace undoes replace: it puts anonymous memory in the place of mem.
func clearPlace(mem []byte) error {
	_, err := unix.MmapPtr(-1, 0, unsafe.Pointer(unsafe.SliceData(mem)), uintptr(len(mem)),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED)
	return err
}

// address returns the address of a slice's first byte.
func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// move copies between a page of the guest and local memory in the direction of s. It
// returns EFAULT if the local memory is not there, as the kernel does.
func move(s *gntdev.Segment, page []byte) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch f := recover().(type) {
		case nil:
		case runtime.Error:
			err = unix.EFAULT
		default:
			panic(f)
		}
	}()
	addr := s.Local()
	local := unsafe.Slice(*(**byte)(unsafe.Pointer(&addr)), len(page))
	if s.Direction() == gntdev.GuestIsSource {
		copy(local, page)
	} else {
		copy(page, local)
	}
	return nil
}
