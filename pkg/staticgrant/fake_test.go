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
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const guest = 7

var errStuck = errors.New("stuck")

// fakeMapper is the grant table of one guest. It hands out memory that begins
// with its gref as long as it is mapped, and remembers what is.
type fakeMapper struct {
	mu     sync.Mutex
	bad    []xen.Gref // do not map
	ro     []xen.Gref // map read-only
	stuck  []xen.Gref // map, but do not unmap
	mapped map[xen.Gref]int
	calls  int
	seen   []gntdev.Prot
	onMap  func(xen.Gref)
}

func newMapper() *fakeMapper { return &fakeMapper{mapped: map[xen.Gref]int{}} }

func (f *fakeMapper) source(b *Budget) *Source {
	return &Source{Mapper: f, Domid: guest, Budget: b}
}

func (f *fakeMapper) Map(domid xen.Domid, refs []xen.Gref, prot gntdev.Prot) (*gntdev.Mapping, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	f.seen = append(f.seen, prot)
	if f.onMap != nil {
		f.onMap(refs[0])
	}
	if domid != guest || len(refs) != 1 {
		return nil, errors.New("not one page of the guest's")
	}
	ref := refs[0]
	if slices.Contains(f.bad, ref) {
		return nil, gntdev.StatusBadGntref.Err()
	}
	if slices.Contains(f.ro, ref) && prot == gntdev.ReadWrite {
		return nil, gntdev.StatusPermissionDenied.Err()
	}
	f.mapped[ref]++
	mem := make([]byte, netif.PageSize)
	binary.LittleEndian.PutUint32(mem, uint32(ref))
	return gntdev.NewMapping(mem, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if slices.Contains(f.stuck, ref) {
			return errStuck
		}
		clear(mem[:4])
		if f.mapped[ref]--; f.mapped[ref] == 0 {
			delete(f.mapped, ref)
		}
		return nil
	}), nil
}

// count is how many pages are mapped.
func (f *fakeMapper) count() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.mapped {
		n += c
	}
	return n
}

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

// add is an ADD_GREF_MAPPING, all steps of it.
func add(t testing.TB, s *Source, table *Table, list []netif.GrefEntry) error {
	t.Helper()
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
