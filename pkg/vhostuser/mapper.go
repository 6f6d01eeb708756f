// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Mapper maps memory of descriptors that a front end passes. [Kernel] is the real one;
// tests have others.
type Mapper interface {
	// Shared maps n bytes at off of the file fd. It keeps no hold of fd.
	Shared(fd int, off, n uint64) (Mapping, error)
	// Foreign maps n pages of a domain from page number gfn on, with fd, which is
	// privcmd.
	Foreign(fd int, domid xen.Domid, gfn uint64, n int) (Mapping, error)
	// Grants returns a device of fd, which is gntdev and stays the caller's.
	Grants(fd int) (Grants, error)
}

// Grants maps and copies pages that a guest granted: a [gntdev.Device].
type Grants interface {
	Map(domid xen.Domid, refs []xen.Gref, prot gntdev.Prot) (*gntdev.Mapping, error)
	Copy(segs []gntdev.Segment) error
	Close() error
}

var _ Grants = (*gntdev.Device)(nil)

// Mapping is memory that stays mapped until Unmap.
type Mapping interface {
	Bytes() []byte
	Unmap() error
}

// Kernel maps with the kernel's calls.
type Kernel struct{}

var _ Mapper = Kernel{}

// Shared maps a regular file, as memfd_create(2) and hugetlbfs make them. What it maps
// begins and ends at a block, which is a page of the file system.
func (Kernel) Shared(fd int, off, n uint64) (Mapping, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, ErrRegionFile
	}
	if off+n < n || off+n > uint64(st.Size) {
		return nil, ErrRegionShort
	}
	block := uint64(pageSize)
	if b := uint64(st.Blksize); b > block && b&(b-1) == 0 {
		block = b
	}
	start := off &^ (block - 1)
	end := (off + n + block - 1) &^ (block - 1)
	all, err := unix.Mmap(fd, int64(start), int(end-start), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	return &mapping{all: all, part: all[off-start:][:n:n]}, nil
}

// Foreign maps pages of a domain. The kernel reports a page that could not be mapped in a
// list, and only in part as an error of the call.
func (Kernel) Foreign(fd int, domid xen.Domid, gfn uint64, n int) (Mapping, error) {
	if err := checkDevice(fd, "/dev/xen/privcmd"); err != nil {
		return nil, err
	}
	all, err := unix.Mmap(fd, 0, n*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	errs := make([]int32, n)
	err = mapBatch(fd, domid, gfn, all, errs)
	if pages := pageErrors(gfn, errs); pages != nil {
		err = pages
	}
	if err != nil {
		return nil, errors.Join(err, unix.Munmap(all))
	}
	return &mapping{all: all, part: all}, nil
}

// pageErrors returns the first error of a list, which has an errno, negative, for each page.
func pageErrors(gfn uint64, errs []int32) error {
	for i, e := range errs {
		if e != 0 {
			return fmt.Errorf("page %#x: %w", gfn+uint64(i), unix.Errno(-e))
		}
	}
	return nil
}

// Grants returns the device of a descriptor.
func (Kernel) Grants(fd int) (Grants, error) {
	if err := checkDevice(fd, gntdev.DefaultPath); err != nil {
		return nil, err
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return gntdev.NewDevice(own), nil
}

// checkDevice checks that fd is a device, and the one at path if there is one.
func checkDevice(fd int, path string) error {
	var st, want unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return ErrRegionFile
	}
	if unix.Stat(path, &want) == nil && st.Rdev != want.Rdev {
		return ErrRegionFile
	}
	return nil
}

// mapping is a Mapping of mmap(2).
type mapping struct{ all, part []byte }

func (m *mapping) Bytes() []byte { return m.part }

func (m *mapping) Unmap() error {
	if m.all == nil {
		return nil
	}
	all := m.all
	m.all, m.part = nil, nil
	return unix.Munmap(all)
}
