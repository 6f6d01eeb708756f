// SPDX-License-Identifier: Apache-2.0

package hyp

import (
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/xensim/gnttab"
	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

const permit, readonly = gnttab.PermitAccess, gnttab.ReadOnly

func TestAcquireStatus(t *testing.T) {
	const okay, general, badRef, badPage = gntdev.StatusOkay, gntdev.StatusGeneralError, gntdev.StatusBadGntref, gntdev.StatusBadPage
	for _, tc := range []struct {
		name        string
		ref         xen.Gref
		entry       gnttab.Entry // of ref, unless it is out of the table
		write       bool
		copy, mapIt gntdev.Status
	}{
		{"page granted for writing, read", ref, gnttab.Entry{Flags: permit, Frame: table}, false, okay, okay},
		{"page granted for writing, written", ref, gnttab.Entry{Flags: permit, Frame: table}, true, okay, okay},
		{"page granted for reading, read", ref, gnttab.Entry{Flags: permit | readonly, Frame: table}, false, okay, okay},
		{"page granted for reading, written", ref, gnttab.Entry{Flags: permit | readonly, Frame: table}, true, general, general},
		{"reference 0", 0, gnttab.Entry{Flags: permit, Frame: table}, true, okay, okay},
		{"last reference of the table", gnttab.RefsPerFrame - 1, gnttab.Entry{Flags: permit, Frame: table}, true, okay, okay},
		{"never granted", ref, gnttab.Entry{}, false, general, general},
		{"granted to another domain", ref, gnttab.Entry{Flags: permit, Domid: 7, Frame: table}, false, general, general},
		{"type is accept_transfer", ref, gnttab.Entry{Flags: 2, Frame: table}, false, general, general},
		{"type is transitive", ref, gnttab.Entry{Flags: 3, Frame: table}, false, general, general},
		{"sub-page flag", ref, gnttab.Entry{Flags: permit | gnttab.SubPage, Frame: table}, false, okay, general},
		{"last page of memory", ref, gnttab.Entry{Flags: permit, Frame: table + 31}, false, okay, okay},
		{"page behind the last", ref, gnttab.Entry{Flags: permit, Frame: table + 32}, false, badPage, badPage},
		{"largest page number", ref, gnttab.Entry{Flags: permit, Frame: ^uint32(0)}, false, badPage, badPage},
		{"a page of the grant table itself", ref, gnttab.Entry{Flags: permit, Frame: 0}, false, badPage, badPage},
		{"reference in a frame not set up", gnttab.RefsPerFrame, gnttab.Entry{Flags: permit, Frame: table}, false, badRef, badRef},
		{"reference behind the table", 2 * gnttab.RefsPerFrame, gnttab.Entry{}, false, badRef, badRef},
		{"largest reference", xen.Gref(^uint32(0)), gnttab.Entry{}, false, badRef, badRef},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newXen(t)
			d := newGuest(t, h)
			if uint64(tc.ref) < uint64(d.Table().Len()) {
				d.Table().Set(tc.ref, tc.entry)
			}
			for use, want := range map[Use]gntdev.Status{ForCopy: tc.copy, ForMap: tc.mapIt} {
				g, st := h.Domain(0, 0).Acquire(d, tc.ref, tc.write, use)
				if st != want {
					t.Errorf("use %d: %v, want %v", use, st, want)
				}
				if st == okay {
					g.Release()
				}
			}
			if uint64(tc.ref) < uint64(d.Table().Len()) && d.Table().Entry(tc.ref) != tc.entry {
				t.Errorf("entry is %+v afterwards, want %+v as before", d.Table().Entry(tc.ref), tc.entry)
			}
			if _, inUse, pins := d.gt.usage(); inUse != 0 || pins != 0 {
				t.Errorf("%d references in use, %d pins afterwards, want none", inUse, pins)
			}
		})
	}
}

func TestTableGrowsToItsLimit(t *testing.T) {
	h := newXen(t)
	d, dom0 := newGuest(t, h), h.Domain(0, 0)
	const late = gnttab.RefsPerFrame + 1
	d.Table().Set(late, gnttab.Entry{Flags: permit, Frame: table})
	if _, errno := d.SetupTable(3); errno != unix.EINVAL {
		t.Errorf("3 frames where 2 are the most: %v, want EINVAL", errno)
	}
	if n, errno := d.SetupTable(2); n != 2 || errno != 0 {
		t.Fatalf("2 frames: %d, %v", n, errno)
	}
	g, st := dom0.Acquire(d, late, false, ForMap)
	wantStatus(t, "reference of the new frame", st, gntdev.StatusOkay)
	g.Release()
	if n, errno := d.SetupTable(1); n != 2 || errno != 0 {
		t.Errorf("1 frame when there are 2: %d, %v; want the table as it is", n, errno)
	}
}

func TestGuestCannotRevokeWhatIsInUse(t *testing.T) {
	h := newXen(t)
	d, dom0 := newGuest(t, h), h.Domain(0, 0)
	grant(d, ref, permit, 0, table+page)

	r, st := dom0.Acquire(d, ref, false, ForMap)
	wantStatus(t, "map for reading", st, gntdev.StatusOkay)
	wantFlags(t, d, permit|gnttab.Reading)
	w, st := dom0.Acquire(d, ref, true, ForCopy)
	wantStatus(t, "copy into", st, gntdev.StatusOkay)
	wantFlags(t, d, permit|gnttab.Reading|gnttab.Writing)
	if d.Table().Revoke(ref) {
		t.Fatal("the guest could take the grant back")
	}
	w.Release()
	wantFlags(t, d, permit|gnttab.Reading)
	if d.Table().Revoke(ref) {
		t.Fatal("the guest could take the grant back while it is mapped")
	}
	r.Release()
	wantFlags(t, d, permit)
	if !d.Table().Revoke(ref) {
		t.Fatal("the guest cannot take back a grant that is not in use")
	}
	_, st = dom0.Acquire(d, ref, false, ForCopy)
	wantStatus(t, "after it was taken back", st, gntdev.StatusGeneralError)
}

func TestWhatIsInUseGoesOnByWhatXenKnows(t *testing.T) {
	h := newXen(t)
	d, dom0, other := newGuest(t, h), h.Domain(0, 0), newGuest(t, h)
	grant(d, ref, permit, 0, table+page)
	d.Frame(table + page)[0] = 42
	held, st := dom0.Acquire(d, ref, false, ForMap)
	wantStatus(t, "map", st, gntdev.StatusOkay)

	_, st = other.Acquire(d, ref, false, ForMap)
	wantStatus(t, "map by another domain", st, gntdev.StatusGeneralError)

	// A guest that breaks the rules overwrites an entry in use.
	grant(d, ref, permit, other.ID(), table+page+1)
	again, st := dom0.Acquire(d, ref, false, ForMap)
	wantStatus(t, "map again", st, gntdev.StatusOkay)
	if again.Page()[0] != 42 {
		t.Error("mapped another page than the first time")
	}
	again.Release()
	_, st = dom0.Acquire(d, ref, true, ForCopy)
	wantStatus(t, "copy into a page that is another by now", st, gntdev.StatusGeneralError)
	w, st := dom0.Acquire(d, ref, true, ForMap)
	wantStatus(t, "map for writing", st, gntdev.StatusOkay)
	if w.Page()[0] != 42 {
		t.Error("mapped another page for writing")
	}
	w.Release()
	held.Release()
	_, st = dom0.Acquire(d, ref, false, ForMap)
	wantStatus(t, "map after the last user let go", st, gntdev.StatusGeneralError)
}

func TestReadOnlyWhileMappedForReading(t *testing.T) {
	h := newXen(t)
	d, dom0 := newGuest(t, h), h.Domain(0, 0)
	grant(d, ref, permit|readonly, 0, table)
	r, _ := dom0.Acquire(d, ref, false, ForMap)
	_, st := dom0.Acquire(d, ref, true, ForMap)
	wantStatus(t, "map for writing", st, gntdev.StatusGeneralError)
	wantFlags(t, d, permit|readonly|gnttab.Reading)
	r.Release()
}

func TestUsesOfOneReferenceAreBounded(t *testing.T) {
	h := newXen(t)
	d, dom0 := newGuest(t, h), h.Domain(0, 0)
	grant(d, ref, permit, 0, table)
	var held []Grant
	for _, write := range []bool{false, true} {
		for i := range pinMax {
			g, st := dom0.Acquire(d, ref, write, ForMap)
			if st != gntdev.StatusOkay {
				t.Fatalf("use %d, write %v: %v", i, write, st)
			}
			held = append(held, g)
		}
		_, st := dom0.Acquire(d, ref, write, ForMap)
		wantStatus(t, "one more use", st, gntdev.StatusGeneralError)
	}
	for _, g := range held {
		g.Release()
	}
	wantFlags(t, d, permit)
}

func TestZombieUntilTheLastPageIsLetGo(t *testing.T) {
	h := newXen(t)
	d, dom0 := newGuest(t, h), h.Domain(0, 0)
	id := d.ID()
	grant(d, ref, permit, 0, table+page)
	grant(d, ref+1, permit, 0, table+page+1)
	d.Frame(table + page)[7], d.Frame(table + page + 1)[7] = 42, 43
	held, st := dom0.Acquire(d, ref, true, ForMap)
	wantStatus(t, "map", st, gntdev.StatusOkay)

	if !d.Kill() {
		t.Fatal("Kill says it was dead")
	}
	if d.Kill() {
		t.Error("a second Kill says it was not dead")
	}
	if h.Domain(id, 0) != d || !d.Info().Dying || d.Info().GrantsInUse != 1 {
		t.Errorf("not a zombie: %+v", d.Info())
	}
	if held.Page()[7] != 42 {
		t.Error("the mapped page is not what it was")
	}
	if d.Frame(table + page + 1)[7] != 0 {
		t.Error("a page without users keeps its contents")
	}
	for _, tc := range []struct {
		what string
		ref  xen.Gref
		use  Use
		want gntdev.Status
	}{
		{"copy of a good reference", ref + 1, ForCopy, gntdev.StatusBadPage},
		{"map of a good reference", ref + 1, ForMap, gntdev.StatusBadPage},
		{"copy of the mapped one", ref, ForCopy, gntdev.StatusBadDomain},
		{"map of the mapped one", ref, ForMap, gntdev.StatusBadDomain},
		{"copy of what was never granted", ref + 2, ForCopy, gntdev.StatusGeneralError},
		{"copy of a reference behind the table", 99999, ForCopy, gntdev.StatusBadGntref},
	} {
		_, st := dom0.Acquire(d, tc.ref, false, tc.use)
		wantStatus(t, tc.what, st, tc.want)
	}
	held.Release()
	if h.Domain(id, 0) != nil {
		t.Error("the domain is still there when no page is held")
	}
	_, st = dom0.Acquire(d, ref, false, ForCopy)
	wantStatus(t, "copy from a domain that is gone", st, gntdev.StatusBadDomain)
}

func TestDomainsOwnProcessKeepsItsMemory(t *testing.T) {
	h := newXen(t)
	d := newGuest(t, h)
	if !d.Hold() {
		t.Fatal("cannot hold a new domain")
	}
	d.Kill()
	if d.Hold() {
		t.Error("could hold a dying domain")
	}
	d.Frame(table)[0] = 1 // faults if it is not there
	d.Unhold()
	if h.Domain(d.ID(), 0) != nil {
		t.Error("the domain is still there")
	}
}

func TestDomainIdsComeBackOnlyAfterTheLast(t *testing.T) {
	h := newXen(t)
	a := newGuest(t, h)
	a.Kill()
	b := newGuest(t, h)
	if a.ID() == b.ID() {
		t.Errorf("id %d again at once", b.ID())
	}
	h.next = FirstReserved - 1
	last, first := newGuest(t, h), newGuest(t, h)
	if last.ID() != FirstReserved-1 || first.ID() != a.ID() {
		t.Errorf("ids %d and %d, want %d and then the first free one, %d", last.ID(), first.ID(), FirstReserved-1, a.ID())
	}
}

func TestMaptrackIsBounded(t *testing.T) {
	h := newXen(t)
	d := newGuest(t, h)
	if !d.TakeMaptrack(maptrackPerFrame) {
		t.Fatal("a frame's worth does not fit")
	}
	if d.TakeMaptrack(1) {
		t.Error("one more fits")
	}
	d.ReturnMaptrack(1)
	if !d.TakeMaptrack(1) {
		t.Error("one that was returned cannot be taken")
	}
}

func TestFaults(t *testing.T) {
	h := newXen(t)
	d, dom0 := newGuest(t, h), h.Domain(0, 0)
	grant(d, ref, permit, 0, table)
	grant(d, ref+1, permit, 0, table)
	acquire := func(ref xen.Gref, use Use) gntdev.Status {
		g, st := dom0.Acquire(d, ref, false, use)
		if st == gntdev.StatusOkay {
			g.Release()
		}
		return st
	}
	d.AddFault(wire.Fault{Op: wire.FaultCopy, Ref: ref, Status: -9, Count: 2})
	wantStatus(t, "map", acquire(ref, ForMap), gntdev.StatusOkay)
	wantStatus(t, "copy of another reference", acquire(ref+1, ForCopy), gntdev.StatusOkay)
	wantStatus(t, "first copy", acquire(ref, ForCopy), gntdev.StatusBadPage)
	wantStatus(t, "second copy", acquire(ref, ForCopy), gntdev.StatusBadPage)
	wantStatus(t, "third copy", acquire(ref, ForCopy), gntdev.StatusOkay)

	d.AddFault(wire.Fault{Op: wire.FaultMap, Ref: wire.AnyRef, Status: -13})
	wantStatus(t, "map of any", acquire(ref+1, ForMap), gntdev.StatusNoSpace)
	d.ClearFaults()
	wantStatus(t, "map after the faults", acquire(ref+1, ForMap), gntdev.StatusOkay)

	// A slow copy, whose grant is in use meanwhile.
	d.AddFault(wire.Fault{Op: wire.FaultCopy, Ref: ref, Delay: time.Hour, Count: 1})
	done := make(chan gntdev.Status)
	go func() { done <- acquire(ref, ForCopy) }()
	for d.Table().Head(ref).Flags()&gnttab.Reading == 0 {
		runtime.Gosched()
	}
	if d.Table().Revoke(ref) {
		t.Error("the guest could take the grant back during the copy")
	}
	h.Interrupt()
	wantStatus(t, "slow copy", <-done, gntdev.StatusOkay)
}

// TestGuestFlipsItsEntry: a guest that writes its entry all the time cannot keep Xen busy,
// and Xen never acts on a partial write.
func TestGuestFlipsItsEntry(t *testing.T) {
	h := newXen(t)
	d, dom0 := newGuest(t, h), h.Domain(0, 0)
	grant(d, ref, permit, 0, table)
	stop := make(chan struct{})
	var guest sync.WaitGroup
	guest.Go(func() {
		for i := uint32(0); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			// Xen must survive writes to an entry in use.
			grant(d, ref, permit|readonly*uint16(i%2), xen.Domid(i%3/2), table+i%40)
		}
	})
	for range 20000 {
		g, st := dom0.Acquire(d, ref, true, ForMap)
		switch st {
		case gntdev.StatusOkay:
			if g.Frame() < table || g.Frame() >= table+32 {
				t.Fatalf("got page %d, which is not the guest's", g.Frame())
			}
			g.Release()
		case gntdev.StatusGeneralError, gntdev.StatusBadPage:
		default:
			t.Fatalf("status %v", st)
		}
	}
	close(stop)
	guest.Wait()
	if _, inUse, pins := d.gt.usage(); inUse != 0 || pins != 0 {
		t.Errorf("%d in use, %d pins afterwards", inUse, pins)
	}
}

// TestGrantBooks: the counts balance after any operations in any order, the domain's death
// included.
func TestGrantBooks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h, err := New(small)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		d, err := h.Create(small)
		if err != nil {
			t.Fatal(err)
		}
		user := h.Domain(0, 0)
		const refs = 4
		type use struct {
			g     Grant
			ref   xen.Gref
			write bool
		}
		var held []use
		dead := false
		t.Repeat(map[string]func(*rapid.T){
			"grant": func(t *rapid.T) {
				ref := rapid.Uint32Range(0, refs-1).Draw(t, "ref")
				for _, u := range held {
					if u.ref == xen.Gref(ref) {
						return // a guest that keeps the rules
					}
				}
				if dead && len(held) == 0 {
					return
				}
				grant(d, xen.Gref(ref), rapid.SampledFrom([]uint16{0, permit, permit | readonly}).Draw(t, "flags"), 0, table+ref)
			},
			"acquire": func(t *rapid.T) {
				ref := rapid.Uint32Range(0, refs-1).Draw(t, "ref")
				write := rapid.Bool().Draw(t, "write")
				use_ := rapid.SampledFrom([]Use{ForCopy, ForMap}).Draw(t, "use")
				g, st := user.Acquire(d, xen.Gref(ref), write, use_)
				if st == gntdev.StatusOkay {
					if dead {
						t.Fatal("acquired a page of a dead domain")
					}
					held = append(held, use{g, xen.Gref(ref), write})
				}
			},
			"release": func(t *rapid.T) {
				if len(held) == 0 {
					return
				}
				i := rapid.IntRange(0, len(held)-1).Draw(t, "which")
				held[i].g.Release()
				held = append(held[:i], held[i+1:]...)
			},
			"kill": func(t *rapid.T) {
				if rapid.IntRange(0, 20).Draw(t, "chance") == 0 {
					d.Kill()
					dead = true
				}
			},
			"": func(t *rapid.T) {
				if got, want := h.Domain(d.ID(), 0) == nil, dead && len(held) == 0; got != want {
					t.Fatalf("domain gone: %v, want %v", got, want)
				}
				if dead && len(held) == 0 {
					return
				}
				if _, _, pins := d.gt.usage(); pins != len(held) {
					t.Fatalf("%d pins, want %d", pins, len(held))
				}
				var want [refs]uint16
				for _, u := range held {
					want[u.ref] |= gnttab.Reading
					if u.write {
						want[u.ref] |= gnttab.Writing
					}
				}
				for ref, want := range want {
					if got := d.Table().Head(xen.Gref(ref)).Flags() & (gnttab.Reading | gnttab.Writing); got != want {
						t.Fatalf("reference %d shows %#x, want %#x", ref, got, want)
					}
				}
			},
		})
		for _, u := range held {
			u.g.Release()
		}
	})
}
