// SPDX-License-Identifier: Apache-2.0

package dataplane

import "sync/atomic"

// Packets wait in memory of the host: for rx slots, or for those before them on
// another queue. What all of them take has a budget, for a guest decides how long
// they wait.
//
// Each queue has waitBytes in any case, as with xen-netback, whatever others take. What
// its vif takes beyond that comes from a part that all vifs share, of which one vif has
// no more than vifBytes, and takes no more than it leaves. A packet that finds no room
// is dropped and counted.
//
// So with q queues the vifs of hostile guests take q * waitBytes and sharedBytes at
// most, together, and one of 8 queues 20 MiB. None of them keeps it for longer than
// [Config.Drain] without giving it back, but for what an empty hold keeps.
const (
	// sharedBytes is that part, for one pool.
	sharedBytes = 256 << 20

	// vifBytes is the most that one vif has of it. It is what a large read brings
	// on each of four queues, or a change of the queues of packets on two.
	vifBytes = 16 << 20

	// memStep is by how much what a queue has grows.
	memStep = 64 << 10
)

// vifMemory accounts for the memory of the queues of one vif, which may be on several
// workers.
type vifMemory struct {
	shared *atomic.Int64 // left of the shared part; nil: there is no budget
	own    int64         // bytes that are the vif's in any case
	used   atomic.Int64
}

// take reports whether the vif may have n bytes more, which it then has.
func (m *vifMemory) take(n int) bool {
	if m == nil || m.shared == nil {
		return true
	}
	used := m.used.Add(int64(n))
	beyond := max(0, used-m.own)
	more := beyond - max(0, used-int64(n)-m.own)
	if more == 0 {
		return true
	}
	if left := m.shared.Add(-more); left >= beyond && beyond <= vifBytes {
		return true
	}
	m.give(n)
	return false
}

// give ends the use of n bytes.
func (m *vifMemory) give(n int) {
	if m == nil || m.shared == nil {
		return
	}
	used := m.used.Add(-int64(n))
	m.shared.Add(max(0, used+int64(n)-m.own) - max(0, used-m.own))
}

// scarce reports whether half of the shared part is taken.
func (m *vifMemory) scarce() bool {
	return m != nil && m.shared != nil && m.shared.Load() < sharedBytes/2
}
