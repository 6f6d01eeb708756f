// SPDX-License-Identifier: Apache-2.0

package gntdev

import "sync"

// Prot tells how a mapping of a guest's pages may be used.
type Prot uint8

const (
	// ReadOnly maps pages that the guest granted read-only, and other pages that
	// are only read.
	ReadOnly Prot = iota
	// ReadWrite needs pages that the guest granted writable.
	ReadWrite
)

// String returns a word for logs and test failures.
func (p Prot) String() string {
	if p == ReadWrite {
		return "read-write"
	}
	return "read-only"
}

// Mapping is a run of guest pages in our address space, in the order of the
// refs they were mapped from. The guest may read and write them at any time.
//
// The memory stays valid until Unmap, even when the guest is destroyed; after
// Unmap any access is a fault that kills the process. The owner drops its
// slices first. Bytes and Unmap belong to one goroutine.
type Mapping struct {
	mem   []byte
	unmap func() error
	once  sync.Once
}

// NewMapping makes a Mapping of mem, which unmap unmaps. It is for
// implementations of Map other than [Device.Map].
func NewMapping(mem []byte, unmap func() error) *Mapping {
	return &Mapping{mem: mem, unmap: unmap}
}

// Bytes returns the mapped memory, [PageSize] bytes for each ref. It is nil after
// Unmap.
func (m *Mapping) Bytes() []byte { return m.mem }

// Unmap unmaps the pages. It may be called again, which does nothing, and
// after the Device was closed.
func (m *Mapping) Unmap() error {
	var err error
	m.once.Do(func() {
		m.mem = nil
		err = m.unmap()
	})
	return err
}
