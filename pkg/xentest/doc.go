// SPDX-License-Identifier: Apache-2.0

// Package xentest is a guest in memory, for tests of programs that use the packages
// beside it. The tests need neither Xen nor root.
//
// A [Guest] has pages, grants and event channel ports. Its Open methods return doubles
// of the devices below /dev/xen, which have the methods of the real ones:
//
//   - [Gntdev] maps and copies the guest's pages, as [gntdev.Device] does;
//   - [Evtchn] binds and notifies its ports, as [evtchn.Device] does;
//   - [Gntalloc] grants pages of the guest, as [gntalloc.Device] does. It is for tests
//     of frontends, which run inside the guest.
//
// An [Own] is the last of these in the domain of the program: [gntalloc.Device.AllocAt].
//
// A program that declares small interfaces for these devices takes either.
//
// The doubles are strict. A page is mapped from shared memory at an address of its own:
// a write to a read-only mapping and any access after Unmap are faults. A gref that was
// not granted has the status that Xen gives it, a port cannot be bound twice, an event
// is delivered once and masks its port until Unmask. What the program leaves mapped,
// bound or open is an error of [Guest.Close], which [Start] reports to the test.
//
// A test orders faults with [Guest.FailRef], [Guest.FailPort] and [Guest.Intercept].
//
// The package knows grants, events and the header of a ring. It must not know xenstore,
// devices of a class, or any user of it.
//
// # What differs from Xen
//
//   - There are two domains: the guest and the one that the program runs in, which is
//     domain 0. Both are in this process.
//   - The grant table has no end and no memory of its own. A gref that was never
//     granted is GNTST_bad_gntref, as one beyond the table; a revoked one is
//     GNTST_general_error, as an empty entry of the table.
//   - The guest cannot change an entry of its grant table while the page is in use.
//   - Nothing runs out: neither grant handles nor ports. The guest has 65536 pages.
//   - No page is ever paged out, and no call waits.
//   - The guest never dies.
//   - Pages that Gntalloc frees while they are mapped are revoked with their last Unmap;
//     Linux revokes them when its device is used next.
//   - Grants of version 2, transfers, virtual and physical interrupts do not exist.
//   - After an overflow, FD of an Evtchn is readable instead of in error.
package xentest
