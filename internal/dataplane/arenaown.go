// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// A grant copy names memory by address or by gref. For an address the kernel looks up and
// pins the page each time, which costs more than to copy a small packet. So some pages of
// the arenas are own pages, which this domain has granted to itself: a copy that is within
// one names its gref. That is a property of each page. Copies from and to other pages go
// by address, so an arena works as well with none or some of them: without the device, or
// where its limit is reached.
//
// Own pages are at the places that are used most: the front of the tx arena, the front of
// the rx arena's line, and the first pages of each place of its ring part. A worker gets
// them with its first vif; one that has none takes up none.

// OwnPager grants pages to the domain that it runs in, as *gntalloc.Device does. Its
// methods may be called from several goroutines at once.
type OwnPager interface {
	// AllocOwn puts pages that this domain has granted to itself, for writing, in the
	// place of mem, which is whole pages of a private mapping. All are granted or none.
	// Free puts other memory back.
	AllocOwn(mem []byte) (*gntalloc.Pages, error)
}

const (
	// ownStep is the number of pages that are granted at once. Where there are few, each
	// arena gets some.
	ownStep = 32

	// txOwnPages and rxOwnPages are the numbers of own pages at the front of the tx arena
	// and of the line: one for each slot of a ring.
	txOwnPages = netif.TxRingSize
	rxOwnPages = netif.RxRingSize

	// MaxOwnPages is the number of own pages that a worker wants.
	MaxOwnPages = txOwnPages + rxOwnPages + rxReads*rxParts
)

// ownRun is a part of an arena that is to have own pages: pages from page number first
// on.
type ownRun struct {
	arena        *arenaMem
	first, pages int
}

// ownRuns lists the parts of a worker's arenas that are to have own pages, the most useful
// ones first. The ring part has some only if packets are read with io_uring.
func (w *worker) ownRuns(byRing bool) (runs []ownRun) {
	for at := 0; at < max(txOwnPages, rxOwnPages); at += ownStep {
		if n := min(ownStep, txOwnPages-at); n > 0 {
			runs = append(runs, ownRun{&w.txMem, at, n})
		}
		if n := min(ownStep, rxOwnPages-at); n > 0 {
			runs = append(runs, ownRun{&w.rxMem, rxLineFrom/netif.PageSize + at, n})
		}
	}
	if byRing {
		for i := range rxReads {
			runs = append(runs, ownRun{&w.rxMem, rxRingAt(i) / netif.PageSize, rxParts})
		}
	}
	return runs
}

// ownPages are the own pages of an arena.
type ownPages struct {
	refs []xen.Gref // of each page of the arena, 0: it is no own page; nil: none is one
	runs []*gntalloc.Pages
}

// ref returns the gref of the own page that has the n bytes at at. It is 0 if there is
// none, or if they are not within one page.
func (o *ownPages) ref(at, n int) xen.Gref {
	page := uint(at) / netif.PageSize
	if page >= uint(len(o.refs)) || at%netif.PageSize+n > netif.PageSize {
		return 0
	}
	return o.refs[page]
}

// find returns the number of the page with a gref, or -1.
func (o *ownPages) find(ref xen.Gref) int {
	for i, r := range o.refs {
		if r == ref {
			return i
		}
	}
	return -1
}

// ownSegments returns the number of segments whose place of ours is an own page.
func ownSegments(segs []gntdev.Segment) (n uint32) {
	for i := range segs {
		if _, _, own := segs[i].Own(); own {
			n++
		}
	}
	return n
}

// alloc makes own pages of a part of the arena mem.
func (o *ownPages) alloc(from OwnPager, mem []byte, first, pages int) error {
	p, err := from.AllocOwn(mem[first*netif.PageSize : (first+pages)*netif.PageSize])
	if err != nil {
		return err
	}
	if o.refs == nil {
		o.refs = make([]xen.Gref, len(mem)/netif.PageSize)
	}
	copy(o.refs[first:], p.Refs())
	o.runs = append(o.runs, p)
	return nil
}

// free gives all own pages back.
func (o *ownPages) free() {
	for _, p := range o.runs {
		_ = p.Free()
	}
	*o = ownPages{}
}

// ownCount counts the own pages of a pool.
type ownCount struct {
	wanted, granted atomic.Int64
	lost            atomic.Bool // see OwnPages.Lost
	warned          sync.Once
}

// OwnPages is the state of the pages of a pool's arenas that this domain has granted to
// itself. Copies from and to other pages go by address.
type OwnPages struct {
	Wanted  int // pages for the workers that have had a vif
	Granted int
	Lost    bool // Xen refused them later, so all copies go by address
}

// OwnPages returns the state of the own pages.
func (p *Pool) OwnPages() OwnPages {
	return OwnPages{int(p.own.wanted.Load()), int(p.own.granted.Load()), p.own.lost.Load()}
}

// ownRetry is the time after which pages are asked for again that there was no room for. A
// worker that is idle does not wake up for it.
const ownRetry = 10 * time.Second

// ownRounds is the number of rounds between two looks at the clock for that.
const ownRounds = 256

// ownState is the state of a worker's own pages.
type ownState struct {
	opened          bool
	wanted, granted int
	missing         []ownRun          // parts of the arenas that are still to have own pages
	retry           time.Time         // when these are asked for again
	rounds          uint              // see ownRounds
	test            [1]gntdev.Segment // see ownIsValid; on the stack it would escape
}

// openOwn gives the worker its own pages, when it gets its first vif: the queue q with the
// number id, which is registered with the io_uring already.
func (w *worker) openOwn(q *Queue, id int) error {
	p := w.pool
	if p.opts.OwnPager == nil || p.own.lost.Load() {
		return nil
	}
	if !w.own.opened {
		w.own.opened = true
		w.own.missing = w.ownRuns(w.uring.ring != nil && q.reader.byRing)
		for _, r := range w.own.missing {
			w.own.wanted += r.pages
		}
		p.own.wanted.Add(int64(w.own.wanted))
	} else if !w.ownDue() {
		return nil
	}
	changed, err := w.allocOwn()
	if err != nil {
		w.failed = err
		return err
	}
	if changed {
		w.newRing()
		w.registerFile(q, id)
	}
	return nil
}

// ownDue reports whether pages are missing, and it is time to ask for them again.
func (w *worker) ownDue() bool {
	return len(w.own.missing) > 0 && !w.time().Before(w.own.retry) && !w.pool.own.lost.Load()
}

// moreOwn asks again for own pages that are missing: those of another worker or program may
// have been given back since, or the limit raised. It is called between two turns, when the
// arenas hold nothing.
func (w *worker) moreOwn() {
	if w.own.rounds++; w.own.rounds%ownRounds != 0 || !w.ownDue() {
		return
	}
	changed, err := w.allocOwn()
	if changed && err == nil {
		w.newRing()
	}
	w.failed = err
}

// allocOwn makes own pages of what is missing, as far as there is room. It reports whether the
// memory of an arena has changed, so that the io_uring has to register it anew. After an error
// there is an arena without memory.
func (w *worker) allocOwn() (changed bool, err error) {
	p := w.pool
	for len(w.own.missing) > 0 {
		r := w.own.missing[0]
		err := r.arena.own.alloc(p.opts.OwnPager, r.arena.mem, r.first, r.pages)
		changed = changed || err == nil || !errors.Is(err, unix.ENOSPC)
		if errors.Is(err, gntalloc.ErrLost) {
			return true, w.renewArena(r.arena, err)
		}
		if err != nil {
			p.own.warned.Do(func() { p.warn(fmt.Errorf("packets are copied by address, for want of own pages: %w", err)) })
			w.own.retry = w.time().Add(ownRetry)
			break
		}
		w.own.missing = w.own.missing[1:]
		w.own.granted += r.pages
		p.own.granted.Add(int64(r.pages))
	}
	return changed, nil
}

// renewArena replaces an arena, a part of which is not mapped any more, and gives up own
// pages: the kernel is short of memory of its own. The rest of the old arena stays mapped,
// since to unmap all of it would take along what another thread has put in the gap.
func (w *worker) renewArena(a *arenaMem, lost error) error {
	w.closeOwn()
	w.own.opened = true // so that nothing is asked for again
	fresh, err := newArenaMem(len(a.mem))
	if err != nil {
		return fmt.Errorf("%w: %w", err, lost)
	}
	*a = fresh
	w.pool.warn(fmt.Errorf("worker %d copies packets by address: %w", w.index, lost))
	return nil
}

// closeOwn gives the worker's own pages back. No copy may be under way.
func (w *worker) closeOwn() {
	w.txMem.own.free()
	w.rxMem.own.free()
	w.pool.own.wanted.Add(-int64(w.own.wanted))
	w.pool.own.granted.Add(-int64(w.own.granted))
	w.own = ownState{}
}

// hasOwn reports whether copies name own pages.
func (w *worker) hasOwn() bool { return w.txMem.own.refs != nil || w.rxMem.own.refs != nil }

// copyAgain is called after a grant copy that failed, as a whole with an error, or for some
// segments. It finds out whether the reason is that an own gref is not valid any more,
// which should never be; a domain that was suspended has lost its grants, for example. Then
// it repeats by address what failed, and all copies go by address from then on.
//
// A guest whose grefs are bad costs one small copy more. It has no part in that copy, so it
// cannot bring it about that own pages are not used any more.
func (w *worker) copyAgain(q *Queue, segs []gntdev.Segment, failed error) error {
	first := slices.IndexFunc(segs, func(s gntdev.Segment) bool { return s.Status() != gntdev.StatusOkay && isOwn(&s) })
	if first < 0 || w.ownIsValid(q, &segs[first]) {
		return failed
	}
	w.pool.own.lost.Store(true)
	w.pool.warn(fmt.Errorf("worker %d copies packets by address from now on: pages that this domain granted to itself: %w",
		w.index, errors.Join(failed, segs[first].Status().Err())))
	for i := range segs {
		s := &segs[i]
		if s.Status() != gntdev.StatusOkay && w.toAddress(s) && failed == nil {
			if err := w.copyOnce(q, segs[i:i+1]); err != nil {
				return err
			}
		}
	}
	w.txMem.own.refs, w.rxMem.own.refs = nil, nil
	if failed != nil {
		return w.copyOnce(q, segs)
	}
	return nil
}

// isOwn reports whether a segment names an own page.
func isOwn(s *gntdev.Segment) bool {
	_, _, ok := s.Own()
	return ok
}

// ownIsValid reports whether a byte of the own page of s can be copied by its gref.
func (w *worker) ownIsValid(q *Queue, s *gntdev.Segment) bool {
	ref, off, _ := s.Own()
	test := w.own.test[:]
	test[0].FromGuest(xen.DomidSelf, ref, off, w.txMem.mem[txArenaBytes:txArenaBytes+1])
	return w.copyOnce(q, test) == nil && test[0].Status() == gntdev.StatusOkay
}

// toAddress makes a segment with an own page one by address. It reports whether it had an
// own page.
func (w *worker) toAddress(s *gntdev.Segment) bool {
	ref, off, ok := s.Own()
	if !ok {
		return false
	}
	m := &w.txMem
	page := m.own.find(ref)
	if page < 0 {
		m = &w.rxMem
		page = m.own.find(ref)
	}
	at := page*netif.PageSize + int(off)
	domid, guest, guestOff := s.Foreign()
	local := m.mem[at : at+s.Len()]
	if s.Direction() == gntdev.GuestIsSource {
		s.FromGuest(domid, guest, guestOff, local)
	} else {
		s.ToGuest(domid, guest, guestOff, local)
	}
	return true
}
