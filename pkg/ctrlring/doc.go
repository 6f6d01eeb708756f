// SPDX-License-Identifier: Apache-2.0

// Package ctrlring is the control ring of a vif, by which a frontend configures
// hashing and static grants (xen/include/public/io/netif.h, control ring).
//
// There are two protocols, and one interface for each end of both:
//
//   - The slot ring is the one that Xen merged in 2016: a standard ring of 128
//     messages of a type and three words each ([SlotBack], [SlotFront]). Keys, tables and
//     lists are in pages that a message names by gref. The backend advertises it
//     with feature-ctrl-ring.
//   - The byte-stream ring is an earlier proposal: two buffers of 1024 bytes for
//     messages of any length, which contain key and table
//     ([StreamBack], [StreamFront]). The backend advertises it with
//     feature-control-ring. Only hashing can be configured over it.
//
// A frontend uses the same two keys for both, ctrl-ring-ref and
// event-channel-ctrl, and does not name the protocol; [Sniff] reads it off the page.
//
// # Serving a ring
//
// A [Back] never blocks and does not know the effects of messages. It returns one
// [Request] at a time, and the next one only after the first was answered. [Calls]
// turns a request into a call of a [HashHandler] or a [GrefHandler]. It copies the data
// that the request names out of the guest's pages, which may block, and checks it as
// far as the protocol defines it. A backend repeats
//
//	request, ok, err := back.Next()
//	if ok {
//		back.Reply(calls.Do(request))
//	}
//	if state, ok := back.Unflushed(); ok {
//		// Record the state, with what the message has changed.
//	}
//	notify, err := back.Flush()
//
// until Next reports false, and then waits for an event.
//
// The frontend sees nothing of a message that was taken or answered before
// [Back.Flush]. A daemon that records the [State] before that can be killed at any
// instruction, and a message is neither lost nor answered twice. It may be carried
// out twice, unless its effects are in the same record.
//
// Invalid indices are the end of the ring: they no longer tell which bytes belong to
// which end. The [Error] is no reason to stop the vif's data path.
//
// The package knows the two protocols. It must not know how packets are hashed, where
// static grants are kept, or how events are sent.
//
// # What the byte-stream proposal left open
//
// The text of December 2015 contradicts itself in places. This package reads it so:
//
//   - A header is a type and a size of 4 bytes each, as drawn; the struct beside
//     the drawing has 2 bytes each. The size is that of the payload alone. A size
//     of more than 16 bits is refused like any other that is too large.
//   - Payloads are made of values of 8 bytes, as drawn: status, hash types and
//     table entries, in little endian, with the upper half zero. Hash types of 4
//     bytes are taken as well.
//   - The frontend writes requests at req_prod, not at req_cons.
//   - Hash types are bits 0 to 3. The macros of the proposal give IPv6 the bits of
//     IPv4: a frontend that was compiled with them can ask for IPv4 only. No bit
//     ever means two types.
//   - A table has a power of two of entries, 1 to 128; there is no way to ask how
//     many. An entry must be less than the number of queues.
//   - A payload that is too long is read to its end and dropped. The answer is
//     BUFFER_OVERFLOW. It is INVALID_PARAMETER for a payload of the wrong size, and
//     NOT_SUPPORTED for an unknown type of any size.
//   - A response that is not SUCCESS carries the status alone.
//   - The bytes behind a request are the next request. It is read when the response
//     to the first is completely written.
//   - Each end sends an event after each advance of its producer, and after each
//     advance of its consumer that leaves a message incomplete.
//   - Counters start at zero with each connection.
//   - There is no message for the algorithm. Before there is a table all packets go to
//     queue 0; with a slot ring they go to the hash modulo the number of queues.
//     [Calls.Start] sets up both.
//   - The proposal does not define how hashes reach the frontend. So only a frontend
//     on a slot ring is sent hash extras.
package ctrlring
