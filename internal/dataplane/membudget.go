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
// So hostile guests with q queues use q * waitBytes and the shared part at most, together,
// and a vif of 8 queues 20 MiB. They return it after [Config.Drain] at the latest,
// except for the memory that an empty backlog retains.
const (
	// DefaultShared is the shared part of one pool, unless [Options.Shared] is another.
	DefaultShared = 256 << 20

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
	half   int64         // of all of the shared part
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

// Memory tells what guests can take of the memory of a pool, in bytes, and what they take.
type Memory struct {
	Queue      int64 // guaranteed to each queue for packets that wait
	Vif        int64 // of the shared part that one vif may have
	Shared     int64 // for the packets of all vifs that wait, beyond that
	SharedUsed int64
	Worker     int64 // buffers of a worker or slow lane
	Workers    int   // present workers and slow lanes
	MaxWorkers int
}

// MemoryOf returns the bounds of a pool with that shared part and number of workers.
func MemoryOf(shared int64, workers int) Memory {
	return Memory{
		Queue: waitBytes, Vif: vifBytes, Shared: shared,
		Worker: txMemBytes + rxArenaBytes, Workers: workers, MaxWorkers: workers + MaxSpares,
	}
}

// Memory returns the bounds of the pool's memory, and what is taken of it.
func (p *Pool) Memory() Memory {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := MemoryOf(p.opts.Shared, p.opts.Workers)
	m.SharedUsed, m.Workers = p.opts.Shared-p.shared.Load(), len(p.workers)+len(p.spares)
	return m
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
	return m != nil && m.shared != nil && m.shared.Load() < m.half
}
