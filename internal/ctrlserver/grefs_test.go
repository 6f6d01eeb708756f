// SPDX-License-Identifier: Apache-2.0

package ctrlserver

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// directTables changes tables that no worker uses.
type directTables struct {
	tables []*staticgrant.Table
	fail   error // of the next calls
}

func (d *directTables) AddGrants(i int, p *staticgrant.Prepared) ([]netif.GrefEntry, error) {
	if d.fail != nil {
		return nil, d.fail
	}
	if err := d.tables[i].Commit(p); err != nil {
		return nil, err
	}
	return d.tables[i].Snapshot(), nil
}

func (d *directTables) RemoveGrants(i int, list []netif.GrefEntry) (*staticgrant.Removed, []netif.GrefEntry, error) {
	if d.fail != nil {
		return nil, nil, d.fail
	}
	r := d.tables[i].Detach(list)
	return r, d.tables[i].Snapshot(), nil
}

// grefBed is a handler for two queues of three static grants each, and its guest.
type grefBed struct {
	guest  *xentest.Guest
	tables *directTables
	warned *observer.ObservedLogs
	grefHandler
}

func newGrefBed(t *testing.T) *grefBed {
	t.Helper()
	b := &grefBed{guest: xentest.Start(t, 7)}
	core, warned := observer.New(zapcore.WarnLevel)
	b.warned = warned
	source := staticgrant.Source{Mapper: b.guest.Gntdev(), Domid: 7}
	b.grefHandler = newGrefHandler(t.Context(), zap.New(core), source, 3, 2)
	b.tables = &directTables{tables: b.grefHandler.tables}
	b.conn = b.tables
	return b
}

// list grants n pages and returns their entries.
func (b *grefBed) list(n int) (list []netif.GrefEntry) {
	for range n {
		ref, _ := b.guest.Grant(gntdev.ReadWrite)
		list = append(list, netif.GrefEntry{Ref: ref})
	}
	return list
}

// inUse returns how many pages of a list are mapped.
func (b *grefBed) inUse(list []netif.GrefEntry) (n int) {
	for _, e := range list {
		if b.guest.InUse(e.Ref) {
			n++
		}
	}
	return n
}

// TestGrefMessages: each message has its status, and pages are mapped exactly while they
// are in a table.
func TestGrefMessages(t *testing.T) {
	b := newGrefBed(t)
	for queue, want := range []netif.CtrlStatus{netif.CtrlSuccess, netif.CtrlSuccess, netif.CtrlInvalidParameter} {
		n, status := b.GetGrefMappingSize(uint32(queue))
		if status != want || status == netif.CtrlSuccess && n != 3 {
			t.Errorf("size of queue %d: %d, %v", queue, n, status)
		}
	}
	list := b.list(4)
	for _, tt := range []struct {
		name     string
		queue    uint32
		add      bool
		from, to int // of list
		fail     error
		status   netif.CtrlStatus
		removed  uint32
		inUse    int // pages, afterwards
	}{
		{"add to a queue that is not", 2, true, 0, 1, nil, netif.CtrlInvalidParameter, 0, 0},
		{"add none", 0, true, 0, 0, nil, netif.CtrlSuccess, 0, 0},
		{"add", 0, true, 0, 2, nil, netif.CtrlSuccess, 0, 2},
		{"add one again", 0, true, 1, 2, nil, netif.CtrlInvalidParameter, 0, 2},
		{"add too many", 0, true, 2, 4, nil, netif.CtrlInvalidParameter, 0, 2},
		{"add, and the data path fails", 1, true, 2, 3, errors.New("no worker"), netif.CtrlInvalidParameter, 0, 2},
		{"add to another queue", 1, true, 2, 4, nil, netif.CtrlSuccess, 0, 4},
		{"remove from a queue that is not", 1 << 31, false, 0, 1, nil, netif.CtrlInvalidParameter, 0, 4},
		{"remove none", 0, false, 0, 0, nil, netif.CtrlSuccess, 0, 4},
		{"remove, and the data path fails", 0, false, 0, 1, errors.New("no worker"), netif.CtrlInvalidParameter, 0, 4},
		{"remove one, and one that is not there", 0, false, 1, 3, nil, netif.CtrlSuccess, 1, 3},
		{"remove it again", 0, false, 1, 2, nil, netif.CtrlSuccess, 0, 3},
	} {
		b.tables.fail = tt.fail
		part := append([]netif.GrefEntry{}, list[tt.from:tt.to]...)
		var removed uint32
		var status netif.CtrlStatus
		if tt.add {
			status = b.AddGrefMapping(tt.queue, part)
		} else {
			removed, status = b.DelGrefMapping(tt.queue, part)
		}
		if status != tt.status || removed != tt.removed {
			t.Errorf("%s: %v, %d removed; want %v, %d", tt.name, status, removed, tt.status, tt.removed)
		}
		if n := b.inUse(list); n != tt.inUse {
			t.Errorf("%s: %d pages in use, want %d", tt.name, n, tt.inUse)
		}
	}
	b.tables.fail = nil
	if err := b.close(); err != nil || b.inUse(list) != 0 {
		t.Errorf("closed: %v, %d pages in use", err, b.inUse(list))
	}
	if n := b.warned.Len(); n != 0 {
		t.Errorf("%d warnings: %v", n, b.warned.All())
	}
}

// TestGrefRestore: a successor maps what its predecessor had mapped, as far as the guest
// still grants it, and warns about the rest.
func TestGrefRestore(t *testing.T) {
	b := newGrefBed(t)
	list := b.list(3)
	if status := b.AddGrefMapping(0, append([]netif.GrefEntry{}, list...)); status != netif.CtrlSuccess {
		t.Fatal(status)
	}
	lists := b.lists
	if err := b.close(); err != nil {
		t.Fatal(err)
	}
	if err := b.guest.Revoke(list[1].Ref); err != nil {
		t.Fatal(err)
	}
	next := newGrefHandler(t.Context(), b.log, b.source, 3, 2)
	next.restore(lists)
	if n := b.inUse(list); n != 2 {
		t.Errorf("%d pages in use, want 2", n)
	}
	if diff := cmp.Diff(2, len(next.lists[0])); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	if b.warned.FilterMessage("static grants not restored").Len() == 0 {
		t.Error("no warning")
	}
	if err := next.close(); err != nil {
		t.Error(err)
	}
}
