// SPDX-License-Identifier: Apache-2.0

// Package dataplane moves packets between the rings of connected vifs and the
// queues of their TAP devices.
//
// A [Pool] has a few workers. Each is one OS thread with its own epoll, its own
// arenas and, where the kernel has it, its own io_uring, and each owns a number
// of queues whole: both rings, the event channels, the TAP queue, the journal.
// Nothing a worker owns is touched by anyone else, so the path of a packet takes
// no lock. The outside talks to a worker through its mailbox, and hears from it
// through the callback of a [Conn], which stands for one vif from connect to
// disconnect.
//
// # Guest to host
//
// A tx pass copies a batch of requests out of the ring, checks them against the
// rules of the protocol, fetches their data with one grant copy, writes the
// packets to the TAP with one call, and only then answers: all responses of the
// batch are journalled, written and published together, with at most one event.
// Until then every slot still holds its request. A daemon that is killed at any
// instruction therefore leaves a ring its successor can take over at rsp_prod.
//
// # Host to guest
//
// An rx pass reads from the TAP queue, up to 64 packets with one call and, as long
// as they are small, up to 192 in all; plans the slots of each packet, copies the
// data into the guest's pages with one grant copy, and publishes the responses at
// the end of a whole packet. How many it reads goes by the backlogs there were
// before, since io_uring pays for what is read in vain, and by the slots at hand.
// What cannot be delivered yet waits in the hold, for no longer than
// [Config.Drain], and the rest in the TAP: where packets may be large no more is
// read than slots and hold are sure to take, and the hold has room for large ones
// that come unexpected.
//
// # Static grants, hashes, steering
//
// What a guest has asked for over its control ring comes by the mailbox and counts
// from the next turn on. A slot whose gref is in the queue's table of static grants
// is no part of a grant copy: small data is copied from and to the page, a large
// packet is written to the TAP from it, and read from the TAP into it. A guest that
// asked for hashes gets one with each packet that has one; and where the kernel
// does not steer packets the queue that read one hands it to the one it is for.
//
// When flows move to other queues their packets stay in order, see [Conn.Resteer].
// While no change is under way that costs one comparison a packet.
//
// The package knows rings, grants, event channels and TAP queues. It must not
// know xenstore, or that there are other guests.
package dataplane
