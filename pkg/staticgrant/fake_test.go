// SPDX-License-Identifier: Apache-2.0

package staticgrant

import (
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xentest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const guest = 7

var errStuck = errors.New("stuck")

// pages is a guest that grants each gref when it is first mapped, except for bad ones.
// A page begins with its gref.
type pages struct {
	*xentest.Guest
	bad   []xen.Gref // are not granted
	ro    []xen.Gref // are granted read-only
	onMap func(xentest.Call)

	mu sync.Mutex // of granting
}

func newPages(t xentest.TB) *pages {
	t.Helper()
	f := &pages{Guest: xentest.Start(t, guest)}
	f.Intercept(func(c xentest.Call) error {
		if c.Op != xentest.OpMap {
			return nil
		}
		if f.onMap != nil {
			f.onMap(c)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.Page(c.Ref) == nil && !slices.Contains(f.bad, c.Ref) {
			prot := gntdev.ReadWrite
			if slices.Contains(f.ro, c.Ref) {
				prot = gntdev.ReadOnly
			}
			binary.LittleEndian.PutUint32(f.GrantAt(c.Ref, prot), uint32(c.Ref))
		}
		return nil
	})
	return f
}

func (f *pages) source(b *Budget) *Source {
	return &Source{Mapper: f.Gntdev(), Domid: guest, Budget: b}
}

// count returns the number of mapped pages.
func (f *pages) count() int { return f.Usage().Pages }

// calls returns the number of calls to map.
func (f *pages) calls() int { return f.Counts().MapCalls }

func entries(refs ...xen.Gref) []netif.GrefEntry {
	list := make([]netif.GrefEntry, len(refs))
	for i, ref := range refs {
		list[i].Ref = ref
	}
	return list
}

func run(first xen.Gref, n int) []xen.Gref {
	refs := make([]xen.Gref, n)
	for i := range refs {
		refs[i] = first + xen.Gref(i)
	}
	return refs
}

// add is an ADD_GREF_MAPPING, all steps of it. The table is closed at the end of the
// test.
func add(t testing.TB, s *Source, table *Table, list []netif.GrefEntry) error {
	t.Helper()
	closeAtEnd(t, table)
	p, err := s.Prepare(t.Context(), list)
	if err != nil {
		return err
	}
	err = table.Commit(p)
	if e := p.Unmap(); e != nil {
		t.Errorf("unmap what was not committed: %v", e)
	}
	return err
}

func closeAtEnd(t xentest.TB, table *Table) {
	t.Cleanup(func() {
		if err := table.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
}

// del is a DEL_GREF_MAPPING, all steps of it.
func del(t testing.TB, table *Table, list []netif.GrefEntry) int {
	t.Helper()
	n, err := table.Detach(list).Unmap()
	if err != nil {
		t.Errorf("unmap: %v", err)
	}
	return n
}

func statuses(list []netif.GrefEntry) (s []netif.CtrlStatus) {
	for _, e := range list {
		s = append(s, netif.CtrlStatus(e.Status))
	}
	return s
}

func refsOf(list []netif.GrefEntry) (refs []xen.Gref) {
	for _, e := range list {
		refs = append(refs, e.Ref)
	}
	slices.Sort(refs)
	return refs
}
