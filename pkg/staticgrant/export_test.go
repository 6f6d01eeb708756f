// SPDX-License-Identifier: Apache-2.0

package staticgrant

// Used returns the pages that are mapped, or about to be.
func (b *Budget) Used() int { return int(b.used.Load()) }
