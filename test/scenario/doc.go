// SPDX-License-Identifier: Apache-2.0

// Package scenario holds netbackd's scenarios on the embedded Xen: whole hosts,
// with real TAPs and real guests' TCP stacks, in which guests and toolstacks do
// what they do, or what they should not.
//
// Each test is one situation and is named after it. The daemon and the guests are
// processes, built with the race detector where there is a C compiler; a race, a
// panic, a leak of the daemon or a breach of the protocol by it fails the test.
package scenario
