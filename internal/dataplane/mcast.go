// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"sync"
	"sync/atomic"
)

// MaxMcast bounds the multicast list of a vif, as xen-netback does
// (XEN_NETBK_MCAST_MAX).
const MaxMcast = 64

// McastList is the list of multicast addresses that a vif receives. Any queue of the vif
// may change it; every queue reads it without a lock. The guest decides how often it
// changes, so a change allocates nothing.
type McastList struct {
	filter atomic.Bool

	mu      sync.Mutex // serialises changes
	journal *Journal   // keeps the list for a successor, or nil; guarded by mu

	n     atomic.Int32
	addrs [MaxMcast]atomic.Uint64 // the first n; see macKey
}

// macKey returns an Ethernet address as a number. No multicast address is 0.
func macKey(a [6]byte) uint64 {
	return uint64(a[0])<<40 | uint64(a[1])<<32 | uint64(a[2])<<24 | uint64(a[3])<<16 | uint64(a[4])<<8 | uint64(a[5])
}

func macOf(k uint64) [6]byte {
	return [6]byte{byte(k >> 40), byte(k >> 32), byte(k >> 24), byte(k >> 16), byte(k >> 8), byte(k)}
}

// SetFilter turns filtering on or off. While it is on, packets for multicast addresses
// that are not in the list are dropped. The list stays either way.
func (m *McastList) SetFilter(on bool) { m.filter.Store(on) }

// Clear empties the list.
func (m *McastList) Clear() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.setLen(0)
}

// Keep keeps the list in a journal from now on, or with nil no longer. A guest sends its
// list only once, so a list that the journal has of the same connection replaces the
// present one; known reports whether it has one, even an empty one.
func (m *McastList) Keep(j *Journal) (known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.journal = nil
	if j == nil {
		return false
	}
	if known = j.page.load(jMcast) == 1; known {
		n := min(j.page.load(jMcast+1), MaxMcast)
		m.setLen(0)
		for i := range n {
			w := jAddrs + 2*i
			m.append(uint64(j.page.load(w)) | uint64(j.page.load(w+1))<<32)
		}
	}
	m.journal = j
	for i := range m.n.Load() {
		m.set(i, m.addrs[i].Load())
	}
	m.setLen(m.n.Load())
	j.page.store(jMcast, 1)
	return known
}

// append adds an address unless it is in the list already: a daemon that was killed
// during del may have left one twice. Preconditions: mu held.
func (m *McastList) append(k uint64) {
	if n := m.n.Load(); m.find(k) < 0 {
		m.set(n, k)
		m.setLen(n + 1)
	}
}

// set stores an address in place i; setLen then makes it count. In this order a
// successor finds what readers find. Preconditions: mu held.
func (m *McastList) set(i int32, k uint64) {
	m.addrs[i].Store(k)
	if m.journal != nil {
		w := uint32(jAddrs + 2*i)
		m.journal.page.store(w, uint32(k))
		m.journal.page.store(w+1, uint32(k>>32))
	}
}

// setLen sets the number of addresses. Preconditions: mu held.
func (m *McastList) setLen(n int32) {
	m.n.Store(n)
	if m.journal != nil {
		m.journal.page.store(jMcast+1, uint32(n))
	}
}

// Addrs returns the list.
func (m *McastList) Addrs() [][6]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([][6]byte, m.n.Load())
	for i := range list {
		list[i] = macOf(m.addrs[i].Load())
	}
	return list
}

// find returns the place of an address in the list, or -1.
func (m *McastList) find(k uint64) int {
	for i := range m.addrs[:m.n.Load()] {
		if m.addrs[i].Load() == k {
			return i
		}
	}
	return -1
}

// add adds an address and reports whether it is in the list now. It is not if it is no
// multicast address, or if the list is full.
func (m *McastList) add(a [6]byte) bool {
	if a[0]&1 == 0 {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.find(macKey(a)) >= 0 {
		return true
	}
	n := m.n.Load()
	if n == MaxMcast {
		return false
	}
	m.append(macKey(a))
	return true
}

// del removes an address, if it is in the list.
func (m *McastList) del(a [6]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := m.find(macKey(a))
	if i < 0 {
		return
	}
	// The last one is copied to its place before it loses its own, so a
	// concurrent reader finds every other address.
	last := m.n.Load() - 1
	m.set(int32(i), m.addrs[last].Load())
	m.setLen(last)
}

var broadcast = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// passes reports whether a frame for dst may go to the guest. Unicast and
// broadcast always may.
func (m *McastList) passes(dst [6]byte) bool {
	return dst[0]&1 == 0 || dst == broadcast || !m.filter.Load() || m.find(macKey(dst)) >= 0
}
