// SPDX-License-Identifier: Apache-2.0

package gntalloc

import (
	"sync"

	"github.com/netbackd/netbackd/pkg/xen"
)

// Pages is a run of pages another domain has been granted access to.
type Pages struct {
	mem  []byte
	refs []xen.Gref
	free func() error
	once sync.Once
}

// NewPages makes a Pages of mem, granted as refs, that free gives back. It is
// for implementations of Alloc other than [Device.Alloc].
func NewPages(mem []byte, refs []xen.Gref, free func() error) *Pages {
	return &Pages{mem: mem, refs: refs, free: free}
}

// Bytes is the memory, [PageSize] bytes for each ref. It is nil after Free.
func (p *Pages) Bytes() []byte { return p.mem }

// Refs are the grant references, in the order of the pages.
func (p *Pages) Refs() []xen.Gref { return p.refs }

// Free ends the grants and gives the memory back. Pages the other domain still
// has mapped live on, inaccessible to us, until it lets go of them; their refs
// are not used again before. Any access to the memory after Free is a fault
// that kills the process. Free may be called again, which does nothing, and
// after the Device was closed.
func (p *Pages) Free() error {
	var err error
	p.once.Do(func() {
		p.mem = nil
		err = p.free()
	})
	return err
}
