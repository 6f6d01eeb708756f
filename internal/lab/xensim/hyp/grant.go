// SPDX-License-Identifier: Apache-2.0

package hyp

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/gnttab"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Use is the use of a grant, a map or a copy. Their rules differ a little.
type Use uint8

// The uses.
const (
	ForCopy Use = iota
	ForMap
)

// grantTable holds the hypervisor's own state of a domain's grants. The entries are in
// the domain's memory.
type grantTable struct {
	mu     sync.Mutex
	frames int           // set up so far; guarded by mu
	max    int           // never changes
	active []activeGrant // one for each reference of the frames; guarded by mu
	inUse  int           // of them pinned; guarded by mu
	pins   int           // sum of all pins; guarded by mu
	holds  int           // processes of the domain itself; guarded by mu
	dying  bool          // guarded by mu
	gone   bool          // dying, and no page is held: the memory is freed; guarded by mu
	faults faults        // guarded by mu
}

// activeGrant is struct active_grant_entry: a reference that is in use. Its values hold
// until the last release, regardless of the domain's writes to its table.
type activeGrant struct {
	readers, writers uint8 // GNTPIN_hstr, GNTPIN_hstw
	domid            xen.Domid
	frame            uint32
}

// pinMax is the most uses of one reference for reading, and for writing: Xen
// refuses as soon as the top bit of the 8-bit count is set.
const pinMax = 1 << 7

func (a *activeGrant) pinned() bool { return a.readers|a.writers != 0 }

func (t *grantTable) init(maxFrames int) {
	t.max = maxFrames
	t.grow(1)
}

// grow makes frames part of the table. The caller holds mu, or is alone.
func (t *grantTable) grow(frames int) {
	t.frames = frames
	t.active = append(t.active, make([]activeGrant, frames*gnttab.RefsPerFrame-len(t.active))...)
}

// SetupTable implements GNTTABOP_setup_table: it makes the table at least frames long. The
// frames are the domain's first ones. It returns the length of the table.
func (d *Domain) SetupTable(frames int) (int, unix.Errno) {
	d.counters.setupTableCalls.Add(1)
	t := &d.gt
	t.mu.Lock()
	defer t.mu.Unlock()
	if frames > t.max {
		return t.frames, unix.EINVAL
	}
	if frames > t.frames {
		t.grow(frames)
	}
	return t.frames, 0
}

// Table returns the domain's grant table in its memory, with its largest number of frames.
func (d *Domain) Table() gnttab.Table {
	return gnttab.Table(d.mem.bytes[:d.config.MaxGrantFrames*PageSize])
}

// Grant is one use of a grant: a page that is pinned until Release.
type Grant struct {
	user, owner *Domain
	ref         xen.Gref
	frame       uint32
	write       bool
	use         Use
}

// Page returns the granted page.
func (g Grant) Page() []byte { return g.owner.mem.frame(g.frame) }

// Frame returns the number of the granted page.
func (g Grant) Frame() uint32 { return g.frame }

// Acquire pins the page that owner granted to d as ref: map_grant_ref, or
// acquire_grant_for_copy, of Xen. Only with gntdev.StatusOkay is there
// something to Release.
func (d *Domain) Acquire(owner *Domain, ref xen.Gref, write bool, use Use) (Grant, gntdev.Status) {
	t := &owner.gt
	t.mu.Lock()
	op := wire.FaultCopy
	if use == ForMap {
		op = wire.FaultMap
	}
	st, delay := t.faults.strike(ref, op)
	var frame uint32
	if st == gntdev.StatusOkay {
		frame, st = owner.pin(ref, d.id, write, use)
	}
	t.mu.Unlock()
	d.h.sleep(delay)
	if st != gntdev.StatusOkay {
		d.counters.grantFailures.Add(1)
		return Grant{}, st
	}
	if use == ForMap {
		d.counters.grantMaps.Add(1)
		owner.counters.grantedMaps.Add(1)
	} else {
		owner.counters.grantedCopies.Add(1)
	}
	return Grant{user: d, owner: owner, ref: ref, frame: frame, write: write, use: use}, st
}

// pin is like Acquire in the granting domain, with its t.mu held.
func (d *Domain) pin(ref xen.Gref, by xen.Domid, write bool, use Use) (uint32, gntdev.Status) {
	t := &d.gt
	if t.gone {
		return 0, gntdev.StatusBadDomain
	}
	if uint64(ref) >= uint64(len(t.active)) {
		return 0, gntdev.StatusBadGntref
	}
	a := &t.active[ref]
	if a.pinned() && (a.domid != by || write && a.writers >= pinMax || !write && a.readers >= pinMax) {
		return 0, gntdev.StatusGeneralError
	}
	if !a.pinned() || write && a.writers == 0 {
		if st := d.setStatus(ref, a, by, write, use); st != gntdev.StatusOkay {
			return 0, st
		}
		frame := d.Table().Frame(ref)
		st := gntdev.StatusOkay
		switch {
		case t.dying || !d.owns(frame):
			st = gntdev.StatusBadPage
		case !a.pinned():
			a.domid, a.frame = by, frame
		case use == ForCopy && a.frame != frame:
			// The grant is mapped for reading, and its entry names another page by
			// now. A map continues with the pinned page, a copy fails.
			st = gntdev.StatusGeneralError
		}
		if st != gntdev.StatusOkay {
			d.reduceStatus(ref, a, write)
			return 0, st
		}
	} else if t.dying {
		// The memory is freed, although the pin is there.
		return 0, gntdev.StatusBadDomain
	}
	if !a.pinned() {
		t.inUse++
	}
	if write {
		a.writers++
	} else {
		a.readers++
	}
	t.pins++
	return a.frame, gntdev.StatusOkay
}

// owns reports whether frame is memory that the domain can grant. The frames of its grant
// table belong to Xen.
func (d *Domain) owns(frame uint32) bool {
	table, end := d.Frames()
	return uint64(frame) >= uint64(table) && uint64(frame) < uint64(end)
}

// unstable is the number of times a compare-and-swap of an entry may lose to the guest
// before Xen takes it for an attack.
const unstable = 5

// setStatus implements _set_status_v1: it checks the domain's entry and marks it as in
// use.
func (d *Domain) setStatus(ref xen.Gref, a *activeGrant, by xen.Domid, write bool, use Use) gntdev.Status {
	table, mask := d.Table(), gnttab.TypeMask
	if use == ForMap {
		mask |= gnttab.SubPage
	}
	for range unstable {
		old := table.Head(ref)
		if !a.pinned() && (old.Flags()&mask != gnttab.PermitAccess || old.Domid() != by) {
			return gntdev.StatusGeneralError
		}
		want := old.With(gnttab.Reading)
		if write {
			if old.Flags()&gnttab.ReadOnly != 0 {
				return gntdev.StatusGeneralError
			}
			want = want.With(gnttab.Writing)
		}
		if table.Swap(ref, old, want) {
			return gntdev.StatusOkay
		}
	}
	return gntdev.StatusGeneralError
}

// reduceStatus implements reduce_status_for_pin: it clears the flags that no remaining use
// of the reference needs.
func (d *Domain) reduceStatus(ref xen.Gref, a *activeGrant, write bool) {
	var flags uint16
	if !a.pinned() {
		flags |= gnttab.Reading
	}
	if write && a.writers == 0 {
		flags |= gnttab.Writing
	}
	if flags != 0 {
		d.Table().Clear(ref, flags)
	}
}

// Release ends one use. The last use of a dead domain's page frees the page, and the last
// page frees the domain.
func (g Grant) Release() {
	d, t := g.owner, &g.owner.gt
	if g.use == ForMap {
		g.user.counters.grantUnmaps.Add(1)
		d.counters.grantedUnmaps.Add(1)
	}
	t.mu.Lock()
	a := &t.active[g.ref]
	if g.write {
		a.writers--
	} else {
		a.readers--
	}
	t.pins--
	if !a.pinned() {
		t.inUse--
	}
	d.reduceStatus(g.ref, a, g.write)
	gone := t.checkGone()
	t.mu.Unlock()
	if gone {
		d.h.reap(d)
	}
}

// Hold keeps the memory of the domain while one of its own processes uses it.
// It returns false when the domain is dying.
func (d *Domain) Hold() bool {
	t := &d.gt
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dying {
		return false
	}
	t.holds++
	return true
}

// Unhold ends a Hold.
func (d *Domain) Unhold() {
	t := &d.gt
	t.mu.Lock()
	t.holds--
	gone := t.checkGone()
	t.mu.Unlock()
	if gone {
		d.h.reap(d)
	}
}

// checkGone reports, once, that no page of a dying domain is held any more. The caller
// holds mu and calls reap after it releases mu.
func (t *grantTable) checkGone() bool {
	if !t.dying || t.gone || t.pins > 0 || t.holds > 0 {
		return false
	}
	t.gone = true
	return true
}

// kill marks the domain as dying and frees the memory that no other domain uses. It
// reports whether no page is held any more.
func (t *grantTable) kill(m *memory) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dying = true
	inUse := map[uint32]bool{}
	for i := range t.active {
		if t.active[i].pinned() {
			inUse[t.active[i].frame] = true
		}
	}
	// The table itself stays, so that a late copy still finds a valid reference
	// and fails with GNTST_bad_page.
	from, end := t.max, len(m.bytes)/PageSize
	for n := from; n < end; n++ {
		if inUse[uint32(n)] {
			m.discard(from, n)
			from = n + 1
		}
	}
	m.discard(from, end)
	return t.checkGone()
}

func (t *grantTable) usage() (frames, inUse, pins int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.frames, t.inUse, t.pins
}

// TakeMaptrack reserves n maptrack entries of d, one for each page that it maps next. If
// it returns false, the map fails with GNTST_no_space.
func (d *Domain) TakeMaptrack(n int) bool {
	limit := int64(d.config.MaxMaptrackFrames) * maptrackPerFrame
	if d.maptrack.Add(int64(n)) > limit {
		d.maptrack.Add(int64(-n))
		return false
	}
	return true
}

// ReturnMaptrack ends the use of n maptrack entries.
func (d *Domain) ReturnMaptrack(n int) { d.maptrack.Add(int64(-n)) }
