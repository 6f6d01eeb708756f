// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"encoding/binary"
	"maps"
	"slices"

	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/pkg/ctrlring"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
)

// list writes entries of a list into a page of the guest.
func (m *vifModel) list(b []byte) uint32 {
	copy(m.w.host.Page(modelList), b)
	return modelList
}

// ask sends a control message, and checks the status.
func (m *vifModel) ask(want netif.CtrlStatus, typ netif.CtrlType, data ...uint32) ctrlring.Response {
	r := m.ctrl.ask(typ, data...)
	if r.Status != want {
		m.rt.Fatalf("%v %v: %v, want %v", typ, data, r.Status, want)
	}
	return r
}

// choose returns bad if it is so, otherwise success.
func choose(bad bool) netif.CtrlStatus {
	if bad {
		return netif.CtrlInvalidParameter
	}
	return netif.CtrlSuccess
}

// hashes sends a message about hashing.
func (m *vifModel) hashes(rt *rapid.T) {
	if !m.open() || m.ctrl == nil {
		rt.Skip()
	}
	n := rapid.Uint32Range(0, 130).Draw(rt, "n")
	switch rapid.IntRange(0, 6).Draw(rt, "message") {
	case 0:
		if n %= 3; n < 2 {
			m.alg = n
		}
		m.ask(choose(n > 1), netif.CtrlSetHashAlgorithm, n)
	case 1:
		n %= 20
		bad := m.alg == 0 || n > 15
		if !bad {
			m.types = n
		}
		m.ask(choose(bad), netif.CtrlSetHashFlags, n)
	case 2:
		n %= 50
		want := choose(false)
		if n > 40 {
			want = netif.CtrlBufferOverflow
		}
		m.ask(want, netif.CtrlSetHashKey, m.list(frame(64)), n)
	case 3:
		if n <= 128 {
			m.table = make([]uint32, n)
		}
		m.ask(choose(n > 128), netif.CtrlSetHashMappingSize, n)
	case 4:
		m.setsMapping(rt)
	case 5:
		bad := rapid.Uint16Range(12, 65535).Draw(rt, "type")
		m.ask(netif.CtrlNotSupported, netif.CtrlType(bad), n)
	default:
		// A page that is not granted, in each message that names one.
		if n > 0 && n <= 40 {
			m.ask(choose(true), netif.CtrlSetHashKey, 0xfffffff0, n)
		}
	}
}

// setsMapping sends a part of the table.
func (m *vifModel) setsMapping(rt *rapid.T) {
	list := rapid.SliceOfN(rapid.Uint32Range(0, 3), 0, 8).Draw(rt, "entries")
	at := rapid.SampledFrom([]uint32{0, 1, 2, 7, 120, 128, 1<<32 - 1, 1<<32 - 4}).Draw(rt, "offset")
	var b []byte
	for _, q := range list {
		b = binary.LittleEndian.AppendUint32(b, q)
	}
	bad := uint64(at)+uint64(len(list)) > uint64(len(m.table)) ||
		slices.ContainsFunc(list, func(q uint32) bool { return q >= uint32(m.queues) })
	if !bad {
		copy(m.table[min(at, uint32(len(m.table))):], list)
	}
	m.ask(choose(bad), netif.CtrlSetHashMapping, m.list(b), uint32(len(list)), at)
}

// Bounds of static grants in these tests: of a queue, and of the guest.
const modelStatic, modelBudget = 8, 12

// statics adds static grants to a queue, or removes some.
func (m *vifModel) statics(rt *rapid.T) {
	if !m.open() || m.ctrl == nil {
		rt.Skip()
	}
	queue := rapid.IntRange(0, m.queues).Draw(rt, "queue") // one more than there are
	var list []netif.GrefEntry
	for _, i := range rapid.SliceOfN(rapid.IntRange(0, modelPages), 0, 5).Draw(rt, "pages") {
		e := netif.GrefEntry{Ref: modelRef + xen.Gref(i)}
		if i == modelPages {
			e.Ref = 0xfffffff0
		}
		if rapid.Bool().Draw(rt, "read-only") {
			e.Flags = netif.GrefReadOnly
		}
		list = append(list, e)
	}
	page := m.list(gref(list...))
	if queue == m.queues {
		m.ask(choose(true), netif.CtrlAddGrefMapping, uint32(queue), page, uint32(len(list)))
		m.ask(choose(true), netif.CtrlDelGrefMapping, uint32(queue), page, uint32(len(list)))
		return
	}
	if rapid.Bool().Draw(rt, "add") {
		m.adds(queue, page, list)
	} else {
		m.removes(queue, page, list)
	}
}

// adds adds a list as a whole, or nothing of it.
func (m *vifModel) adds(queue int, page uint32, list []netif.GrefEntry) {
	next, used := maps.Clone(m.static[queue]), 0
	for _, t := range m.static {
		used += len(t)
	}
	bad := len(next)+len(list) > modelStatic || used+len(list) > modelBudget
	for _, e := range list {
		_, again := next[e.Ref]
		readOnly := e.Flags == netif.GrefReadOnly
		bad = bad || again || e.Ref == 0xfffffff0 || !m.page(e.Ref).live || !readOnly && !m.page(e.Ref).writable
		next[e.Ref] = readOnly
	}
	if !bad {
		m.static[queue] = next
	}
	m.ask(choose(bad), netif.CtrlAddGrefMapping, uint32(queue), page, uint32(len(list)))
}

// removes removes the entries that are in the table, each with a status.
func (m *vifModel) removes(queue int, page uint32, list []netif.GrefEntry) {
	removed := uint32(0)
	var want []netif.CtrlStatus
	for _, e := range list {
		_, there := m.static[queue][e.Ref]
		want = append(want, choose(!there))
		if there {
			removed++
			delete(m.static[queue], e.Ref)
		}
	}
	r := m.ask(netif.CtrlSuccess, netif.CtrlDelGrefMapping, uint32(queue), page, uint32(len(list)))
	if r.Data != removed {
		m.rt.Fatalf("%d removed, want %d", r.Data, removed)
	}
	for i, s := range want {
		if got := netif.CtrlStatus(binary.LittleEndian.Uint16(m.w.host.Page(modelList)[8*i+6:])); got != s {
			m.rt.Fatalf("entry %d: %v, want %v", i, got, s)
		}
	}
}

// page returns what the guest has granted a page of the model for.
func (m *vifModel) page(ref xen.Gref) pageModel {
	if ref < modelRef || ref >= modelRef+modelPages {
		return pageModel{}
	}
	return m.pages[ref-modelRef]
}
