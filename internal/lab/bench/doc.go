// SPDX-License-Identifier: Apache-2.0

// Package bench compares several ways of doing the same work, on a machine that does
// other things as well.
//
// A [Group] is a few [Peer]s. Every round runs each of them once, so load on the
// machine affects all of them alike; a run is short, so load seldom affects only a
// few. The figure of a peer is its median with a confidence interval, as
// [golang.org/x/perf/benchmath] computes it. Goals are ratios of medians. If the
// interval of any peer is too wide, the measurement is void and is repeated.
//
// A [Child] is a peer in another process, for work in another language. It times
// itself.
//
// The package knows time, statistics, tables, and how to talk to a Child. It must
// not know what is measured.
package bench
