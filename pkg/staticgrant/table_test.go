// SPDX-License-Identifier: Apache-2.0

package staticgrant

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xentest"
)

const (
	ok      = netif.CtrlSuccess
	invalid = netif.CtrlInvalidParameter
)

// TestAdd: every way in which an ADD_GREF_MAPPING can go. What is refused leaves
// the table and the number of mappings as they were.
func TestAdd(t *testing.T) {
	unknownFlag := entries(20, 21)
	unknownFlag[1].Flags = 1 << 1
	unknownHigh := entries(20)
	unknownHigh[0].Flags = netif.GrefReadOnly | 1<<15
	readOnly := entries(30)
	readOnly[0].Flags = netif.GrefReadOnly
	dirty := entries(22)
	dirty[0].Status = 0xffff
	tests := []struct {
		name   string
		list   []netif.GrefEntry
		budget int
		want   error
		calls  int // of Map
	}{
		{name: "several grefs", list: entries(20, 21, 22), calls: 3},
		{name: "no entries", list: nil},
		{name: "reserved grefs are grefs like any other", list: entries(0, 1, 7), calls: 3},
		{name: "the largest gref", list: entries(math.MaxUint32, math.MaxUint32-1), calls: 2},
		{name: "status need not be cleared beforehand", list: dirty, calls: 1},
		{name: "read-only grant, asked for read-only", list: readOnly, calls: 1},
		{name: "read-only grant, asked for writable", list: entries(20, 30), want: gntdev.StatusPermissionDenied, calls: 1},
		{name: "bad gref first", list: entries(99, 20, 21), want: gntdev.StatusBadGntref, calls: 3},
		{name: "bad gref in the middle", list: entries(20, 99, 21), want: gntdev.StatusBadGntref, calls: 2},
		{name: "bad gref last", list: entries(20, 21, 99), want: gntdev.StatusBadGntref, calls: 1},
		{name: "twice in one list", list: entries(20, 21, 20), want: ErrDuplicate},
		{name: "in the table already", list: entries(20, 10), want: ErrDuplicate, calls: 2},
		{name: "unknown flag", list: unknownFlag, want: ErrFlags},
		{name: "unknown flag besides a known one", list: unknownHigh, want: ErrFlags},
		{name: "exactly full", list: entries(run(100, 6)...), calls: 6},
		{name: "one more than the table takes", list: entries(run(100, 7)...), want: ErrFull, calls: 7},
		{name: "as many as a list page has, to a small table", list: entries(run(100, MaxList)...), want: ErrFull, calls: MaxList},
		{name: "more than a list page has", list: entries(run(100, MaxList+1)...), want: ErrTooLong},
		{name: "budget used up", list: entries(20, 21), budget: 3, want: ErrBudget},
		{name: "budget suffices", list: entries(20, 21), budget: 4, calls: 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newPages(t)
			f.bad, f.ro = []xen.Gref{99}, []xen.Gref{30}
			if tt.budget == 0 {
				tt.budget = 2 * DefaultBudget
			}
			budget := NewBudget(tt.budget, nil)
			s, table := f.source(budget), New(8)
			if err := add(t, s, table, entries(10, 11)); err != nil {
				t.Fatal(err)
			}
			before := f.calls()
			want := []xen.Gref{10, 11}
			err := add(t, s, table, tt.list)
			if !errors.Is(err, tt.want) || err != nil && tt.want == nil {
				t.Fatalf("error %v, want %v", err, tt.want)
			}
			if err == nil {
				want = append(want, refsOf(tt.list)...)
			}
			if diff := cmp.Diff(refsOf(entries(want...)), refsOf(table.Snapshot())); diff != "" {
				t.Errorf("table (-want +got):\n%s", diff)
			}
			if calls := f.calls() - before; calls != tt.calls {
				t.Errorf("%d grefs were mapped, want %d", calls, tt.calls)
			}
			if f.count() != len(want) || budget.Used() != len(want) || table.Len() != len(want) {
				t.Errorf("%d mapped, %d charged, %d in the table, want %d of each", f.count(), budget.Used(), table.Len(), len(want))
			}
			checkLookups(t, table, want)
			if err := table.Close(); err != nil || f.count() != 0 || budget.Used() != 0 {
				t.Errorf("after close (%v) %d mapped, %d charged", err, f.count(), budget.Used())
			}
		})
	}
}

// checkLookups looks all of refs up and some that are not there.
func checkLookups(t *testing.T, table *Table, refs []xen.Gref) {
	t.Helper()
	there := map[xen.Gref]bool{}
	for _, ref := range refs {
		there[ref] = true
		g := table.Lookup(ref)
		if g.Page == nil {
			t.Fatalf("gref %d is not found", ref)
		}
		if got := xen.Gref(binary.LittleEndian.Uint32(g.Page[:])); got != ref {
			t.Fatalf("gref %d finds the page of %d", ref, got)
		}
	}
	for _, ref := range []xen.Gref{0, 1, 19, 99, 1 << 16, 1 << 31, math.MaxUint32} {
		if !there[ref] && table.Lookup(ref).Page != nil {
			t.Fatalf("gref %d is found", ref)
		}
	}
}

// TestFailureAtEveryEntry is XSA-365: whichever entry fails, those mapped before it
// do not stay mapped.
func TestFailureAtEveryEntry(t *testing.T) {
	const n = 64
	for k := range n {
		f := newPages(t)
		f.bad = []xen.Gref{100 + xen.Gref(k)}
		budget := NewBudget(DefaultBudget, nil)
		_, err := f.source(budget).Prepare(t.Context(), entries(run(100, n)...))
		var e *Error
		if !errors.As(err, &e) || e.Index != k || e.Ref != f.bad[0] || !errors.Is(err, gntdev.StatusBadGntref) {
			t.Errorf("failure at %d is reported as %v", k, err)
		}
		if f.calls() != n-k || f.count() != 0 || budget.Used() != 0 {
			t.Errorf("failure at %d: %d map calls, %d mapped, %d charged", k, f.calls(), f.count(), budget.Used())
		}
	}
}

// TestDel: every way in which an entry of a DEL_GREF_MAPPING can go.
func TestDel(t *testing.T) {
	odd := entries(10)
	odd[0].Flags = 0xfffe
	tests := []struct {
		name string
		list []netif.GrefEntry
		want []netif.CtrlStatus
		n    int
		left []xen.Gref
	}{
		{"one", entries(11), []netif.CtrlStatus{ok}, 1, []xen.Gref{10, 12, 13}},
		{"all", entries(13, 12, 11, 10), []netif.CtrlStatus{ok, ok, ok, ok}, 4, nil},
		{"never added", entries(9, 10), []netif.CtrlStatus{invalid, ok}, 1, []xen.Gref{11, 12, 13}},
		{"same gref twice", entries(10, 10), []netif.CtrlStatus{ok, invalid}, 1, []xen.Gref{11, 12, 13}},
		{"unknown flags are ignored", odd, []netif.CtrlStatus{ok}, 1, []xen.Gref{11, 12, 13}},
		{"no entries", nil, nil, 0, []xen.Gref{10, 11, 12, 13}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newPages(t)
			table := new(Table)
			if err := add(t, f.source(nil), table, entries(10, 11, 12, 13)); err != nil {
				t.Fatal(err)
			}
			for i := range tt.list {
				tt.list[i].Status = 0xaaaa
			}
			if n := del(t, table, tt.list); n != tt.n {
				t.Errorf("%d unmapped, want %d", n, tt.n)
			}
			if diff := cmp.Diff(tt.want, statuses(tt.list)); diff != "" {
				t.Errorf("statuses (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.left, refsOf(table.Snapshot())); diff != "" {
				t.Errorf("left in the table (-want +got):\n%s", diff)
			}
			if f.count() != len(tt.left) {
				t.Errorf("%d mapped, want %d", f.count(), len(tt.left))
			}
			checkLookups(t, table, tt.left)
		})
	}
}

// TestReadOnlyGrants are mapped read-only and found as such.
func TestReadOnlyGrants(t *testing.T) {
	f := newPages(t)
	var seen []gntdev.Prot
	f.onMap = func(c xentest.Call) { seen = append(seen, c.Prot) }
	table := new(Table)
	list := entries(5, 6)
	list[1].Flags = netif.GrefReadOnly
	if err := add(t, f.source(nil), table, list); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]gntdev.Prot{gntdev.ReadOnly, gntdev.ReadWrite}, seen); diff != "" {
		t.Errorf("protections (-want +got):\n%s", diff)
	}
	if table.Lookup(5).ReadOnly || !table.Lookup(6).ReadOnly {
		t.Error("read-only is not what was asked for")
	}
	if diff := cmp.Diff(list, table.Snapshot(), cmp.AllowUnexported(netif.GrefEntry{})); diff != "" {
		t.Errorf("snapshot (-want +got):\n%s", diff)
	}
}

// TestSameGrefOnTwoQueues is mapped twice; each queue gives up its own.
func TestSameGrefOnTwoQueues(t *testing.T) {
	f := newPages(t)
	budget := NewBudget(2, nil)
	s := f.source(budget)
	a, b := new(Table), new(Table)
	for _, table := range []*Table{a, b} {
		if err := add(t, s, table, entries(5)); err != nil {
			t.Fatal(err)
		}
	}
	if f.count() != 2 || a.Lookup(5).Page == b.Lookup(5).Page {
		t.Error("two queues share a mapping")
	}
	if del(t, a, entries(5)) != 1 || a.Lookup(5).Page != nil {
		t.Error("the first queue kept it")
	}
	checkLookups(t, b, []xen.Gref{5})
}

// TestUnmapFails: the guest is not told that it has a page back which is still
// mapped, and the page stays charged.
func TestUnmapFails(t *testing.T) {
	f := newPages(t)
	f.FailRef(xentest.OpUnmap, 6, errStuck)
	budget := NewBudget(8, nil)
	table := new(Table)
	if err := add(t, f.source(budget), table, entries(5, 6, 7)); err != nil {
		t.Fatal(err)
	}
	list := entries(5, 6, 7)
	n, err := table.Detach(list).Unmap()
	if n != 2 || !errors.Is(err, errStuck) {
		t.Errorf("unmap = %d, %v", n, err)
	}
	if diff := cmp.Diff([]netif.CtrlStatus{ok, invalid, ok}, statuses(list)); diff != "" {
		t.Errorf("statuses (-want +got):\n%s", diff)
	}
	if budget.Used() != 1 || table.Len() != 0 {
		t.Errorf("%d charged, %d in the table", budget.Used(), table.Len())
	}
}

// TestMapperGivesWrongSize: a mapping that is not a page is not used as one.
func TestMapperGivesWrongSize(t *testing.T) {
	unmapped := false
	s := Source{Mapper: mapFunc(func() (*gntdev.Mapping, error) {
		return gntdev.NewMapping(make([]byte, 100), func() error { unmapped = true; return nil }), nil
	})}
	if _, err := s.Prepare(t.Context(), entries(1)); err == nil || !unmapped {
		t.Errorf("error %v, unmapped %v", err, unmapped)
	}
}

type mapFunc func() (*gntdev.Mapping, error)

func (f mapFunc) Map(xen.Domid, []xen.Gref, gntdev.Prot) (*gntdev.Mapping, error) { return f() }

// TestDisconnectWhileMapping: a guest whose pages map slowly does not hold up
// its own disconnect for longer than one of them takes.
func TestDisconnectWhileMapping(t *testing.T) {
	f := newPages(t)
	ctx, cancel := context.WithCancel(t.Context())
	f.onMap = func(c xentest.Call) {
		if c.Ref == 100+512-3 {
			cancel()
		}
	}
	budget := NewBudget(DefaultBudget, nil)
	_, err := f.source(budget).Prepare(ctx, entries(run(100, 512)...))
	if !errors.Is(err, context.Canceled) || f.calls() != 3 || f.count() != 0 || budget.Used() != 0 {
		t.Errorf("%v after %d map calls; %d mapped, %d charged", err, f.calls(), f.count(), budget.Used())
	}
}

// TestWorkerIsGone: what was prepared for a worker that is no more can be given
// up.
func TestWorkerIsGone(t *testing.T) {
	f := newPages(t)
	budget := NewBudget(8, nil)
	p, err := f.source(budget).Prepare(t.Context(), entries(1, 2, 3))
	if err != nil || p.Len() != 3 || budget.Used() != 3 {
		t.Fatalf("%v, %d charged", err, budget.Used())
	}
	if err := p.Unmap(); err != nil || f.count() != 0 || budget.Used() != 0 || p.Len() != 0 {
		t.Errorf("%v, %d mapped, %d charged", err, f.count(), budget.Used())
	}
	table := new(Table)
	if err := table.Commit(p); err != nil || table.Len() != 0 {
		t.Errorf("commit of nothing: %v, %d in the table", err, table.Len())
	}
}

// TestUnmapAfterCommit does nothing: the pages are the table's.
func TestUnmapAfterCommit(t *testing.T) {
	f := newPages(t)
	table := new(Table)
	p, err := f.source(nil).Prepare(t.Context(), entries(1, 2, 3))
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Commit(p); err != nil {
		t.Fatal(err)
	}
	if err := p.Unmap(); err != nil || f.count() != 3 {
		t.Errorf("%v, %d mapped", err, f.count())
	}
	checkLookups(t, table, []xen.Gref{1, 2, 3})
	closeAtEnd(t, table)
}

// TestBudgets: tables of one guest share its budget, and guests share the
// process's.
func TestBudgets(t *testing.T) {
	f := newPages(t)
	host := NewBudget(10, nil)
	a, b := NewBudget(6, host), NewBudget(6, host)
	qa, qa2, qb := new(Table), new(Table), new(Table)
	steps := []struct {
		budget *Budget
		table  *Table
		list   []netif.GrefEntry
		want   error
	}{
		{a, qa, entries(run(0, 4)...), nil},
		{a, qa2, entries(run(10, 3)...), ErrBudget}, // 7 of 6
		{a, qa2, entries(run(10, 2)...), nil},
		{b, qb, entries(run(20, 5)...), ErrBudget}, // 11 of the host's 10
		{b, qb, entries(run(20, 4)...), nil},
	}
	for i, s := range steps {
		if err := add(t, f.source(s.budget), s.table, s.list); !errors.Is(err, s.want) || err != nil && s.want == nil {
			t.Errorf("step %d: %v, want %v", i, err, s.want)
		}
	}
	if got := [3]int{host.Used(), a.Used(), b.Used()}; got != [3]int{10, 6, 4} {
		t.Errorf("used %v", got)
	}
	del(t, qa, entries(0, 1))
	if err := qa2.Close(); err != nil {
		t.Error(err)
	}
	if got := [3]int{host.Used(), a.Used(), b.Used()}; got != [3]int{6, 2, 4} {
		t.Errorf("used %v after the first guest gave some back", got)
	}
}

// TestRestore maps again what a daemon had mapped that was killed, as far as the
// guest still grants it.
func TestRestore(t *testing.T) {
	f := newPages(t)
	old := new(Table)
	list := entries(run(40, 20)...)
	list[7].Flags = netif.GrefReadOnly
	if err := add(t, f.source(nil), old, list); err != nil {
		t.Fatal(err)
	}
	snap := old.Snapshot()

	t.Run("everything", func(t *testing.T) {
		f, table := newPages(t), new(Table)
		closeAtEnd(t, table)
		p, err := f.source(NewBudget(20, nil)).Restore(t.Context(), snap)
		if err != nil {
			t.Fatal(err)
		}
		if err := table.Commit(p); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(snap, table.Snapshot(), cmp.AllowUnexported(netif.GrefEntry{})); diff != "" {
			t.Errorf("restored (-want +got):\n%s", diff)
		}
	})
	t.Run("the guest revoked some", func(t *testing.T) {
		f, table := newPages(t), new(Table)
		closeAtEnd(t, table)
		f.bad = []xen.Gref{40, 55}
		budget := NewBudget(20, nil)
		p, err := f.source(budget).Restore(t.Context(), snap)
		if !errors.Is(err, gntdev.StatusBadGntref) || p.Len() != 18 || budget.Used() != 18 {
			t.Fatalf("%d restored, %d charged: %v", p.Len(), budget.Used(), err)
		}
		if err := table.Commit(p); err != nil {
			t.Fatal(err)
		}
		if table.Lookup(40).Page != nil || table.Lookup(41).Page == nil {
			t.Error("the wrong ones were restored")
		}
	})
	t.Run("the budget was made smaller", func(t *testing.T) {
		f := newPages(t)
		p, err := f.source(NewBudget(5, nil)).Restore(t.Context(), snap)
		if !errors.Is(err, ErrBudget) || p.Len() != 5 || f.count() != 5 {
			t.Errorf("%d restored: %v", p.Len(), err)
		}
		if err := p.Unmap(); err != nil {
			t.Error(err)
		}
	})
	t.Run("the record names one twice", func(t *testing.T) {
		f := newPages(t)
		p, err := f.source(nil).Restore(t.Context(), entries(1, 2, 1))
		if !errors.Is(err, ErrDuplicate) || p.Len() != 2 {
			t.Errorf("%d restored: %v", p.Len(), err)
		}
		if err := p.Unmap(); err != nil {
			t.Error(err)
		}
	})
	t.Run("nothing", func(t *testing.T) {
		p, err := newPages(t).source(nil).Restore(t.Context(), nil)
		if err != nil || p.Len() != 0 {
			t.Errorf("%d restored: %v", p.Len(), err)
		}
	})
}

// TestClose: everything is unmapped, and the table can be used again.
func TestClose(t *testing.T) {
	f := newPages(t)
	table := New(4)
	if err := add(t, f.source(nil), table, entries(1, 2)); err != nil {
		t.Fatal(err)
	}
	if err := table.Close(); err != nil || f.count() != 0 {
		t.Errorf("%v, %d mapped", err, f.count())
	}
	if table.Len() != 0 || table.Lookup(1).Page != nil || table.Limit() != 4 {
		t.Error("not empty after close")
	}
	if err := table.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	if err := add(t, f.source(nil), table, entries(1, 2)); err != nil {
		t.Errorf("the next connection: %v", err)
	}
}

// TestLimits of tables as they can be configured.
func TestLimits(t *testing.T) {
	for limit, want := range map[int]int{-1: 1, 0: 1, 1: 1, 512: 512, 1 << 16: 1 << 16, 1 << 20: 1 << 16} {
		if got := New(limit).Limit(); got != want {
			t.Errorf("New(%d).Limit() = %d, want %d", limit, got, want)
		}
	}
	if got := new(Table).Limit(); got != 512 {
		t.Errorf("default limit %d", got)
	}
}

// hostileSets are grefs that a frontend could choose to make look-ups slow.
func hostileSets(known *Table) map[string][]xen.Gref {
	random := make([]xen.Gref, 0, DefaultLimit)
	seen := map[xen.Gref]bool{}
	for len(random) < DefaultLimit {
		if r := rand.Uint32(); !seen[xen.Gref(r)] {
			seen[xen.Gref(r)] = true
			random = append(random, xen.Gref(r))
		}
	}
	sets := map[string][]xen.Gref{"sequential": run(768, DefaultLimit), "random": random}
	for _, shift := range []int{1, 9, 16, 23} {
		refs := make([]xen.Gref, DefaultLimit)
		for i := range refs {
			refs[i] = xen.Gref(i) << shift
		}
		sets[fmt.Sprintf("stride %d", 1<<shift)] = refs
	}
	// A guest that knew the multiplier could choose grefs that share one slot.
	if known != nil {
		var same []xen.Gref
		for r := xen.Gref(0); len(same) < DefaultLimit; r++ {
			if known.home(r)&^7 == 512 {
				same = append(same, r)
			}
		}
		sets["chosen for a multiplier"] = same
	}
	return sets
}

// worst is the farthest that any gref stands from its slot.
func worst(t *Table) (d uint64) {
	for i := range t.slots {
		if s := &t.slots[i]; s.page != nil {
			d = max(d, t.steps(t.home(s.ref), uint64(i)))
		}
	}
	return d
}

// TestNoGrefsCrowd: for any grefs of a frontend, look-ups stay short and the array
// small. The grefs come in lists of all lengths, so that the array grows.
func TestNoGrefsCrowd(t *testing.T) {
	f := newPages(t)
	known := new(Table)
	if err := add(t, f.source(nil), known, entries(run(0, DefaultLimit)...)); err != nil {
		t.Fatal(err)
	}
	for name, refs := range hostileSets(known) {
		for _, part := range []int{1, 7, 100, 512} {
			t.Run(fmt.Sprintf("%s by %d", name, part), func(t *testing.T) {
				table := new(Table)
				// The worst start: the very multiplier the grefs were chosen for.
				table.mult, table.shift = known.mult, known.shift
				table.slots = make([]slot, len(known.slots))
				for at := 0; at < len(refs); at += part {
					if err := add(t, f.source(nil), table, entries(refs[at:min(at+part, len(refs))]...)); err != nil {
						t.Fatal(err)
					}
					if d := worst(table); d > maxProbe {
						t.Fatalf("a gref is %d slots from its own with %d in the table", d, table.Len())
					}
				}
				checkLookups(t, table, refs)
				if got := len(table.slots); got != 2048 {
					t.Errorf("%d slots for %d grefs", got, len(refs))
				}
			})
		}
	}
}

// TestBadMultipliersAreReplaced: of so many at random some are bad for grefs in a
// row.
func TestBadMultipliersAreReplaced(t *testing.T) {
	table := new(Table)
	if err := add(t, newPages(t).source(nil), table, entries(run(768, DefaultLimit)...)); err != nil {
		t.Fatal(err)
	}
	for range 2000 {
		table.spread()
		if d := worst(table); d > maxProbe {
			t.Fatalf("a gref is %d slots from its own", d)
		}
	}
}

// TestCrowdedTableStillWorks: a table none of whose multipliers is good is slow, not
// wrong.
func TestCrowdedTableStillWorks(t *testing.T) {
	f := newPages(t)
	table := new(Table)
	if err := add(t, f.source(nil), table, entries(run(0, 64)...)); err != nil {
		t.Fatal(err)
	}
	table.mult = 0 // everything belongs into slot 0
	clear(table.slots)
	for id := range table.items {
		table.place(uint16(id))
	}
	checkLookups(t, table, run(0, 64))
	for i := range xen.Gref(32) {
		ref := i * 2
		if del(t, table, entries(ref)) != 1 {
			t.Fatalf("gref %d cannot be taken out", ref)
		}
		left := refsOf(table.Snapshot())
		if len(left) != 63-int(i) {
			t.Fatalf("%d left", len(left))
		}
		checkLookups(t, table, left)
		if table.Lookup(ref).Page != nil {
			t.Fatalf("gref %d is found after it was taken out", ref)
		}
	}
}

// TestGrefsInARowShareBlocks: eight of them stand side by side, in any order.
func TestGrefsInARowShareBlocks(t *testing.T) {
	table := new(Table)
	if err := add(t, newPages(t).source(nil), table, entries(run(768, DefaultLimit)...)); err != nil {
		t.Fatal(err)
	}
	for first := xen.Gref(768); first < 768+DefaultLimit; first += inBlock + 1 {
		places := map[uint64]bool{}
		for ref := first; ref <= first+inBlock; ref++ {
			home := table.home(ref)
			if home/(inBlock+1) != table.home(first)/(inBlock+1) {
				t.Errorf("gref %d belongs into slot %d, gref %d into slot %d", ref, home, first, table.home(first))
			}
			places[home] = true
		}
		if len(places) != inBlock+1 {
			t.Errorf("grefs %d to %d belong into %d slots", first, first+inBlock, len(places))
		}
	}
}

// TestGapsAreClosed: those that moved up to make room move back, those that stand
// where they belong stay.
func TestGapsAreClosed(t *testing.T) {
	for round := range 50 {
		rng := rand.New(rand.NewPCG(uint64(round), 0))
		table := new(Table)
		refs := run(0, 60) // of 256 slots
		for i := range refs {
			if rng.IntN(2) == 0 {
				refs[i] += 256 * (inBlock + 1) // the same slot as another's, or a free one
			}
			refs[i] += xen.Gref(rng.IntN(3)) << 16
		}
		if err := add(t, newPages(t).source(nil), table, entries(refs...)); err != nil {
			t.Fatal(err)
		}
		table.mult = 1 << table.shift // side by side, by the lowest bits
		if round%2 == 0 {
			table.mult /= 2 // and two to a slot
		}
		clear(table.slots)
		for id := range table.items {
			table.place(uint16(id))
		}
		rng.Shuffle(len(refs), func(i, j int) { refs[i], refs[j] = refs[j], refs[i] })
		for len(refs) > 0 {
			if del(t, table, entries(refs[0])) != 1 || table.Lookup(refs[0]).Page != nil {
				t.Fatalf("gref %d is still there", refs[0])
			}
			refs = refs[1:]
			checkLookups(t, table, refs)
		}
	}
}

// TestItemsAreUsedAgain: adding and removing for ever takes no more memory.
func TestItemsAreUsedAgain(t *testing.T) {
	f := newPages(t)
	s, table := f.source(nil), new(Table)
	for i := range xen.Gref(200) {
		list := entries(run(i*1000, 300)...)
		if err := add(t, s, table, list); err != nil {
			t.Fatal(err)
		}
		if n := del(t, table, list); n != 300 {
			t.Fatalf("%d taken out", n)
		}
		for _, e := range list {
			if err := f.Revoke(e.Ref); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(table.items) != 300 || len(table.slots) != 2048 || f.count() != 0 {
		t.Errorf("%d items, %d slots, %d mapped", len(table.items), len(table.slots), f.count())
	}
}

func TestLookupAllocatesNothing(t *testing.T) {
	f := newPages(t)
	table := new(Table)
	if err := add(t, f.source(nil), table, entries(run(0, DefaultLimit)...)); err != nil {
		t.Fatal(err)
	}
	ref := xen.Gref(0)
	if n := testing.AllocsPerRun(1000, func() {
		_ = table.Lookup(ref % 1024)
		ref++
	}); n != 0 {
		t.Errorf("%v allocations per look-up", n)
	}
}
