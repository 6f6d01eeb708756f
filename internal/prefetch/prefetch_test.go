// SPDX-License-Identifier: Apache-2.0

package prefetch

import "testing"

// TestAnyAddress: addresses without memory do no harm.
func TestAnyAddress(t *testing.T) {
	Lines(nil)
	Lines([]uintptr{0, 1, 4096, 1<<47 - 1, ^uintptr(0)})
	Span(0, 0)
	Span(0, 100)
	if n := testing.AllocsPerRun(10, func() { Lines([]uintptr{0, 64}) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
