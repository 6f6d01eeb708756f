// SPDX-License-Identifier: Apache-2.0

package ctrlring

import (
	"bytes"
	"errors"
	"maps"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// Grefs of the pages that the table below knows.
const (
	gKey, gShortKey      = 10, 11
	gTable, gTableRO     = 20, 21
	gQueueTooHigh        = 22
	gList, gListRO       = 30, 31
	gBadList, gFullList  = 32, 33
	gDelList, gDelListRO = 40, 41
	gNone                = 99
)

// TestSlotMessages is the table of the slot ring's messages, over a ring: each
// type, each status it can have, and each doubt about it.
func TestSlotMessages(t *testing.T) {
	toeplitz := request(netif.CtrlSetHashAlgorithm, netif.HashAlgorithmToeplitz)
	sized := request(netif.CtrlSetHashMappingSize, 8)
	filled := request(netif.CtrlSetHashMapping, gTable, 4, 0)
	keyed := request(netif.CtrlSetHashKey, gShortKey, 4)
	added := request(netif.CtrlAddGrefMapping, 1, gList, 3)

	type hs = hashState
	key, short := counting(40), []byte{9, 8, 7, 6}
	table := func(n int, q ...uint32) []uint32 {
		s := make([]uint32, n)
		copy(s, q)
		return s
	}
	tests := []struct {
		name   string
		before []Request
		req    Request
		want   Response
		hash   hs // afterwards
		maps   int
	}{
		{name: "type 0", req: request(0), want: Response{Status: notSupported}},
		{name: "type 11", req: request(11, 1, 2, 3), want: Response{Status: notSupported}},
		{name: "type 65535", req: request(math.MaxUint16), want: Response{Status: notSupported}},

		{name: "get flags, no algorithm", req: request(netif.CtrlGetHashFlags),
			want: Response{Status: notSupported}},
		{name: "get flags", before: []Request{toeplitz}, req: request(netif.CtrlGetHashFlags),
			want: Response{Data: 15}, hash: hs{Algorithm: 1}},
		{name: "get flags, unused words not zero", before: []Request{toeplitz}, req: request(netif.CtrlGetHashFlags, 1, 2, 3),
			want: Response{Data: 15}, hash: hs{Algorithm: 1}},

		{name: "set flags, no algorithm", req: request(netif.CtrlSetHashFlags, 3),
			want: Response{Status: invalidParam}},
		{name: "set flags", before: []Request{toeplitz}, req: request(netif.CtrlSetHashFlags, 15),
			hash: hs{Algorithm: 1, Types: 15}},
		{name: "set no flags", before: []Request{toeplitz, request(netif.CtrlSetHashFlags, 3)}, req: request(netif.CtrlSetHashFlags, 0),
			hash: hs{Algorithm: 1}},
		{name: "set unknown flag", before: []Request{toeplitz, request(netif.CtrlSetHashFlags, 3)}, req: request(netif.CtrlSetHashFlags, 0x11),
			want: Response{Status: invalidParam}, hash: hs{Algorithm: 1, Types: 3}},

		{name: "set key", before: []Request{keyed}, req: request(netif.CtrlSetHashKey, gKey, 40),
			hash: hs{Key: key}, maps: 1},
		{name: "set short key, read-only grant", req: request(netif.CtrlSetHashKey, gShortKey, 4),
			hash: hs{Key: short}, maps: 1},
		{name: "clear key, gref is not looked at", before: []Request{keyed}, req: request(netif.CtrlSetHashKey, gNone, 0)},
		{name: "key one byte too long", before: []Request{keyed}, req: request(netif.CtrlSetHashKey, gKey, 41),
			want: Response{Status: overflow}, hash: hs{Key: short}},
		{name: "key of a page", before: []Request{keyed}, req: request(netif.CtrlSetHashKey, gKey, 4096),
			want: Response{Status: overflow}, hash: hs{Key: short}},
		{name: "key longer than a page", before: []Request{keyed}, req: request(netif.CtrlSetHashKey, gKey, 4097),
			want: Response{Status: invalidParam}, hash: hs{Key: short}},
		{name: "key of 4 GiB", before: []Request{keyed}, req: request(netif.CtrlSetHashKey, gKey, math.MaxUint32),
			want: Response{Status: invalidParam}, hash: hs{Key: short}},
		{name: "key at a bad gref leaves the old one", before: []Request{keyed}, req: request(netif.CtrlSetHashKey, gNone, 40),
			want: Response{Status: invalidParam}, hash: hs{Key: short}, maps: 1},

		{name: "get mapping size", req: request(netif.CtrlGetHashMappingSize), want: Response{Data: 128}},
		{name: "set mapping size zero-fills", before: []Request{sized, filled}, req: request(netif.CtrlSetHashMappingSize, 3),
			hash: hs{Table: table(3)}},
		{name: "set mapping size 0", before: []Request{sized}, req: request(netif.CtrlSetHashMappingSize, 0)},
		{name: "set largest mapping size", req: request(netif.CtrlSetHashMappingSize, 128), hash: hs{Table: table(128)}},
		{name: "set mapping size too large", before: []Request{sized}, req: request(netif.CtrlSetHashMappingSize, 129),
			want: Response{Status: invalidParam}, hash: hs{Table: table(8)}},
		{name: "set mapping size of 4 Gi", before: []Request{sized}, req: request(netif.CtrlSetHashMappingSize, math.MaxUint32),
			want: Response{Status: invalidParam}, hash: hs{Table: table(8)}},

		{name: "set mapping", before: []Request{sized}, req: filled,
			hash: hs{Table: table(8, 3, 2, 1, 0)}, maps: 1},
		{name: "set mapping up to the end, read-only grant", before: []Request{sized}, req: request(netif.CtrlSetHashMapping, gTableRO, 4, 4),
			hash: hs{Table: table(8, 0, 0, 0, 0, 1, 1, 2, 2)}, maps: 1},
		{name: "offset is applied once", before: []Request{sized}, req: request(netif.CtrlSetHashMapping, gTable, 1, 3),
			hash: hs{Table: table(8, 0, 0, 0, 3)}, maps: 1},
		{name: "one entry beyond the table", before: []Request{sized, filled}, req: request(netif.CtrlSetHashMapping, gTableRO, 5, 4),
			want: Response{Status: invalidParam}, hash: hs{Table: table(8, 3, 2, 1, 0)}, maps: 1},
		{name: "offset and length wrap", before: []Request{sized, filled}, req: request(netif.CtrlSetHashMapping, gTableRO, 1, math.MaxUint32),
			want: Response{Status: invalidParam}, hash: hs{Table: table(8, 3, 2, 1, 0)}, maps: 1},
		{name: "length in bytes wraps 16 bits", before: []Request{sized, filled}, req: request(netif.CtrlSetHashMapping, gTableRO, 0x4001, 0),
			want: Response{Status: invalidParam}, hash: hs{Table: table(8, 3, 2, 1, 0)}},
		{name: "length in bytes wraps 32 bits", before: []Request{sized, filled}, req: request(netif.CtrlSetHashMapping, gTableRO, 0x40000001, 0),
			want: Response{Status: invalidParam}, hash: hs{Table: table(8, 3, 2, 1, 0)}},
		{name: "more entries than a page has", before: []Request{sized, filled}, req: request(netif.CtrlSetHashMapping, gTableRO, 1025, 0),
			want: Response{Status: invalidParam}, hash: hs{Table: table(8, 3, 2, 1, 0)}},
		{name: "as many entries as a page has", before: []Request{sized, filled}, req: request(netif.CtrlSetHashMapping, gTableRO, 1024, 0),
			want: Response{Status: invalidParam}, hash: hs{Table: table(8, 3, 2, 1, 0)}, maps: 1},
		{name: "queue that there is not", before: []Request{sized, filled}, req: request(netif.CtrlSetHashMapping, gQueueTooHigh, 2, 0),
			want: Response{Status: invalidParam}, hash: hs{Table: table(8, 3, 2, 1, 0)}, maps: 1},
		{name: "mapping at a bad gref", before: []Request{sized, filled}, req: request(netif.CtrlSetHashMapping, gNone, 4, 0),
			want: Response{Status: invalidParam}, hash: hs{Table: table(8, 3, 2, 1, 0)}, maps: 1},
		{name: "mapping of nothing, gref is not looked at", before: []Request{sized, filled}, req: request(netif.CtrlSetHashMapping, gNone, 0, 8),
			hash: hs{Table: table(8, 3, 2, 1, 0)}},
		{name: "mapping without a table", req: filled, want: Response{Status: invalidParam}, maps: 1},

		{name: "algorithm none", before: []Request{toeplitz}, req: request(netif.CtrlSetHashAlgorithm, 0)},
		{name: "algorithm toeplitz", req: toeplitz, hash: hs{Algorithm: 1}},
		{name: "unknown algorithm", before: []Request{toeplitz}, req: request(netif.CtrlSetHashAlgorithm, 2),
			want: Response{Status: invalidParam}, hash: hs{Algorithm: 1}},

		{name: "get gref mapping size", req: request(netif.CtrlGetGrefMappingSize, 3), want: Response{Data: 512}},
		{name: "get gref mapping size of no queue", req: request(netif.CtrlGetGrefMappingSize, 4),
			want: Response{Status: invalidParam}},
		{name: "add", req: added, maps: 1},
		{name: "add, list granted read-only", req: request(netif.CtrlAddGrefMapping, 0, gListRO, 2), maps: 1},
		{name: "add nothing, list is not looked at", req: request(netif.CtrlAddGrefMapping, 0, gNone, 0)},
		{name: "add a full list", req: request(netif.CtrlAddGrefMapping, 0, gFullList, 512), maps: 1},
		{name: "add one more than a list has", req: request(netif.CtrlAddGrefMapping, 0, gFullList, 513),
			want: Response{Status: invalidParam}},
		{name: "add, length in bytes wraps", req: request(netif.CtrlAddGrefMapping, 0, gFullList, 0x20000001),
			want: Response{Status: invalidParam}},
		{name: "add, list at a bad gref", req: request(netif.CtrlAddGrefMapping, 0, gNone, 1),
			want: Response{Status: invalidParam}, maps: 1},
		{name: "add, one of the list cannot be mapped", req: request(netif.CtrlAddGrefMapping, 0, gBadList, 2),
			want: Response{Status: invalidParam}, maps: 1},
		{name: "add to no queue", req: request(netif.CtrlAddGrefMapping, 4, gList, 3),
			want: Response{Status: invalidParam}, maps: 1},

		{name: "del", before: []Request{added}, req: request(netif.CtrlDelGrefMapping, 1, gDelList, 5),
			want: Response{Data: 2}, maps: 1},
		{name: "del from another queue", before: []Request{added}, req: request(netif.CtrlDelGrefMapping, 0, gDelList, 5),
			maps: 1},
		{name: "del, list granted read-only", before: []Request{added}, req: request(netif.CtrlDelGrefMapping, 1, gDelListRO, 1),
			want: Response{Status: invalidParam}, maps: 1},
		{name: "del, list at a bad gref", before: []Request{added}, req: request(netif.CtrlDelGrefMapping, 1, gNone, 1),
			want: Response{Status: invalidParam}, maps: 1},
		{name: "del nothing, list is not looked at", before: []Request{added}, req: request(netif.CtrlDelGrefMapping, 1, gNone, 0)},
		{name: "del a full list", before: []Request{added}, req: request(netif.CtrlDelGrefMapping, 1, gFullList, 512),
			want: Response{Data: 3}, maps: 1},
		{name: "del one more than a list has", before: []Request{added}, req: request(netif.CtrlDelGrefMapping, 1, gFullList, 513),
			want: Response{Status: invalidParam}},
		{name: "del from no queue", before: []Request{added}, req: request(netif.CtrlDelGrefMapping, 4, gDelList, 5),
			want: Response{Status: invalidParam}, maps: 1},
	}
	// What a list holds afterwards, where that changes.
	deleted := func(status ...netif.CtrlStatus) []byte {
		l := delList()
		for i := range l {
			l[i].Status = uint16(status[i])
		}
		return listOf(l...)
	}
	full := fullList()
	for i := range full {
		full[i].Status = uint16(invalidParam)
		if ref := full[i].Ref; ref >= 100 && ref <= 102 {
			full[i].Status = uint16(success)
		}
	}
	written := map[string]map[xen.Gref][]byte{
		"del":                    {gDelList: deleted(success, invalidParam, invalidParam, success, invalidParam)},
		"del from another queue": {gDelList: deleted(invalidParam, invalidParam, invalidParam, invalidParam, invalidParam)},
		"del a full list":        {gFullList: listOf(full...)},
	}
	left := map[string][]xen.Gref{
		"del": {101}, "del a full list": {}, "add, list granted read-only": {}, "add a full list": {},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, Slot)
			grantPages(r.pages)
			for _, q := range tt.before {
				if rsp := r.call(q); rsp.Status != success {
					t.Fatalf("%v: %v", q, rsp)
				}
			}
			if tt.name == "del" {
				r.grefs.InFlight = []xen.Gref{101}
			}
			maps0 := r.pages.Counts().MapCalls
			want := map[xen.Gref][]byte{}
			for _, ref := range r.pages.refs {
				want[ref] = slices.Clone(r.pages.Page(ref))
				copy(want[ref], written[tt.name][ref])
			}
			got := r.call(tt.req)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("response (-want +got):\n%s", diff)
			}
			if len(r.hash.Table) == 0 {
				r.hash.Table = nil
			}
			if diff := cmp.Diff(tt.hash, r.hash); diff != "" {
				t.Errorf("hashing (-want +got):\n%s", diff)
			}
			if n := r.pages.Counts().MapCalls - maps0; n != tt.maps || r.pages.Usage().Pages != 0 {
				t.Errorf("%d pages were looked at, %d are still mapped; want %d and 0", n, r.pages.Usage().Pages, tt.maps)
			}
			for _, ref := range r.pages.refs {
				if p := r.pages.Page(ref); !bytes.Equal(want[ref], p) {
					t.Errorf("the guest's page %d begins with % x, want % x", ref, p[:40], want[ref][:40])
				}
			}
			l, changed := left[tt.name]
			if !changed && len(tt.before) > 0 && tt.before[0].Type == netif.CtrlAddGrefMapping {
				l = []xen.Gref{100, 101, 102}
			}
			if tt.name == "add" {
				l = []xen.Gref{100, 101, 102}
			}
			if got := slices.Sorted(maps.Keys(r.grefs.Mapped[1])); !slices.Equal(got, l) {
				t.Errorf("queue 1 has grefs %v, want %v", got, l)
			}
		})
	}
}

func delList() []netif.GrefEntry {
	return []netif.GrefEntry{
		{Ref: 100, Status: 0xabcd}, // added
		{Ref: 101, Status: 0xabcd}, // in flight
		{Ref: 555, Status: 0xabcd}, // never added
		{Ref: 102, Flags: 0xfffe},  // added; flags do not matter
		{Ref: 100},                 // once more
	}
}

func fullList() []netif.GrefEntry {
	l := make([]netif.GrefEntry, 512)
	for i := range l {
		l[i].Ref = xen.Gref(i)
	}
	return l
}

func grantPages(g *guestPages) {
	g.grant(gKey, false, counting(100))
	g.grant(gShortKey, true, []byte{9, 8, 7, 6, 5})
	g.grant(gTable, false, words32(3, 2, 1, 0))
	g.grant(gTableRO, true, words32(1, 1, 2, 2, 3, 3))
	g.grant(gQueueTooHigh, false, words32(1, queues))
	g.grant(gList, false, listOf(netif.GrefEntry{Ref: 100, Status: 0xffff}, netif.GrefEntry{Ref: 101}, netif.GrefEntry{Ref: 102, Flags: netif.GrefReadOnly}))
	g.grant(gListRO, true, listOf(netif.GrefEntry{Ref: 200}, netif.GrefEntry{Ref: 201}))
	g.grant(gBadList, false, listOf(netif.GrefEntry{Ref: 200}, netif.GrefEntry{Ref: 666}))
	g.grant(gFullList, false, listOf(fullList()...))
	g.grant(gDelList, false, listOf(delList()...))
	g.grant(gDelListRO, true, listOf(delList()...))
}

// TestNotSupported: what there is no handler for is answered so, and nothing is
// looked at.
func TestNotSupported(t *testing.T) {
	for typ := range netif.CtrlType(12) {
		for _, hash := range []bool{false, true} {
			r := newRig(t, Slot)
			if hash {
				r.calls.Grefs = nil
			} else {
				r.calls.Hash = nil
			}
			r.server.do = r.calls.Do
			got := r.call(request(typ, 0, 1, 1))
			isHash := typ >= 1 && typ <= 7
			if hash == isHash && typ != 0 && typ < 11 {
				continue // supported
			}
			if got != (Response{Status: notSupported}) || r.pages.Counts().MapCalls != 0 {
				t.Errorf("%v without its handler: %v, %d pages looked at", typ, got, r.pages.Counts().MapCalls)
			}
		}
	}
	for _, p := range []Protocol{Slot, Stream} {
		r := newRig(t, p)
		r.calls.Hash, r.calls.Grefs = nil, nil
		r.calls.Start(p)
		r.server.do = r.calls.Do
		if got := r.call(request(netif.CtrlGetHashFlags)); got != (Response{Status: notSupported}) {
			t.Errorf("%v ring with no handlers: %v", p, got)
		}
	}
}

// TestListIsReadOnce: a guest that changes its list while it is worked on changes
// nothing, and statuses are written to the entries that were read.
func TestListIsReadOnce(t *testing.T) {
	g := newPages(t)
	g.grant(gList, false, listOf(netif.GrefEntry{Ref: 100}, netif.GrefEntry{Ref: 101}))
	var seen []netif.GrefEntry
	c := Calls{Domid: domid, Mapper: g.Gntdev(), Grefs: &meddler{page: g.Page(gList), seen: &seen}}
	rsp := c.Do(Request{Protocol: Slot, Type: netif.CtrlDelGrefMapping, Data: [3]uint32{0, gList, 2}})
	if rsp != (Response{Data: 2}) {
		t.Errorf("response %v", rsp)
	}
	want := []netif.GrefEntry{{Ref: 100}, {Ref: 101}}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("list after it was changed (-want +got):\n%s", diff)
	}
	scribbled := bytes.Repeat([]byte{0x66}, netif.PageSize)
	scribbled[6], scribbled[7], scribbled[14], scribbled[15] = 0, 0, 0, 0
	if !bytes.Equal(scribbled, g.Page(gList)) {
		t.Error("more than the statuses was written")
	}
}

// meddler is a guest that overwrites its list while a handler works on it.
type meddler struct {
	grefState
	page []byte
	seen *[]netif.GrefEntry
}

func (m *meddler) DelGrefMapping(_ uint32, list []netif.GrefEntry) (uint32, netif.CtrlStatus) {
	for i := range m.page {
		m.page[i] = 0x66
	}
	*m.seen = slices.Clone(list)
	return uint32(len(list)), success
}

// TestReasons: people are told why a message was refused, the guest is not.
func TestReasons(t *testing.T) {
	g := newPages(t)
	grantPages(g)
	c := Calls{Domid: domid, Mapper: g.Gntdev(), Hash: new(hashState), Grefs: new(grefState)}
	for _, tt := range []struct {
		req  Request
		want error
	}{
		{request(netif.CtrlSetHashKey, gKey, 41), errKeySize},
		{request(netif.CtrlSetHashKey, gKey, 5000), errKeySize},
		{request(netif.CtrlSetHashKey, gNone, 40), gntdev.StatusBadGntref},
		{request(netif.CtrlSetHashMapping, gTable, 1025), errEntries},
		{request(netif.CtrlSetHashMapping, gNone, 1), gntdev.StatusBadGntref},
		{request(netif.CtrlAddGrefMapping, 0, gNone, 1), gntdev.StatusBadGntref},
		{request(netif.CtrlDelGrefMapping, 0, gDelListRO, 1), gntdev.StatusPermissionDenied},
		{request(netif.CtrlDelGrefMapping, 0, gList, 513), errEntries},
	} {
		tt.req.Protocol = Slot
		if rsp := c.Do(tt.req); !errors.Is(rsp.Err, tt.want) || rsp.Status == success || rsp.Data != 0 {
			t.Errorf("%v: %v, want %v", tt.req, rsp, tt.want)
		}
	}
	stuck := errors.New("stuck")
	g.FailRef(xentest.OpUnmap, gDelList, stuck)
	if rsp := c.Do(Request{Protocol: Slot, Type: netif.CtrlDelGrefMapping, Data: [3]uint32{0, gDelList, 1}}); !errors.Is(rsp.Err, stuck) || rsp.Status != success {
		t.Errorf("list that cannot be unmapped: %v", rsp)
	}
}

func TestRequestString(t *testing.T) {
	for _, tt := range []struct {
		req  Request
		want string
	}{
		{request(netif.CtrlSetHashKey, 7, 40), "set-hash-key [7 40 0]"},
		{request(77, 1), "unknown(77) [1 0 0]"},
		{Request{Type: netif.CtrlSetHashKey, Key: counting(40)}, "set-hash-key of 40 bytes"},
		{Request{Type: netif.CtrlSetHashMapping, Queues: []uint32{1, 2}}, "set-hash-mapping of 2 entries"},
		{Request{Type: netif.CtrlSetHashKey, Refused: overflow}, "set-hash-key (buffer-overflow)"},
	} {
		if got := tt.req.String(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}
