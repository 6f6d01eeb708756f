// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/virtqueue"
)

// ErrInflight: an inflight region that does not fit the device.
var ErrInflight = errors.New("the inflight region does not fit the device")

// inflightRegion is the memory in which queues record the chains that they have taken. The
// back end makes it, and the front end keeps it for a successor.
type inflightRegion struct {
	mem    Mapping // nil: none
	queues int
	size   int // of a queue
	bytes  int // bytes of a queue's part
}

// partSize returns the bytes of each queue's part.
func partSize(size int, packed bool) int {
	if packed {
		return virtqueue.PackedInflightSize(size)
	}
	return virtqueue.SplitInflightSize(size)
}

// fits reports whether a description is possible for a device with that many rings.
func (v Inflight) fits(rings int) bool {
	return v.Queues > 0 && int(v.Queues) <= rings && v.QueueSize > 0 && v.QueueSize <= maxRing
}

// make makes a region, all zero, and the answer with its descriptor.
func (inflightRegion) make(v Inflight, rings int, packed bool) (*Message, error) {
	if !v.fits(rings) {
		return nil, ErrInflight
	}
	v.Size, v.Offset = uint64(int(v.Queues)*partSize(int(v.QueueSize), packed)), 0
	fd, err := unix.MemfdCreate("vhost-inflight", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	err = unix.Ftruncate(fd, int64(v.Size))
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &Message{Inflight: v, Files: []int{fd}}, nil
}

// set maps a region.
func (f *inflightRegion) set(m Mapper, fd int, v Inflight, rings int, packed bool) error {
	n := partSize(int(v.QueueSize), packed)
	if !v.fits(rings) || v.Size < uint64(n)*uint64(v.Queues) || v.Offset%8 != 0 {
		return ErrInflight
	}
	mem, err := m.Shared(fd, v.Offset, v.Size)
	if err != nil {
		return err
	}
	err = f.close()
	*f = inflightRegion{mem: mem, queues: int(v.Queues), size: int(v.QueueSize), bytes: n}
	return err
}

// part returns the part of ring i, nil if the region has none for it.
func (f *inflightRegion) part(i, size int, packed bool) []byte {
	if f.mem == nil || i >= f.queues || size > f.size || partSize(f.size, packed) != f.bytes {
		return nil
	}
	return f.mem.Bytes()[i*f.bytes:][:f.bytes:f.bytes]
}

func (f *inflightRegion) close() error {
	if f.mem == nil {
		return nil
	}
	m := f.mem
	f.mem = nil
	return m.Unmap()
}
