// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"time"

	"github.com/netbackd/netbackd/pkg/blkif"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

const (
	// MaxPersistent is the most grants that a queue keeps mapped, as in xen-blkback.
	MaxPersistent = 1056

	// persistentIdle is the time after which an unused grant is unmapped. It is noticed
	// up to sweepEvery later.
	persistentIdle = 60 * time.Second
	sweepEvery     = 15 * time.Second

	tableBits = 12 // of the hash table: a quarter full at most
)

// persistent keeps pages of a guest mapped that its frontend grants for good. A copy from
// or to such a page takes no system call. The grants are in a table of fixed size, by
// hash, and in a list by use.
type persistent struct {
	table [1 << tableBits]int16 // index in pages plus 1; 0: empty
	pages [MaxPersistent]mapped
	free  []int16
	count int

	newest, oldest int16 // by use; none if there are no pages
	sweep          uint32
}

// mapped is one mapped page.
type mapped struct {
	ref          xen.Gref
	mem          []byte
	addr         uintptr
	pins         int // operations that use it
	mapping      *gntdev.Mapping
	newer, older int16
	used         uint32 // number of the sweep before which it was last used
}

func newPersistent() *persistent {
	p := &persistent{newest: none, oldest: none, free: make([]int16, 0, MaxPersistent)}
	for i := MaxPersistent - 1; i >= 0; i-- {
		p.free = append(p.free, int16(i))
	}
	return p
}

// read copies a segment's data to dst, and reports whether its page is mapped.
func (p *persistent) read(q *queue, s *blkif.Segment, dst []byte) bool {
	mem := p.page(q, s.Gref)
	if mem == nil {
		return false
	}
	copy(dst, mem[s.Off:])
	return true
}

// write copies src to a segment, and reports whether its page is mapped.
func (p *persistent) write(q *queue, s *blkif.Segment, src []byte) bool {
	mem := p.page(q, s.Gref)
	if mem == nil {
		return false
	}
	copy(mem[s.Off:], src)
	return true
}

// page returns the page of a gref, which it maps if there is room. It returns nil for a page
// that is not mapped: then the data is copied by the hypervisor.
func (p *persistent) page(q *queue, ref xen.Gref) []byte {
	if i := p.index(q, ref); i != none {
		return p.pages[i].mem
	}
	return nil
}

// index does what page does, and returns the index in pages, or none.
func (p *persistent) index(q *queue, ref xen.Gref) int16 {
	if i := p.table[p.find(ref)]; i != 0 {
		p.touch(i - 1)
		q.tally[MapHits]++
		return i - 1
	}
	if len(p.free) == 0 && !p.evict(q) {
		return none
	}
	pool := q.conn.pool
	if pool.maps.Add(1) > int64(pool.opts.MaxMaps) {
		pool.maps.Add(-1)
		return none
	}
	q.tally[Syscalls] += mapSyscalls
	m, err := q.grants.Map(q.conn.cfg.Domid, []xen.Gref{ref}, gntdev.ReadWrite)
	if err != nil {
		pool.maps.Add(-1)
		return none // read-only, or bad: the copy will tell
	}
	q.tally[Maps]++
	return p.add(ref, m)
}

// mapSyscalls is the number of system calls of a map or unmap of one page.
const mapSyscalls = 2

// hash returns the place of a gref in the table.
func hash(ref xen.Gref) uint32 { return uint32(ref) * 0x9e3779b1 >> (32 - tableBits) }

// find returns the place of a gref in the table, or the empty place at which the search
// ends.
func (p *persistent) find(ref xen.Gref) uint32 {
	at := hash(ref)
	for p.table[at] != 0 && p.pages[p.table[at]-1].ref != ref {
		at = (at + 1) % (1 << tableBits)
	}
	return at
}

// add adds a mapped page. Its gref is not in the table.
func (p *persistent) add(ref xen.Gref, m *gntdev.Mapping) int16 {
	i := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	p.pages[i] = mapped{ref: ref, mem: m.Bytes(), addr: addressOf(m.Bytes()), mapping: m, used: p.sweep}
	p.table[p.find(ref)] = i + 1
	p.count++
	p.link(i)
	return i
}

// touch makes a page the newest.
func (p *persistent) touch(i int16) {
	p.pages[i].used = p.sweep
	if p.newest == i {
		return
	}
	p.unlink(i)
	p.link(i)
}

func (p *persistent) link(i int16) {
	m := &p.pages[i]
	m.newer, m.older = none, p.newest
	if p.newest != none {
		p.pages[p.newest].newer = i
	} else {
		p.oldest = i
	}
	p.newest = i
}

func (p *persistent) unlink(i int16) {
	m := &p.pages[i]
	if m.newer != none {
		p.pages[m.newer].older = m.older
	} else {
		p.newest = m.older
	}
	if m.older != none {
		p.pages[m.older].newer = m.newer
	} else {
		p.oldest = m.newer
	}
}

// evict unmaps the oldest page to make room, unless it was used lately: a guest that uses
// more pages than there is room for gets copies instead of a map for each segment.
func (p *persistent) evict(q *queue) bool {
	if p.oldest == none || p.sweep-p.pages[p.oldest].used < 2 || p.pages[p.oldest].pins > 0 {
		return false
	}
	p.remove(q, p.oldest)
	return true
}

// remove unmaps a page.
func (p *persistent) remove(q *queue, i int16) {
	m := &p.pages[i]
	p.erase(p.find(m.ref))
	p.unlink(i)
	mapping := m.mapping
	*m = mapped{}
	p.free = append(p.free, i)
	p.count--
	q.conn.pool.maps.Add(-1)
	q.tally[Unmaps]++
	q.tally[Syscalls] += mapSyscalls
	if err := mapping.Unmap(); err != nil {
		q.conn.pool.opts.Warn(err)
	}
}

// erase empties a place of the table, and moves entries behind it forward that would not be
// found any more.
func (p *persistent) erase(at uint32) {
	const mask = 1<<tableBits - 1
	p.table[at] = 0
	for next := (at + 1) & mask; p.table[next] != 0; next = (next + 1) & mask {
		home := hash(p.pages[p.table[next]-1].ref)
		if (next-home)&mask >= (next-at)&mask { // its search passes the empty place
			p.table[at], p.table[next] = p.table[next], 0
			at = next
		}
	}
}

// expire unmaps pages that were not used for persistentIdle. It is called every sweepEvery.
func (p *persistent) expire(q *queue) {
	p.sweep++
	for p.oldest != none && p.pages[p.oldest].pins == 0 && p.sweep-p.pages[p.oldest].used > uint32(persistentIdle/sweepEvery) {
		p.remove(q, p.oldest)
	}
}

// close unmaps all pages.
func (p *persistent) close(q *queue) {
	for p.oldest != none {
		p.remove(q, p.oldest)
	}
}
