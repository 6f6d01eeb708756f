// SPDX-License-Identifier: Apache-2.0

package staticgrant

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/internal/lab/fuzzloop"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// grefs is a drawn gref: few, so that lists meet each other; some of them far
// apart and some that do not map.
func grefs() *rapid.Generator[xen.Gref] {
	return rapid.Custom(func(t *rapid.T) xen.Gref {
		ref := rapid.Uint32Range(0, 40).Draw(t, "gref")
		if ref%3 == 0 {
			ref <<= 20
		}
		return xen.Gref(ref)
	})
}

const badGref, roGref = 7, 8

func lists() *rapid.Generator[[]netif.GrefEntry] {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) netif.GrefEntry {
		return netif.GrefEntry{
			Ref:    grefs().Draw(t, "ref"),
			Flags:  rapid.SampledFrom([]uint16{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2}).Draw(t, "flags"),
			Status: rapid.Uint16().Draw(t, "status"),
		}
	}), 0, 8)
}

// modelGrant is a grant in a reference table.
type modelGrant struct {
	ro bool
}

// model is a table with nothing to it, and the steps of changes that are under
// way.
type model struct {
	f      *pages
	budget *Budget
	table  *Table
	want   map[xen.Gref]*modelGrant

	prepared []*Prepared
	lists    [][]netif.GrefEntry // of prepared
	removed  []*Removed
	expect   []int // grants in removed
	out      int   // mapped and not in the table
}

func (m *model) refused(list []netif.GrefEntry) error {
	seen := map[xen.Gref]bool{}
	for _, e := range list {
		if e.Flags > netif.GrefReadOnly {
			return ErrFlags
		}
		if seen[e.Ref] {
			return ErrDuplicate
		}
		seen[e.Ref] = true
	}
	if len(m.want)+m.out+len(list) > int(m.budget.max) {
		return ErrBudget
	}
	for _, e := range slices.Backward(list) { // as they are mapped
		switch {
		case e.Ref == badGref:
			return gntdev.StatusBadGntref
		case e.Ref == roGref && e.Flags == 0:
			return gntdev.StatusPermissionDenied
		}
	}
	return nil
}

func (m *model) prepare(t *rapid.T) {
	list := lists().Draw(t, "list")
	p, err := m.f.source(m.budget).Prepare(t.Context(), list)
	if want := m.refused(list); !errors.Is(err, want) || err != nil && want == nil {
		t.Fatalf("prepare %v: %v, want %v", list, err, want)
	}
	if err == nil {
		m.prepared, m.lists = append(m.prepared, p), append(m.lists, list)
		m.out += len(list)
	}
}

// take draws one of the prepared and takes it out.
func (m *model) take(t *rapid.T) (*Prepared, []netif.GrefEntry) {
	if len(m.prepared) == 0 {
		t.Skip("nothing prepared")
	}
	i := rapid.IntRange(0, len(m.prepared)-1).Draw(t, "which")
	p, list := m.prepared[i], m.lists[i]
	m.prepared, m.lists = slices.Delete(m.prepared, i, i+1), slices.Delete(m.lists, i, i+1)
	m.out -= len(list)
	return p, list
}

func (m *model) commit(t *rapid.T) {
	p, list := m.take(t)
	var want error
	for _, e := range list {
		if m.want[e.Ref] != nil {
			want = ErrDuplicate
		}
	}
	if len(m.want)+len(list) > m.table.Limit() {
		want = ErrFull
	}
	err := m.table.Commit(p)
	if !errors.Is(err, want) || err != nil && want == nil {
		t.Fatalf("commit %v: %v, want %v", list, err, want)
	}
	if err == nil {
		for _, e := range list {
			m.want[e.Ref] = &modelGrant{ro: e.Flags != 0}
		}
	}
	if err := p.Unmap(); err != nil {
		t.Fatal(err)
	}
}

func (m *model) abort(t *rapid.T) {
	p, _ := m.take(t)
	if err := p.Unmap(); err != nil {
		t.Fatal(err)
	}
}

func (m *model) detach(t *rapid.T) {
	list := lists().Draw(t, "list")
	sent := slices.Clone(list)
	r := m.table.Detach(list)
	n := 0
	for i, e := range list {
		want := netif.CtrlInvalidParameter
		if g := m.want[e.Ref]; g != nil {
			want = netif.CtrlSuccess
			delete(m.want, e.Ref)
			n++
		}
		if e.Status != uint16(want) || e.Ref != sent[i].Ref || e.Flags != sent[i].Flags {
			t.Fatalf("entry %d of %v: %+v, want status %v", i, sent, e, want)
		}
	}
	m.removed, m.expect = append(m.removed, r), append(m.expect, n)
	m.out += n
}

func (m *model) unmap(t *rapid.T) {
	if len(m.removed) == 0 {
		t.Skip("nothing removed")
	}
	i := rapid.IntRange(0, len(m.removed)-1).Draw(t, "which")
	n, err := m.removed[i].Unmap()
	if n != m.expect[i] || err != nil {
		t.Fatalf("unmapped %d, %v; want %d", n, err, m.expect[i])
	}
	m.out -= n
	m.removed, m.expect = slices.Delete(m.removed, i, i+1), slices.Delete(m.expect, i, i+1)
}

func (m *model) use(t *rapid.T) {
	ref := grefs().Draw(t, "ref")
	g := m.table.Lookup(ref)
	w := m.want[ref]
	if (g.Page == nil) != (w == nil) {
		t.Fatalf("gref %d found: %v, want %v", ref, g.Page != nil, w != nil)
	}
}

func (m *model) close(t *rapid.T) {
	if err := m.table.Close(); err != nil {
		t.Fatal(err)
	}
	clear(m.want)
}

// end gives back what is still mapped.
func (m *model) end() {
	for _, p := range m.prepared {
		_ = p.Unmap()
	}
	for _, r := range m.removed {
		_, _ = r.Unmap()
	}
	_ = m.table.Close()
}

// restart is a daemon that was killed: the kernel unmaps everything, and a
// successor maps it again.
func (m *model) restart(t *rapid.T) {
	snap := m.table.Snapshot()
	if err := m.table.Close(); err != nil {
		t.Fatal(err)
	}
	p, err := m.f.source(m.budget).Restore(t.Context(), snap)
	if err != nil {
		t.Fatal(err)
	}
	m.table = New(m.table.Limit())
	if err := m.table.Commit(p); err != nil {
		t.Fatal(err)
	}
}

// crowd gives the table a multiplier that no luck would: grefs side by side, or
// all in one place.
func (m *model) crowd(t *rapid.T) {
	if len(m.table.slots) == 0 {
		t.Skip("no slots yet")
	}
	m.table.mult = rapid.SampledFrom([]uint64{0, 1, 2, 3}).Draw(t, "mult") << m.table.shift
	clear(m.table.slots)
	for id := range m.table.items {
		if m.table.items[id].mapping.page != nil {
			m.table.place(uint16(id))
		}
	}
}

func (m *model) check(t *rapid.T) {
	if m.table.Len() != len(m.want) {
		t.Fatalf("%d in the table, want %d", m.table.Len(), len(m.want))
	}
	for ref := range xen.Gref(41) {
		for _, ref := range []xen.Gref{ref, ref << 20} {
			g, w := m.table.Lookup(ref), m.want[ref]
			if (g.Page == nil) != (w == nil) {
				t.Fatalf("gref %d found: %v, want %v", ref, g.Page != nil, w != nil)
			}
			if w != nil && (g.ReadOnly != w.ro || xen.Gref(binary.LittleEndian.Uint32(g.Page[:])) != ref) {
				t.Fatalf("gref %d: %v, page of %d; want read-only %v", ref, g.ReadOnly, binary.LittleEndian.Uint32(g.Page[:]), w.ro)
			}
		}
	}
	if all := len(m.want) + m.out; m.f.count() != all || m.budget.Used() != all {
		t.Fatalf("%d mapped, %d charged, want %d", m.f.count(), m.budget.Used(), all)
	}
}

// TestModel runs the steps of any number of ADD_GREF_MAPPING and
// DEL_GREF_MAPPING in any order, with look-ups, disconnects and
// restarts, and compares with a map after each.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := newPages(t)
		f.bad, f.ro = []xen.Gref{badGref}, []xen.Gref{roGref}
		m := &model{
			f: f, table: New(rapid.IntRange(1, 24).Draw(t, "limit")),
			budget: NewBudget(rapid.IntRange(0, 40).Draw(t, "budget"), nil),
			want:   map[xen.Gref]*modelGrant{},
		}
		t.Cleanup(m.end)
		t.Repeat(map[string]func(*rapid.T){
			"use":     m.use,
			"prepare": m.prepare, "commit": m.commit, "abort": m.abort,
			"detach": m.detach, "unmap": m.unmap,
			"close": m.close, "restart": m.restart, "crowd": m.crowd,
			"": m.check,
		})
	})
}

// FuzzGrefList has a guest send lists of any bytes, each 8 an
// entry as they stand in its page and every list led by what to do with it and
// how long it is. A map says what must come of it.
func FuzzGrefList(f *testing.F) {
	f.Add([]byte{0, 2, 1, 0, 0, 0, 0, 0, 9, 9, 2, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 9, 9})
	f.Add([]byte{0, 1, 5, 0, 0, 0, 0, 0, 0, 0, 0, 1, 5, 0, 0, 0, 0, 0, 0, 0, 1, 1, 5, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{0, 0, 1, 0, 2, 200})
	fuzzloop.Fuzz(f, func(t *testing.T, b []byte) {
		const limit = 64
		mapper := newPages(t)
		budget := NewBudget(2*limit, nil)
		s, table := mapper.source(budget), New(limit)
		want := map[xen.Gref]bool{}
		for len(b) >= 2 {
			op, n := b[0], int(b[1])
			b = b[2:]
			n = min(n, len(b)/8)
			list := make([]netif.GrefEntry, n)
			for i := range list {
				e := b[8*i:]
				list[i].Ref = xen.Gref(binary.LittleEndian.Uint32(e))
				list[i].Flags = binary.LittleEndian.Uint16(e[4:])
				list[i].Status = binary.LittleEndian.Uint16(e[6:])
			}
			b = b[8*n:]
			if op&1 == 0 {
				fine := len(want)+n <= limit
				next := map[xen.Gref]bool{}
				for _, e := range list {
					fine = fine && e.Flags <= 1 && !want[e.Ref] && !next[e.Ref]
					next[e.Ref] = true
				}
				if err := add(t, s, table, list); (err == nil) != fine {
					t.Fatalf("add %+v: %v, want success %v", list, err, fine)
				} else if err == nil {
					for ref := range next {
						want[ref] = true
					}
				}
			} else {
				count := 0
				for _, e := range list {
					if want[e.Ref] {
						delete(want, e.Ref)
						count++
					}
				}
				if got := del(t, table, list); got != count {
					t.Fatalf("del %+v: %d, want %d", list, got, count)
				}
			}
			for ref := range want {
				if g := table.Lookup(ref); g.Page == nil || xen.Gref(binary.LittleEndian.Uint32(g.Page[:])) != ref {
					t.Fatalf("gref %d is not found", ref)
				}
			}
			if len(want) != table.Len() || mapper.count() != len(want) || budget.Used() != len(want) {
				t.Fatalf("%d in the table, %d mapped, %d charged, want %d", table.Len(), mapper.count(), budget.Used(), len(want))
			}
			if d := worst(table); d > maxProbe {
				t.Fatalf("a gref is %d slots from its own", d)
			}
		}
	})
}
