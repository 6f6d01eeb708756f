// SPDX-License-Identifier: Apache-2.0

// Package crowd plays the frontends of many guests in one process, to measure what a
// daemon with many vifs costs.
//
// A guest of a crowd has rings, event channels and a vif, and nothing that runs: no thread,
// no goroutine of its own that is ever ready, no connection to xenstore. Its keys are
// written by dom0, since xenstored limits the rate at which a guest writes. Its vif is on no
// bridge, so that a packet for one guest is not a packet for all.
//
// [Read] reads what a process has used: processor time, context switches of all its threads,
// and memory.
package crowd
