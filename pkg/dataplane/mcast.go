// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"slices"
	"sync"
	"sync/atomic"
)

// MaxMcast bounds the multicast list of a vif, as xen-netback does
// (XEN_NETBK_MCAST_MAX).
const MaxMcast = 64

// McastList is the list of multicast addresses one vif asked for. Any queue of
// the vif may change it; every queue reads it without a lock.
type McastList struct {
	filter atomic.Bool
	mu     sync.Mutex // serialises changes, which are rare
	addrs  atomic.Pointer[[][6]byte]
}

// SetFilter turns filtering on or off: only while it is on are packets for
// addresses that are not in the list dropped. The list is kept either way.
func (m *McastList) SetFilter(on bool) { m.filter.Store(on) }

// Clear empties the list.
func (m *McastList) Clear() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.addrs.Store(nil)
}

// Addrs is the list as it is now. The caller must not change it.
func (m *McastList) Addrs() [][6]byte {
	if p := m.addrs.Load(); p != nil {
		return *p
	}
	return nil
}

// add puts an address in the list and reports whether it stands there now. An
// address that is not multicast, or that finds the list full, does not.
func (m *McastList) add(a [6]byte) bool {
	if a[0]&1 == 0 {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.Addrs()
	if slices.Contains(old, a) {
		return true
	}
	if len(old) >= MaxMcast {
		return false
	}
	list := append(slices.Clone(old), a)
	m.addrs.Store(&list)
	return true
}

// del takes an address out of the list. Taking out what is not there is no
// error.
func (m *McastList) del(a [6]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.Addrs()
	i := slices.Index(old, a)
	if i < 0 {
		return
	}
	list := slices.Delete(slices.Clone(old), i, i+1)
	m.addrs.Store(&list)
}

var broadcast = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// passes reports whether a frame for dst may go to the guest. Unicast and
// broadcast always may.
func (m *McastList) passes(dst [6]byte) bool {
	if dst[0]&1 == 0 || dst == broadcast {
		return true
	}
	return slices.Contains(m.Addrs(), dst)
}
