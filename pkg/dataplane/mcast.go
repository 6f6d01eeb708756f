// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"sync"
	"sync/atomic"
)

// MaxMcast bounds the multicast list of a vif, as xen-netback does
// (XEN_NETBK_MCAST_MAX).
const MaxMcast = 64

// McastList is the list of multicast addresses one vif asked for. Any queue of
// the vif may change it; every queue reads it without a lock. The guest decides
// how often it changes, so changing it allocates nothing.
type McastList struct {
	filter atomic.Bool

	mu    sync.Mutex // serialises changes
	n     atomic.Int32
	addrs [MaxMcast]atomic.Uint64 // the first n; see macKey
}

// macKey is an Ethernet address as a number. No multicast address is 0.
func macKey(a [6]byte) uint64 {
	return uint64(a[0])<<40 | uint64(a[1])<<32 | uint64(a[2])<<24 | uint64(a[3])<<16 | uint64(a[4])<<8 | uint64(a[5])
}

func macOf(k uint64) [6]byte {
	return [6]byte{byte(k >> 40), byte(k >> 32), byte(k >> 24), byte(k >> 16), byte(k >> 8), byte(k)}
}

// SetFilter turns filtering on or off: only while it is on are packets for
// addresses that are not in the list dropped. The list is kept either way.
func (m *McastList) SetFilter(on bool) { m.filter.Store(on) }

// Clear empties the list.
func (m *McastList) Clear() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.n.Store(0)
}

// Addrs is the list as it is now.
func (m *McastList) Addrs() [][6]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([][6]byte, m.n.Load())
	for i := range list {
		list[i] = macOf(m.addrs[i].Load())
	}
	return list
}

// find is the place of an address in the list, or -1.
func (m *McastList) find(k uint64) int {
	for i := range m.addrs[:m.n.Load()] {
		if m.addrs[i].Load() == k {
			return i
		}
	}
	return -1
}

// add puts an address in the list and reports whether it stands there now. An
// address that is not multicast, or that finds the list full, does not.
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
	m.addrs[n].Store(macKey(a))
	m.n.Store(n + 1)
	return true
}

// del takes an address out of the list. Taking out what is not there is no
// error.
func (m *McastList) del(a [6]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := m.find(macKey(a))
	if i < 0 {
		return
	}
	// The last takes its place, before it loses its own: whoever reads
	// meanwhile finds every other address.
	last := m.n.Load() - 1
	m.addrs[i].Store(m.addrs[last].Load())
	m.n.Store(last)
}

var broadcast = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// passes reports whether a frame for dst may go to the guest. Unicast and
// broadcast always may.
func (m *McastList) passes(dst [6]byte) bool {
	return dst[0]&1 == 0 || dst == broadcast || !m.filter.Load() || m.find(macKey(dst)) >= 0
}
