// SPDX-License-Identifier: Apache-2.0

package staticgrant

import "sync/atomic"

// DefaultBudget is the number of static grants that all vifs of a guest may have
// mapped together: 8 full tables.
const DefaultBudget = 8 * DefaultLimit

// Budget bounds the number of pages that are mapped at a time. Each page takes a grant
// handle of the hypervisor (gnttab_max_maptrack_frames) and one of the mappings that
// Linux allows a process (vm.max_map_count, 65530). Guests share both: if one guest
// took them all, the rings of others could not be mapped. Any goroutine may use it.
type Budget struct {
	max  int64
	used atomic.Int64
	of   *Budget
}

// NewBudget makes a budget of max pages. They also count against the budget of, if
// that is not nil.
func NewBudget(max int, of *Budget) *Budget {
	return &Budget{max: int64(max), of: of}
}

// Used returns the number of pages that are mapped, or about to be.
func (b *Budget) Used() int { return int(b.used.Load()) }

// take reserves n pages. If there are fewer, it reserves none and returns false.
func (b *Budget) take(n int) bool {
	if b == nil {
		return true
	}
	// The sum is corrected if it is too large. A concurrent call may then be refused
	// needlessly, but no call exceeds the budget.
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
