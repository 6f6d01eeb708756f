// SPDX-License-Identifier: Apache-2.0

package staticgrant

import "sync/atomic"

// DefaultBudget is the number of static grants all vifs of a guest may have mapped
// together: 8 full tables.
const DefaultBudget = 8 * DefaultLimit

// Budget bounds how many pages are mapped at a time. Each takes a grant handle
// of the hypervisor (gnttab_max_maptrack_frames) and one of the mappings that
// Linux allows a process (vm.max_map_count, 65530), and guests share both: one
// that takes them all would keep the others' rings from being mapped. Any
// goroutine may use it.
type Budget struct {
	max  int64
	used atomic.Int64
	of   *Budget
}

// NewBudget makes a budget of max pages, which count against the budget of as
// well if that is not nil.
func NewBudget(max int, of *Budget) *Budget {
	return &Budget{max: int64(max), of: of}
}

// Used returns the number of pages that are mapped, or about to be.
func (b *Budget) Used() int { return int(b.used.Load()) }

// take reserves n pages, or none and reports false.
func (b *Budget) take(n int) bool {
	if b == nil {
		return true
	}
	// Added first and taken back if it was too much: another that asks at the
	// same moment may be refused needlessly, but nobody gets more than there is.
	if b.used.Add(int64(n)) > b.max {
		b.used.Add(-int64(n))
		return false
	}
	if !b.of.take(n) {
		b.used.Add(-int64(n))
		return false
	}
	return true
}

func (b *Budget) give(n int) {
	for ; b != nil; b = b.of {
		b.used.Add(-int64(n))
	}
}
