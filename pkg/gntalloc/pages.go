// SPDX-License-Identifier: Apache-2.0

package gntalloc

import (
	"sync"

	"github.com/netbackd/netbackd/pkg/xen"
)

// Pages is a run of pages that another domain may access.
type Pages struct {
	mem  []byte
	refs []xen.Gref
	free func() error
	once sync.Once
}

// NewPages makes a Pages of mem, which is granted as refs and which free frees. It is
// for implementations of Alloc other than [Device.Alloc].
func NewPages(mem []byte, refs []xen.Gref, free func() error) *Pages {
	return &Pages{mem: mem, refs: refs, free: free}
}

// Bytes returns the memory, [PageSize] bytes for each ref. It is nil after Free.
func (p *Pages) Bytes() []byte { return p.mem }

// Refs returns the grant references, in the order of the pages.
func (p *Pages) Refs() []xen.Gref { return p.refs }

// Free ends the grants and unmaps the memory; in the place of pages of AllocAt it puts
// zeroed memory. A page that the other domain still has mapped exists until that domain
// unmaps it, and its ref is not used again before. Any access to memory that was unmapped
// is a fault that kills the process. Free may be called again, which does nothing, and
// after the Device was closed.
func (p *Pages) Free() error {
	var err error
	p.once.Do(func() {
		p.mem = nil
		err = p.free()
	})
	return err
}
