// SPDX-License-Identifier: Apache-2.0

package vhostfront

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc64"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/vhostuser"
)

// Addresses of the guest's memory. Those that descriptors hold, those of SET_VRING_ADDR and
// those of this process differ, so that a back end cannot take one for the other.
const (
	guestBase = 0x4000_0000
	userBase  = 0x7a00_0000_0000
	gap       = 1 << 20 // between two regions
	pageSize  = 4096
	// guardSize is the length of the canary behind each part of the memory.
	guardSize = 64
)

// memory is the guest's memory: a memfd, cut into regions. Parts of it are handed out once
// and are never taken back.
type memory struct {
	fd     int
	mem    []byte
	bounds []int // offsets at which regions begin, and the end
	next   int
	guards []int // offsets of canaries
	cuts   []int // further offsets, within buffers, at which a table may be cut
	extra  int   // another memfd that holds nothing, -1: none
	more   []byte
}

// newMemory makes memory of at least size bytes in a number of regions.
func newMemory(size, regions int) (m *memory, err error) {
	size = (size/regions + pageSize) &^ (pageSize - 1) * regions
	m = &memory{extra: -1}
	if m.fd, m.mem, err = newMemfd("vhostfront", size); err != nil {
		return nil, err
	}
	for i := range regions + 1 {
		m.bounds = append(m.bounds, size/regions*i)
	}
	return m, nil
}

// newMemfd makes and maps a memfd.
func newMemfd(name string, size int) (fd int, mem []byte, err error) {
	fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, nil, fmt.Errorf("vhostfront: memfd: %w", err)
	}
	err = unix.Ftruncate(fd, int64(size))
	if err == nil {
		mem, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		return -1, nil, errors.Join(fmt.Errorf("vhostfront: memory of %d bytes: %w", size, err), unix.Close(fd))
	}
	return fd, mem, nil
}

func (m *memory) close() error {
	err := errors.Join(unix.Munmap(m.mem), unix.Close(m.fd))
	if m.extra >= 0 {
		err = errors.Join(err, unix.Munmap(m.more), unix.Close(m.extra))
	}
	return err
}

// alloc hands out n bytes within one region, with a canary behind them.
func (m *memory) alloc(n int) (off int, err error) {
	off = (m.next + 63) &^ 63
	for _, b := range m.bounds[1:] {
		if off < b && off+n+guardSize > b {
			off = b
		}
	}
	if off+n+guardSize > len(m.mem) {
		return 0, fmt.Errorf("vhostfront: the memory of %d bytes is full", len(m.mem))
	}
	copy(m.mem[off+n:], canary[:guardSize])
	m.guards = append(m.guards, off+n)
	m.next = off + n + guardSize
	return off, nil
}

// cut allows tables that are cut at the page within n bytes at off, if there is one.
func (m *memory) cut(off, n int) {
	if c := (off + pageSize) &^ (pageSize - 1); c < off+n && len(m.cuts) < 4 {
		m.cuts = append(m.cuts, c)
	}
}

// region returns the number of the region that has an offset.
func (m *memory) region(off int) int {
	i := 0
	for i+2 < len(m.bounds) && off >= m.bounds[i+1] {
		i++
	}
	return i
}

// guest returns the guest address of an offset.
func (m *memory) guest(off int) uint64 { return guestBase + uint64(off+m.region(off)*gap) }

// user returns the address of an offset in SET_VRING_ADDR.
func (m *memory) user(off int) uint64 { return userBase + uint64(off+m.region(off)*3*gap) }

// end returns the guest address behind all memory.
func (m *memory) end() uint64 { return m.guest(len(m.mem)-1) + 2*gap }

// table returns the regions of a table, with their descriptors. A variant that is not 0 cuts
// the memory within buffers. With extra there is one more region in another file.
func (m *memory) table(variant int, extra bool) (regions []vhostuser.Region, files []int, err error) {
	var at []int
	for i := range len(m.bounds) - 1 {
		at = append(at, m.bounds[i])
		for k, c := range m.cuts {
			if variant > 0 && (k+variant)%2 == 0 && c > m.bounds[i] && c < m.bounds[i+1] {
				at = append(at, c)
			}
		}
	}
	at = append(at, len(m.mem))
	for i := range len(at) - 1 {
		regions = append(regions, vhostuser.Region{Guest: m.guest(at[i]), User: m.user(at[i]), Offset: uint64(at[i]), Size: uint64(at[i+1] - at[i])})
		files = append(files, m.fd)
	}
	if !extra {
		return regions, files, nil
	}
	more, err := m.another()
	return append(regions, more), append(files, m.extra), err
}

// another returns a region of a file that holds nothing.
func (m *memory) another() (r vhostuser.Region, err error) {
	if m.extra < 0 {
		if m.extra, m.more, err = newMemfd("vhostfront-more", gap); err != nil {
			return r, err
		}
		for p := m.more; len(p) > 0; p = p[copy(p, canary):] {
		}
	}
	return vhostuser.Region{Guest: m.end(), User: userBase / 2, Size: gap}, nil
}

// bytes returns n bytes at an offset.
func (m *memory) bytes(off, n int) []byte { return m.mem[off : off+n : off+n] }

// guarded reports the first canary that has changed, -1 if none has.
func (m *memory) guarded() int {
	for _, g := range m.guards {
		if !bytes.Equal(m.mem[g:g+guardSize], canary[:guardSize]) {
			return g
		}
	}
	for i := 0; i < len(m.more); i += len(canary) {
		n := min(len(canary), len(m.more)-i)
		if !bytes.Equal(m.more[i:i+n], canary[:n]) {
			return len(m.mem) + i
		}
	}
	return -1
}

var sumTable = crc64.MakeTable(crc64.ECMA)

// sum returns a checksum of all memory that was handed out.
func (m *memory) sum() uint64 { return crc64.Checksum(m.mem[:m.next], sumTable) }

// canary fills memory that the back end has not written.
var canary = func() []byte {
	b := make([]byte, slotSize)
	for i := range b {
		b[i] = byte(i*7+i>>8) ^ 0xa7
	}
	return b
}()
