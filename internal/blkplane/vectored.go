// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"github.com/netbackd/netbackd/internal/iouring"
	"github.com/netbackd/netbackd/pkg/blkif"
)

// Operations between the host's page cache and pages that are mapped need no buffer: they
// go from or to the guest's pages. O_DIRECT does not do that, since the device would use
// the pages themselves, which must stay until the device is done even if the mapping is
// gone.

// maxParts is the most segments of such an operation. Each has a struct iovec, and each
// operation has room for so many of them.
const maxParts = iouring.MaxIovecs / maxOperations

// newVectors makes the arrays of all operations. They take up memory from their first use.
func newVectors() (*iouring.Iovecs, error) { return iouring.NewIovecs(maxOperations * maxParts) }

// gather makes an operation one on mapped pages, and reports whether all of them are
// mapped. They stay so until scatter.
func (q *queue) gather(id uint16) bool {
	op := &q.operations[id]
	segs := q.requests[op.entry].segs[op.first:op.end]
	if q.vectors == nil || len(segs) > maxParts {
		return false
	}
	q.persistent.prepare(q, segs)
	for i := range segs {
		page := q.persistent.index(q, segs[i].Gref)
		if page == none {
			q.unpin(segs[:i])
			return false
		}
		m := &q.persistent.pages[page]
		q.persistent.groups[m.group].pins++
		q.vectors.Set(int(id)*maxParts+i, m.addr+uintptr(segs[i].Off), uint32(segs[i].Len))
	}
	op.vectored = true
	return true
}

// unpin lets the pages of segments be unmapped again.
func (q *queue) unpin(segs []blkif.Segment) {
	p := q.persistent
	for i := range segs {
		p.groups[p.pages[p.table[p.find(segs[i].Gref)]-1].group].pins--
	}
}

// transferVectored queues the rest of an operation on mapped pages.
func (q *queue) transferVectored(id uint16) {
	op := &q.operations[id]
	r := &q.requests[op.entry]
	segs := r.segs[op.first:op.end]
	part, skip := 0, op.moved
	for skip > 0 && skip >= int(segs[part].Len) {
		skip -= int(segs[part].Len)
		part++
	}
	at := int(id)*maxParts + part
	if skip > 0 {
		s, p := &segs[part], q.persistent
		m := &p.pages[p.table[p.find(s.Gref)]-1]
		q.vectors.Set(at, m.addr+uintptr(s.Off)+uintptr(skip), uint32(s.Len)-uint32(skip))
	}
	off, n := uint64(op.off)+uint64(op.moved), uint32(len(segs)-part)
	if r.kind == blkif.OpRead {
		q.engine.Readv(off, q.vectors.At(at), n, uint64(id))
	} else {
		q.engine.Writev(off, q.vectors.At(at), n, uint64(id))
	}
}
