// SPDX-License-Identifier: Apache-2.0

// Package blkplane moves data between the rings of connected vbds and their disks.
//
// A [Conn] is one vbd from connect to disconnect. Each of its queues (rings) has an OS
// thread of its own, as a ring of xen-blkback has a kernel thread: the thread owns the
// ring, the event channel device, the grant device, the disk's engine, the buffers and
// the journal. No other goroutine touches them, so the path of a request takes no lock.
// A grant copy or a disk that hangs holds up that queue and no other. Other goroutines
// set flags and wake the thread; it publishes counters and gauges that any goroutine may read.
//
// # A turn
//
// A thread sleeps in one system call until there is an event or a completion. Then it
//
//   - takes the completions of the disk. The data of all reads that are done goes to the
//     guest with one grant copy.
//   - answers. The responses of the turn are journalled, written and published together,
//     with at most one event.
//   - consumes requests. It reads req_prod once, copies the slots into the journal and
//     moves the journalled req_cons on.
//   - starts requests in ring order. It decodes and checks them; fetches the pages of all
//     indirect requests with one grant copy and checks these copies; fetches the data of
//     all writes with one grant copy; and queues the operations.
//   - submits the operations and sleeps, in one system call.
//
// A request that is larger than a chunk runs as several operations. A request for which
// there is no memory stays at the head and in the journal; requests behind it wait.
//
// # Order
//
// Requests complete in any order. A flush answers only requests to flush that were started
// before it began. A write barrier waits until no request is in flight, flushes, writes and
// flushes again; requests behind it wait.
//
// # Failure
//
// OKAY is answered only for what was done in full. An error of the disk, a transfer that
// stays short, or a page that cannot be copied makes the response ERROR. A frontend that
// breaks the ring stops its queue for good, and a panic in a queue's code does the same;
// the owner of the connection gets a [Notice].
//
// # Restart
//
// The journal holds every request that was consumed and not answered. A daemon that is
// killed at any instruction leaves a ring and a journal from which its successor goes on:
// see [Journal].
//
// The package knows rings, grants, event channels and disks. It must not know xenstore,
// or that there are other guests.
package blkplane
