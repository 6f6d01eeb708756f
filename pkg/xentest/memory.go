// SPDX-License-Identifier: Apache-2.0

package xentest

import (
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/gntdev"
)

const (
	pageSize = gntdev.PageSize
	maxPages = 1 << 16 // of a guest; those that were never used take no memory
)

// memory is a guest's memory as the guest sees it.
type memory struct {
	fd    int // memfd; -1: closed
	bytes []byte
	next  int   // first page that was never allocated
	free  []int // pages that were given back
}

// newMemory makes a file for the memory of a guest.
func newMemory() (fd int, err error) {
	if fd, err = unix.MemfdCreate("xentest", unix.MFD_CLOEXEC); err != nil {
		return -1, err
	}
	if err := unix.Ftruncate(fd, maxPages*pageSize); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// open maps the memory behind fd, which it closes if it cannot.
func (m *memory) open(fd int) (err error) {
	m.fd = fd
	m.bytes, err = unix.Mmap(fd, 0, maxPages*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		_ = unix.Close(fd)
	}
	return err
}

func (m *memory) close() error {
	if m.fd < 0 {
		return nil
	}
	_ = unix.Close(m.fd) // a memfd
	m.fd, m.free = -1, nil
	return unix.Munmap(m.bytes)
}

// alloc takes n pages side by side and returns the number of the first one. Pages that
// were used before are cleared. It panics when the guest has no memory left.
func (m *memory) alloc(n int) int {
	if last := len(m.free) - 1; n == 1 && last >= 0 {
		p := m.free[last]
		m.free = m.free[:last]
		clear(m.page(p, 1))
		return p
	}
	p := m.next
	if n < 1 || p+n > maxPages {
		panic("xentest: the guest has no memory left")
	}
	m.next += n
	return p
}

func (m *memory) release(p int) { m.free = append(m.free, p) }

func (m *memory) page(first, n int) []byte {
	return m.bytes[first*pageSize : (first+n)*pageSize : (first+n)*pageSize]
}
