// SPDX-License-Identifier: Apache-2.0

// Package prefetch brings memory into the processor's caches before it is needed. The
// processor does that beside its other work. An address that is not mapped, or not any more,
// does no harm: nothing is read, and nothing faults.
package prefetch
