// SPDX-License-Identifier: Apache-2.0

// Package bench compares several ways to do the same work on a machine that also does
// other work.
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
// The package handles time, statistics, tables, and the protocol of a Child. It must
// not depend on the measured code.
package bench
