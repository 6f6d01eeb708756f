// SPDX-License-Identifier: Apache-2.0

package virtqueue

import (
	"sync/atomic"
	"unsafe"
)

// A ring is shared with the driver. Words that the driver writes are loaded atomically: the
// compiler may neither repeat nor split such a load, so each is read once. Go has no atomics
// of 16 bits, so a 16-bit word is taken out of the aligned 32-bit word around it, which is in
// the same page.
//
// Virtio 1 is little-endian, and so are the machines that this package is for.

// words views mem as 32-bit words. It fails if mem is not aligned to align bytes.
func words(mem []byte, align uintptr) ([]uint32, bool) {
	p := unsafe.Pointer(unsafe.SliceData(mem))
	if len(mem) < 4 || uintptr(p)%align != 0 {
		return nil, false
	}
	return unsafe.Slice((*uint32)(p), len(mem)/4), true
}

// doubles views mem as 64-bit words. It fails if mem is not aligned to them.
func doubles(mem []byte) ([]uint64, bool) {
	p := unsafe.Pointer(unsafe.SliceData(mem))
	if len(mem) < 8 || uintptr(p)%8 != 0 {
		return nil, false
	}
	return unsafe.Slice((*uint64)(p), len(mem)/8), true
}

// table views mem as n descriptors.
func table(mem []byte, n int) ([][2]uint64, bool) {
	p := unsafe.Pointer(unsafe.SliceData(mem))
	if len(mem) < n*descBytes || uintptr(p)%descBytes != 0 {
		return nil, false
	}
	return unsafe.Slice((*[2]uint64)(p), n), true
}

// halves is shared memory as 16-bit words.
type halves struct {
	w    []uint32
	skip uint32 // 16-bit words of w before the first one
}

// newHalves views n bytes of mem, which is aligned to 2.
func newHalves(mem []byte, n int) (halves, bool) {
	p := unsafe.Pointer(unsafe.SliceData(mem))
	if len(mem) < n || n == 0 || uintptr(p)%2 != 0 {
		return halves{}, false
	}
	before := int(uintptr(p) % 4)
	w := unsafe.Slice((*uint32)(unsafe.Add(p, -before)), (before+n+3)/4)
	return halves{w: w, skip: uint32(before / 2)}, true
}

// load reads 16-bit word i once.
func (h halves) load(i uint32) uint16 {
	i += h.skip
	return uint16(atomic.LoadUint32(&h.w[i/2]) >> (i % 2 * 16))
}

// half is one 16-bit word of shared memory that is written.
type half struct{ p *uint16 }

// newHalf returns the word at off in mem. The caller has checked its bounds.
func newHalf(mem []byte, off int) half {
	return half{(*uint16)(unsafe.Pointer(&mem[off : off+2][0]))}
}

// put stores v. An atomic store by the caller orders it.
func (h half) put(v uint16) { *h.p = v }
