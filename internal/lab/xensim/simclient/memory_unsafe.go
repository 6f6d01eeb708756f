// SPDX-License-Identifier: Apache-2.0

package simclient

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/gntdev"
)

const pageSize = 4096

// mapPages maps the given pages of file side by side, with one call for each
// run of consecutive ones.
func mapPages(file int, pages []uint32, prot int) ([]byte, error) {
	size := uintptr(len(pages)) * pageSize
	base, err := unix.MmapPtr(-1, 0, nil, size, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	mem := unsafe.Slice((*byte)(base), size)
	if err := mapPagesAt(mem, file, pages, prot); err != nil {
		_ = unix.MunmapPtr(base, size)
		return nil, err
	}
	return mem, nil
}

// mapPagesAt is like mapPages, in the place of mem.
func mapPagesAt(mem []byte, file int, pages []uint32, prot int) error {
	base := unsafe.Pointer(unsafe.SliceData(mem))
	for i := 0; i < len(pages); {
		n := 1
		for i+n < len(pages) && pages[i+n] == pages[i]+uint32(n) {
			n++
		}
		_, err := unix.MmapPtr(file, int64(pages[i])*pageSize, unsafe.Add(base, i*pageSize), uintptr(n)*pageSize,
			prot, unix.MAP_SHARED|unix.MAP_FIXED)
		if err != nil {
			return err
		}
		i += n
	}
	return nil
}

// clearPlace puts anonymous memory in the place of mem.
func clearPlace(mem []byte) error {
	_, err := unix.MmapPtr(-1, 0, unsafe.Pointer(unsafe.SliceData(mem)), uintptr(len(mem)),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED)
	return err
}

// aligned reports whether mem starts at a page.
func aligned(mem []byte) bool { return uintptr(unsafe.Pointer(unsafe.SliceData(mem)))%pageSize == 0 }

// unmapPages undoes mapPages.
func unmapPages(mem []byte) error {
	return unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(mem)), uintptr(len(mem)))
}

// segmentBytes returns the memory of segs, which have the layout of the wire.
func segmentBytes(segs []gntdev.Segment) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(segs))), len(segs)*int(unsafe.Sizeof(gntdev.Segment{})))
}

// probed is the word that the simulation looks for in this process. It is not on a stack,
// which could move, nor on the heap, where nothing else would refer to it.
var probed = wire.Probed

func probeAddr() uint64 { return uint64(uintptr(unsafe.Pointer(&probed))) }

// proof is the word by which this process proves that it adopts a file; see probed.
var proof uint32

func proofAddr() uint64 { return uint64(uintptr(unsafe.Pointer(&proof))) }
