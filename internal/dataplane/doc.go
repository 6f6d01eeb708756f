// SPDX-License-Identifier: Apache-2.0

// Package dataplane moves packets between the rings of connected vifs, or the virtqueues
// of vhost-user devices, and the queues of their TAP devices.
//
// A [Pool] has a few workers. Each is one OS thread with its own epoll, its own arenas
// and, where the kernel has it, its own io_uring. A worker owns queues whole: both
// rings, the event channels, the TAP queue and the journal. No other goroutine touches
// them, so the path of a packet takes no lock. Other goroutines post functions to a
// worker's mailbox. A [Conn] is one vif from connect to disconnect; its callback reports
// events to them.
//
// # Guest to host
//
// A tx pass copies a batch of requests out of the ring, checks them against the
// protocol, fetches their data with one grant copy, writes the packets to the TAP with
// one call, and then answers: all responses of the batch are journalled, written and
// published together, with at most one event. Until then every slot still holds its
// request, so a daemon that is killed at any instruction leaves a ring that its
// successor can adopt at rsp_prod.
//
// Packets of a flow that a guest without segmentation offload sends are merged to one GSO
// packet for the TAP ([Coalesce]).
//
// # Host to guest
//
// An rx pass reads packets from the TAP queue, up to 64 with one call and, as long as
// they are small, up to 192 in all; plans the slots of each, copies the data to the
// guest's pages with one grant copy, and publishes the responses at the end of a whole
// packet. A tapReader decides how many packets to read and how. A packet that finds too
// few slots waits in the queue's backlog, for [Config.Drain] at most; the others wait
// in the TAP. docs/architecture.md draws this path.
//
// # Static grants, hashes, steering
//
// Settings that a guest makes over its control ring arrive in the mailbox and are in
// force from the next turn on. A slot whose gref is in the queue's table of static
// grants needs no grant copy: small data is copied from and to the page, a large packet
// is written to the TAP from it, or read from the TAP into it. A guest that enabled
// hashes gets one with each packet that has one. Where the kernel does not steer
// packets, the queue that read one puts it in the backlog of the packet's queue.
//
// When flows move to other queues their packets stay in order, see [Conn.Resteer].
// While no resteering is under way this costs one comparison per packet.
//
// # Virtqueues
//
// A [VirtConn] is a device of vhost-user. Each of its pairs of virtqueues is a queue like
// that of a vif, with two passes of its own over the rings. Packets from the guest are
// written to the TAP from its memory, except for small ones and for headers, which are
// copied once. Packets to the guest are copied to the buffers that it posted, or read into
// them. Chains are published once per batch, in order. docs/architecture.md says what the
// two kinds of queue share, and why their passes are not one.
//
// The package knows rings, grants, event channels and TAP queues. It must not know
// xenstore, or that there are other guests.
package dataplane
