// SPDX-License-Identifier: Apache-2.0

package toeplitz

import (
	"errors"
	"fmt"
)

// MaxMapping is the largest table, as in Linux xen-netback. Windows wants 128.
const MaxMapping = 128

// Errors of a table that the other end requests.
var (
	ErrMappingSize  = errors.New("mapping table has more than 128 entries")
	ErrMappingRange = errors.New("entries reach beyond the mapping table")
	ErrMappingQueue = errors.New("mapping table entry is not a queue")
)

// Mapping maps hashes to queues. It is a value: a copy is a snapshot. A Mapping that
// does not change may be shared.
type Mapping struct {
	queues uint32
	size   uint32
	table  [MaxMapping]uint16
}

// NewMapping makes a mapping to 1 to 65536 queues, without a table: the queue is the hash
// modulo their number. Less counts as 1, more as 65536.
func NewMapping(queues int) Mapping {
	return Mapping{queues: uint32(min(max(queues, 1), 1<<16))}
}

// SetSize replaces the table by one of n entries, all of them queue 0, or by none
// (XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE). n need not be a power of two. On
// error nothing changes.
func (m *Mapping) SetSize(n uint32) error {
	if n > MaxMapping {
		return fmt.Errorf("%w: %d", ErrMappingSize, n)
	}
	m.size, m.table = n, [MaxMapping]uint16{}
	return nil
}

// Set replaces the entries from offset on (XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING).
// On error nothing changes.
func (m *Mapping) Set(offset uint32, entries []uint32) error {
	// In this order nothing can wrap. XSA-270 was offset+len(entries) that did.
	if offset > m.size || uint64(len(entries)) > uint64(m.size-offset) {
		return fmt.Errorf("%w: %d at %d of %d", ErrMappingRange, len(entries), offset, m.size)
	}
	for i, queue := range entries {
		if queue >= m.queues {
			return fmt.Errorf("%w: entry %d is %d of %d", ErrMappingQueue, uint64(offset)+uint64(i), queue, m.queues)
		}
	}
	for i, queue := range entries {
		m.table[offset+uint32(i)] = uint16(queue)
	}
	return nil
}

// Queue returns the queue for a hash, less than Queues. A packet without a hash has the
// queue of hash 0, as in Linux xen-netback.
func (m *Mapping) Queue(hash uint32) int {
	if m.size == 0 {
		return int(hash % max(m.queues, 1))
	}
	return int(m.table[hash%m.size])
}

// Queues returns the number of queues.
func (m *Mapping) Queues() int { return int(max(m.queues, 1)) }

// Table returns a copy of the table's entries, nil if there is none.
func (m *Mapping) Table() []uint16 {
	return append([]uint16(nil), m.table[:m.size]...)
}
