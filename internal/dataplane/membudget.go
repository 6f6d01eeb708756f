// SPDX-License-Identifier: Apache-2.0

package dataplane

import "sync/atomic"

// Packets wait in the host's memory: for rx slots, or for their predecessors on another
// queue. This memory has a budget, because the guest decides how long they wait.
//
// Each queue is guaranteed waitBytes, as with xen-netback. Memory beyond that comes from
// a part that all vifs share. One vif has vifBytes of it at most, and never more than it
// leaves to the others. A packet that finds no room is dropped and counted.
//
// So hostile guests with q queues use q * waitBytes and sharedBytes at most, together,
// and a vif of 8 queues 20 MiB. They return it after [Config.Drain] at the latest,
// except for the memory that an empty backlog retains.
const (
	// sharedBytes is the shared part of one pool.
	sharedBytes = 256 << 20

	// vifBytes bounds the part of one vif: a read of large packets on each of four
	// queues, or set-aside packets on two.
	vifBytes = 16 << 20

	// memStep is the unit in which a queue takes memory.
	memStep = 64 << 10
)

// vifMemory accounts for the memory of one vif's queues, which may be on several
// workers.
type vifMemory struct {
	shared *atomic.Int64 // unused bytes of the shared part; nil: there is no budget
	own    int64         // bytes that do not count as shared
	used   atomic.Int64
}

// take reserves n more bytes for the vif. It returns false if that exceeds the budget.
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

// give returns n bytes.
func (m *vifMemory) give(n int) {
	if m == nil || m.shared == nil {
		return
	}
	used := m.used.Add(-int64(n))
	m.shared.Add(max(0, used+int64(n)-m.own) - max(0, used-m.own))
}

// scarce reports whether half of the shared part is in use.
func (m *vifMemory) scarce() bool {
	return m != nil && m.shared != nil && m.shared.Load() < sharedBytes/2
}
