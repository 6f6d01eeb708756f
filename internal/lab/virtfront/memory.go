// SPDX-License-Identifier: Apache-2.0

package virtfront

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/gntalloc"
)

// grantBit marks an address that is a grant (Linux, drivers/xen/grant-dma-ops.c).
const grantBit = 1 << 63

// Memory is the memory of a driver: an area for rings, one for buffers, and one of pages
// that it can revoke.
type Memory struct {
	areas [3]area
	fd    int // of a memfd, else -1
	free  func() error
}

// area is a run of memory with consecutive guest addresses.
type area struct {
	mem  []byte
	addr uint64
	free func() error // nil if it cannot be freed alone
}

// sizes returns the bytes of the areas.
func sizes(features uint64, size int) [3]int {
	return [3]int{ringAt(features, size, 2), roundUp(dataBytes), 4 * pageSize}
}

// Close frees the memory.
func (m *Memory) Close() error { return m.free() }

// place makes the areas of mem, at consecutive addresses from base on.
func place(mem []byte, base uint64, n [3]int, fd int, free func() error) *Memory {
	m := &Memory{fd: fd, free: free}
	for i, size := range n {
		m.areas[i] = area{mem: mem[:size:size], addr: base}
		mem, base = mem[size:], base+uint64(size)
	}
	return m
}

func total(n [3]int) int { return n[0] + n[1] + n[2] }

// Shared makes memory in a memfd.
func Shared(features uint64, size int) (*Memory, error) {
	n := sizes(features, size)
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if err := unix.Ftruncate(fd, int64(total(n))); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	mem, err := unix.Mmap(fd, 0, total(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return place(mem, 1<<32, n, fd, func() error {
		return errors.Join(unix.Munmap(mem), unix.Close(fd))
	}), nil
}

// hugePage is the size in bytes of a page whose parts have consecutive page numbers.
const hugePage = 2 << 20

// Foreign makes memory in a huge page of this guest, whose addresses are guest-physical.
// The guest must not be a PV one, where a process sees other page numbers.
func Foreign(features uint64, size int) (_ *Memory, err error) {
	n := sizes(features, size)
	if total(n) > hugePage {
		return nil, fmt.Errorf("%d bytes do not fit a huge page", total(n))
	}
	if err := os.WriteFile("/proc/sys/vm/nr_hugepages", []byte("1"), 0); err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(-1, 0, hugePage, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_HUGETLB|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("huge page: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unix.Munmap(mem))
		}
	}()
	clear(mem)
	pfn, err := pageNumbers(mem)
	if err != nil {
		return nil, err
	}
	for i, n := range pfn {
		if n != pfn[0]+uint64(i) {
			return nil, fmt.Errorf("page %d is at %#x, page 0 at %#x", i, n, pfn[0])
		}
	}
	return place(mem, pfn[0]*pageSize, n, -1, func() error { return unix.Munmap(mem) }), nil
}

// pageNumbers returns the page numbers of mem, which must be in memory (Linux,
// Documentation/admin-guide/mm/pagemap.rst).
func pageNumbers(mem []byte) (_ []uint64, err error) {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	raw := make([]byte, 8*len(mem)/pageSize)
	if _, err := f.ReadAt(raw, int64(address(mem)/pageSize*8)); err != nil {
		return nil, err
	}
	numbers := make([]uint64, len(raw)/8)
	for i := range numbers {
		e := binary.LittleEndian.Uint64(raw[8*i:])
		if numbers[i] = e & (1<<55 - 1); e>>63 == 0 || numbers[i] == 0 {
			return nil, fmt.Errorf("page %d of the memory has no number: %#x", i, e)
		}
	}
	return numbers, nil
}

// Granted makes memory of pages that are granted to dom0.
func Granted(dev *gntalloc.Device, features uint64, size int) (_ *Memory, err error) {
	m := &Memory{fd: -1}
	m.free = func() error {
		var errs []error
		for i := range m.areas {
			if m.areas[i].free != nil {
				errs = append(errs, m.areas[i].free())
			}
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.free())
		}
	}()
	for i, n := range sizes(features, size) {
		p, err := allocRun(dev, n/pageSize)
		if err != nil {
			return nil, err
		}
		m.areas[i] = area{mem: p.Bytes(), addr: grantBit | uint64(p.Refs()[0])*pageSize, free: p.Free}
	}
	return m, nil
}

// maxTried bounds the pages that are put aside in the search for consecutive references.
const maxTried = 4096

// allocRun makes pages with consecutive references. The kernel takes these from the head of
// a list, to which an earlier driver has returned them one by one, so that they come in
// reverse. Behind these the list is in order.
func allocRun(dev *gntalloc.Device, n int) (_ *gntalloc.Pages, err error) {
	var tried []*gntalloc.Pages
	defer func() {
		for _, p := range tried {
			err = errors.Join(err, p.Free())
		}
	}()
	for range maxTried / n {
		p, err := dev.Alloc(0, n, true)
		if err != nil {
			return nil, err
		}
		if consecutive(p) {
			return p, nil
		}
		tried = append(tried, p)
	}
	return nil, fmt.Errorf("no %d consecutive grant references", n)
}

func consecutive(p *gntalloc.Pages) bool {
	for i, ref := range p.Refs() {
		if int64(ref) != int64(p.Refs()[0])+int64(i) {
			return false
		}
	}
	return true
}
