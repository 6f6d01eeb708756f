// SPDX-License-Identifier: Apache-2.0

package blkplane

import (
	"slices"
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
// or to such a page takes no system call. The pages that an operation needs and that are not
// mapped are mapped with one call, as a group, and unmapped as one. Pages are in a table of
// fixed size, by a hash of the gref, and groups in a list by use.
type persistent struct {
	table      [1 << tableBits]int16 // index in pages plus 1; 0: empty
	pages      [MaxPersistent]mapped
	groups     [MaxPersistent]group
	freePages  []int16
	freeGroups []int16
	missing    []xen.Gref // of the operation that is being prepared
	count      int        // pages

	newest, oldest int16 // groups by use; none if there are none
	sweep          uint32
	pause          int // operations for which nothing is mapped
}

// mapped is one mapped page.
type mapped struct {
	ref   xen.Gref
	mem   []byte
	addr  uintptr
	group int16
	next  int16 // page of the group
}

// group is a number of pages that were mapped together.
type group struct {
	mapping      *gntdev.Mapping
	first        int16 // page
	newer, older int16
	pins         int    // segments of operations under way
	used         uint32 // number of the sweep before which it was last used
}

const (
	// mapSyscalls is the number of system calls of a map or unmap.
	mapSyscalls = 2

	// mapPause is the number of operations for which nothing is mapped after a map has
	// failed. A guest with bad grefs must not make the host try all the time: a map
	// holds a lock of the whole process.
	mapPause = 64

	// mapSingles is the most pages that are mapped one by one after their group failed.
	mapSingles = 16
)

func newPersistent() *persistent {
	p := &persistent{newest: none, oldest: none, missing: make([]xen.Gref, 0, maxChunkSegments)}
	p.freePages, p.freeGroups = make([]int16, 0, MaxPersistent), make([]int16, 0, MaxPersistent)
	for i := MaxPersistent - 1; i >= 0; i-- {
		p.freePages = append(p.freePages, int16(i))
		p.freeGroups = append(p.freeGroups, int16(i))
	}
	return p
}

// prepare maps the pages of segments, as far as there is room. It allocates only if some
// are not mapped.
func (p *persistent) prepare(q *queue, segs []blkif.Segment) {
	p.missing = p.missing[:0]
	for i := range segs {
		ref := segs[i].Gref
		if p.table[p.find(ref)] != 0 || slices.Contains(p.missing, ref) {
			continue
		}
		if len(p.missing) == 0 && !p.mayMap(q) {
			return
		}
		p.missing = append(p.missing, ref)
	}
	if len(p.missing) == 0 {
		return
	}
	for len(p.freePages) < len(p.missing) && p.evict(q) {
	}
	n := q.conn.pool.takeMaps(min(len(p.missing), len(p.freePages)))
	if n == 0 {
		return
	}
	made := p.mapRefs(q, p.missing[:n])
	if made == 0 && n > 1 { // one page is read-only, or bad: its copy will tell
		for i := range min(n, mapSingles) {
			made += p.mapRefs(q, p.missing[i:i+1])
		}
	}
	if made < n {
		q.conn.pool.maps.Add(-int64(n - made))
		p.pause = mapPause
	}
}

// mayMap reports whether an operation with pages that are not mapped may map any. It keeps
// operations of a guest that uses more pages than there is room for from searching in vain.
func (p *persistent) mayMap(q *queue) bool {
	if p.pause > 0 {
		p.pause--
		return false
	}
	return len(p.freePages) > 0 || p.evict(q)
}

// mapRefs maps pages as a group and returns their number, or 0 if one of them fails.
func (p *persistent) mapRefs(q *queue, refs []xen.Gref) int {
	q.tally[Syscalls] += mapSyscalls
	m, err := q.grants.Map(q.conn.cfg.Domid, refs, gntdev.ReadWrite)
	if err != nil {
		return 0
	}
	q.tally[Maps] += uint64(len(refs))
	p.add(refs, m)
	return len(refs)
}

// takeMaps takes up to n of the maps that the pool allows.
func (p *Pool) takeMaps(n int) int {
	over := min(p.maps.Add(int64(n))-int64(p.opts.MaxMaps), int64(n))
	if over <= 0 {
		return n
	}
	p.maps.Add(-over)
	return n - int(over)
}

// read copies a segment's data to dst, and reports whether its page is mapped.
func (p *persistent) read(q *queue, s *blkif.Segment, dst []byte) bool {
	i := p.index(q, s.Gref)
	if i == none {
		return false
	}
	copy(dst, p.pages[i].mem[s.Off:])
	return true
}

// write copies src to a segment, and reports whether its page is mapped.
func (p *persistent) write(q *queue, s *blkif.Segment, src []byte) bool {
	i := p.index(q, s.Gref)
	if i == none {
		return false
	}
	copy(p.pages[i].mem[s.Off:], src)
	return true
}

// index returns the index of a gref's page in pages, or none if it is not mapped: then the
// data is copied by the hypervisor.
func (p *persistent) index(q *queue, ref xen.Gref) int16 {
	i := p.table[p.find(ref)]
	if i == 0 {
		return none
	}
	p.touch(p.pages[i-1].group)
	q.tally[MapHits]++
	return i - 1
}

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

// add adds a group of mapped pages. Their grefs are not in the table.
func (p *persistent) add(refs []xen.Gref, m *gntdev.Mapping) {
	g := p.freeGroups[len(p.freeGroups)-1]
	p.freeGroups = p.freeGroups[:len(p.freeGroups)-1]
	p.groups[g] = group{mapping: m, first: none, used: p.sweep}
	for k, ref := range refs {
		i := p.freePages[len(p.freePages)-1]
		p.freePages = p.freePages[:len(p.freePages)-1]
		mem := m.Bytes()[k*gntdev.PageSize:][:gntdev.PageSize]
		p.pages[i] = mapped{ref: ref, mem: mem, addr: addressOf(mem), group: g, next: p.groups[g].first}
		p.groups[g].first = i
		p.table[p.find(ref)] = i + 1
	}
	p.count += len(refs)
	p.link(g)
}

// touch makes a group the newest.
func (p *persistent) touch(g int16) {
	p.groups[g].used = p.sweep
	if p.newest == g {
		return
	}
	p.unlink(g)
	p.link(g)
}

func (p *persistent) link(g int16) {
	m := &p.groups[g]
	m.newer, m.older = none, p.newest
	if p.newest != none {
		p.groups[p.newest].newer = g
	} else {
		p.oldest = g
	}
	p.newest = g
}

func (p *persistent) unlink(g int16) {
	m := &p.groups[g]
	if m.newer != none {
		p.groups[m.newer].older = m.older
	} else {
		p.newest = m.older
	}
	if m.older != none {
		p.groups[m.older].newer = m.newer
	} else {
		p.oldest = m.newer
	}
}

// evict unmaps the oldest group to make room, unless it was used lately: a guest that uses
// more pages than there is room for gets copies instead of maps all the time.
func (p *persistent) evict(q *queue) bool {
	if p.oldest == none || p.sweep-p.groups[p.oldest].used < 2 || p.groups[p.oldest].pins > 0 {
		return false
	}
	p.remove(q, p.oldest)
	return true
}

// remove unmaps a group.
func (p *persistent) remove(q *queue, g int16) {
	n := 0
	for i := p.groups[g].first; i != none; n++ {
		next := p.pages[i].next
		p.erase(p.find(p.pages[i].ref))
		p.pages[i] = mapped{}
		p.freePages = append(p.freePages, i)
		i = next
	}
	p.unlink(g)
	mapping := p.groups[g].mapping
	p.groups[g] = group{}
	p.freeGroups = append(p.freeGroups, g)
	p.count -= n
	q.conn.pool.maps.Add(-int64(n))
	q.tally[Unmaps] += uint64(n)
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

// expire unmaps groups that were not used for persistentIdle. It is called every sweepEvery.
func (p *persistent) expire(q *queue) {
	p.sweep++
	for p.oldest != none && p.groups[p.oldest].pins == 0 && p.sweep-p.groups[p.oldest].used > uint32(persistentIdle/sweepEvery) {
		p.remove(q, p.oldest)
	}
}

// close unmaps all pages.
func (p *persistent) close(q *queue) {
	for p.oldest != none {
		p.remove(q, p.oldest)
	}
}
