// SPDX-License-Identifier: Apache-2.0

package virtqueue

import (
	"errors"
	"slices"
)

// Region is a range of guest addresses, the addresses that descriptors hold.
type Region struct {
	// Addr and Size are the range, in bytes. It may end at the last address.
	Addr, Size uint64
	// Mem is the memory behind it, Size bytes that stay mapped as long as a queue or a
	// batch has the table. Nil means that the memory is not mapped and data has to be
	// copied, as with Xen grants that are not mapped in advance.
	Mem []byte
	// Tag is the caller's. Each piece in the region has a copy.
	Tag uint32
}

// contains reports whether addr is in the region.
func (r *Region) contains(addr uint64) bool { return addr-r.Addr < r.Size }

// Memory is a table of regions. It never changes: to change the memory of a queue, make
// another table. Several queues may use one.
type Memory struct {
	regions []Region // sorted, without overlap
}

// Errors of [NewMemory].
var (
	ErrRegionSize    = errors.New("virtqueue: a region has no bytes or wraps")
	ErrRegionMem     = errors.New("virtqueue: the memory of a region does not have its size")
	ErrRegionOverlap = errors.New("virtqueue: regions overlap")
)

// NewMemory makes a table of regions, in any order.
func NewMemory(regions ...Region) (*Memory, error) {
	m := &Memory{regions: slices.Clone(regions)}
	slices.SortFunc(m.regions, func(a, b Region) int {
		if a.Addr < b.Addr {
			return -1
		}
		return 1
	})
	for i := range m.regions {
		r := &m.regions[i]
		if r.Size == 0 || r.Addr+r.Size-1 < r.Addr {
			return nil, ErrRegionSize
		}
		if r.Mem != nil && uint64(len(r.Mem)) != r.Size {
			return nil, ErrRegionMem
		}
		if i > 0 && m.regions[i-1].contains(r.Addr) {
			return nil, ErrRegionOverlap
		}
	}
	return m, nil
}

// Bytes returns n bytes of mapped memory at addr, nil if one region does not hold them
// all or is not mapped.
func (m *Memory) Bytes(addr, n uint64) []byte {
	i := m.find(addr, 0)
	if i < 0 {
		return nil
	}
	r := &m.regions[i]
	off := addr - r.Addr
	if r.Mem == nil || n > r.Size-off {
		return nil
	}
	return r.Mem[off : off+n : off+n]
}

// find returns the region that holds addr, -1 if none does. It tries the region hint
// first: the buffers of one queue are mostly in one region.
func (m *Memory) find(addr uint64, hint int) int {
	if uint(hint) < uint(len(m.regions)) && m.regions[hint].contains(addr) {
		return hint
	}
	lo, hi := 0, len(m.regions)
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if m.regions[mid].Addr <= addr {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo > 0 && m.regions[lo-1].contains(addr) {
		return lo - 1
	}
	return -1
}
