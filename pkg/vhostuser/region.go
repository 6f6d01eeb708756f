// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"errors"
	"fmt"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Flags of a region: how Xen maps it. Without any it is shared memory.
const (
	// RegionForeign: pages of the guest, by privcmd.
	RegionForeign = 1 << 0
	// RegionGrant: pages that the guest granted, by gntdev.
	RegionGrant = 1 << 1
	// RegionNoAdvance: granted pages are mapped one by one when they are used. The text
	// has bit 8, the programs of rust-vmm send bit 3. Both are understood.
	RegionNoAdvance     = 1 << 8
	RegionNoAdvanceRust = 1 << 3
)

// Kind says how the memory of a region is reached.
type Kind uint8

const (
	// KindShared is memory that is mapped from a file.
	KindShared Kind = iota
	// KindForeign is memory of a domain, mapped by privcmd.
	KindForeign
	// KindGrant is granted memory that is mapped as a whole.
	KindGrant
	// KindGrantCopy is granted memory that is not mapped, except for rings: buffers in
	// it are copied by grant copies.
	KindGrantCopy
)

// String returns a word for logs.
func (k Kind) String() string {
	return [...]string{"shared", "foreign", "grant", "grant copy"}[k]
}

// Errors of regions.
var (
	ErrRegionFlags   = errors.New("the flags of a region are not valid")
	ErrRegionRange   = errors.New("the range of a region has no bytes, wraps, or has an offset that it may not have")
	ErrRegionFile    = errors.New("the descriptor of a region is not what its flags say")
	ErrRegionShort   = errors.New("the file of a region is shorter than the region")
	ErrRegionOverlap = errors.New("regions overlap")
	ErrRegionCount   = errors.New("there are more regions than allowed")
	ErrRegionUnknown = errors.New("the region to remove does not exist")
	ErrRegionDomain  = errors.New("the domain of a region is not valid")
	ErrRegionGref    = errors.New("an address of a region is no grant")
	ErrAddress       = errors.New("an address of a ring is in no region")
)

const (
	grantBit        = 1 << 63 // of addresses that are grants (Linux, drivers/xen/grant-dma-ops.c)
	pageSize        = gntdev.PageSize
	pageMask        = pageSize - 1
	maxForeignPages = 1 << 24 // of a region: 64 GiB, whose page numbers take 192 MiB while it is mapped
)

// kind returns how the region is mapped. Which bit says "not in advance" is for logs.
func (r *Region) kind() (Kind, error) {
	switch r.Flags {
	case 0:
		return KindShared, nil
	case RegionForeign:
		return KindForeign, nil
	case RegionGrant:
		return KindGrant, nil
	case RegionGrant | RegionNoAdvance, RegionGrant | RegionNoAdvanceRust:
		return KindGrantCopy, nil
	}
	return 0, fmt.Errorf("%w: %#x", ErrRegionFlags, r.Flags)
}

// check checks all that can be checked without the file. User addresses of foreign regions
// and of those that are not mapped need not mean anything.
func (r *Region) check() (Kind, error) {
	k, err := r.kind()
	if err != nil {
		return k, err
	}
	if r.Size == 0 || r.Guest+r.Size-1 < r.Guest || r.Offset+r.Size < r.Size ||
		(k == KindShared || k == KindGrant) && r.User+r.Size-1 < r.User {
		return k, ErrRegionRange
	}
	if k == KindShared {
		return k, nil
	}
	if r.Offset != 0 || r.Size > 1<<62 {
		return k, ErrRegionRange
	}
	if r.Domid >= uint32(xen.FirstReservedDomid) {
		return k, ErrRegionDomain
	}
	if k == KindGrant || k == KindGrantCopy {
		if _, _, err := grefs(r.Guest, r.Size); err != nil {
			return k, err
		}
	}
	return k, nil
}

// grefs returns the first grant of n bytes at a guest address, and how many pages they are.
// Pages that follow each other have grants that do (address without bit 63 / 4096).
func grefs(addr, n uint64) (first xen.Gref, pages int, err error) {
	a := addr &^ grantBit
	last := (a + n - 1) / pageSize
	if n == 0 || a+n-1 < a || last > 1<<32-1 {
		return 0, 0, ErrRegionGref
	}
	return xen.Gref(a / pageSize), int(last - a/pageSize + 1), nil
}

// Gref returns the grant of the page at a guest address of a region of granted memory.
func Gref(addr uint64) xen.Gref { return xen.Gref((addr &^ grantBit) / pageSize) }

// run returns n grants from first on.
func run(first xen.Gref, n int) []xen.Gref {
	refs := make([]xen.Gref, n)
	for i := range refs {
		refs[i] = first + xen.Gref(i)
	}
	return refs
}
