// SPDX-License-Identifier: Apache-2.0

package iouring

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// mapping has both rings of one io_uring, shared with the kernel.
type mapping struct {
	rings, slots []byte // the mappings themselves

	sqes    []sqe
	sqMask  uint32
	sqTail  *atomic.Uint32 // written by its owner, read by the kernel
	sqFlags *atomic.Uint32 // IORING_SQ_*, written by the kernel

	cqes   []cqe
	cqMask uint32
	cqHead *atomic.Uint32 // written by its owner, read by the kernel
	cqTail *atomic.Uint32 // written by the kernel
}

// mapRings maps the rings of fd. After an error, the caller unmaps the part that was
// mapped.
func mapRings(fd int, p *params) (m mapping, err error) {
	size := max(p.sqOff.array+p.sqEntries*4, p.cqOff.cqes+p.cqEntries*16)
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if m.rings, err = unix.Mmap(fd, offSQRing, int(size), prot, flags); err != nil {
		return m, fmt.Errorf("map io_uring: %w", err)
	}
	if m.slots, err = unix.Mmap(fd, offSQEs, int(p.sqEntries)*64, prot, flags); err != nil {
		return m, fmt.Errorf("map io_uring entries: %w", err)
	}
	m.sqes = view[sqe](m.slots, 0, p.sqEntries)
	m.sqMask = p.sqEntries - 1
	m.sqTail = word(m.rings, p.sqOff.tail)
	m.sqFlags = word(m.rings, p.sqOff.flags)
	m.cqes = view[cqe](m.rings, p.cqOff.cqes, p.cqEntries)
	m.cqMask = p.cqEntries - 1
	m.cqHead = word(m.rings, p.cqOff.head)
	m.cqTail = word(m.rings, p.cqOff.tail)

	// The kernel finds entries through an array of indices. These entries are used
	// in order.
	for i, index := 0, view[uint32](m.rings, p.sqOff.array, p.sqEntries); i < len(index); i++ {
		index[i] = uint32(i)
	}
	return m, nil
}
