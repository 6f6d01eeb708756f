// SPDX-License-Identifier: Apache-2.0

package device

import "runtime/debug"

// Apart runs f on a goroutine of its own, with faults of guests' pages as panics, and waits
// for it. The stack of the goroutine that owns a device stays small: a stack grows to some 32
// KiB while a device connects, and shrinks in later garbage collections only, of which a
// daemon without work has none.
func Apart(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		debug.SetPanicOnFault(true)
		f()
	}()
	<-done
}
