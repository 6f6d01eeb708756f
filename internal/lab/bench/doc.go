// SPDX-License-Identifier: Apache-2.0

// Package bench measures ways of doing the same work against each other, on a
// machine that has other things to do.
//
// A [Group] is a few [Peer]s. Every round runs each of them once, so what
// the machine does in the meantime befalls all alike; each run is short, so what
// it does seldom befalls few. A peer's figure is its median, and what counts is
// the ratio of medians. If the quartiles of any peer lie too far apart the
// whole measurement is void and is repeated.
//
// A [Child] is a peer in another process, for work that is to be done in another
// language. It times itself.
//
// The package knows time, statistics, tables, and how to talk to a Child. It must
// not know what is measured.
package bench
