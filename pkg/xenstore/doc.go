// SPDX-License-Identifier: Apache-2.0

// Package xenstore is a client of xenstored, the daemon that keeps the small
// tree through which Xen domains find each other.
//
// A Client is one connection. Many goroutines may use it at once; each call
// returns when xenstored has answered it, or when its context ends.
//
//	c, err := xenstore.Open(ctx)
//	...
//	defer c.Close()
//	state, err := c.ReadUint(ctx, "/local/domain/0/backend/vif/1/0/state", 8)
//
// Reading, writing, listing and permissions work alike outside of a transaction
// (on a Client) and inside one (on the Tx given to the function passed to
// Client.Transaction). A Watch reports changes, coalesced and bounded, so that a guest
// that rewrites a node in a loop costs its back end time but no memory.
//
// # Two transports
//
// Open and Dial find out the transport. New is given it.
//
// Socket is the unix socket of xenstored, a plain stream.
//
// Xenbus is /dev/xen/xenbus, behind which the kernel multiplexes its own
// connection. It needs Linux 4.11 or later. The Client hides all its differences:
//
//   - A request with its header must fit 4096 bytes (MaxPayloadXenbus).
//   - The kernel collects written bytes until a request is complete, and it may
//     refuse that with an errno of write(2) instead of an ERROR message. It then
//     drops the request as a whole.
//   - The kernel keeps the header of a request when write(2) returns, but the
//     payload stays in the file's only buffer until its xenbus thread sends it:
//     the next write(2) gives an unsent request the payload of another.
//   - WATCH and UNWATCH are carried out by the kernel inside write(2), under a
//     lock that the delivery of any other reply to the same file takes as well.
//     A reply that comes meanwhile stops the kernel's reader, and so every user of
//     xenstore in the domain, for good.
//   - So the Client has no more than one request outstanding.
//   - The header of a WATCH_EVENT is uninitialised but for type and length.
//   - The device supports poll(2) for reading. It is opened non-blocking and its
//     reads wait in the Go runtime's poller, from where Client.Close wakes them.
//     It never reports writability, and write(2) never returns EAGAIN. A write(2)
//     that waits for a dead xenstored cannot be interrupted; Client.Close leaves such
//     a thread behind.
//
// Use absolute paths. A relative one means the caller's own domain on Xenbus,
// but the domain xenstored runs in on Socket.
//
// # When a context ends
//
// A call whose context ends returns the context's error in an Error. The
// connection stays usable on both transports:
//
//   - A request that was not sent yet is not sent. On Xenbus that is one which
//     waits for the reply to another request.
//   - A request that was sent is carried out. Its late reply is matched by the
//     request id and dropped. On Xenbus the next request waits for it.
//   - What the request has left behind in xenstored is undone when the reply
//     comes: a watch is removed, a transaction is aborted.
//   - A request that is never answered ends the connection after the timeout,
//     though its caller has left.
//
// # When the connection ends
//
// The end of the stream, a request that is not answered in time, or a peer that breaks
// the protocol ends a connection. All calls then return ErrClosed with the reason
// wrapped beside it, the channels of all watches are closed, and Client.Done is
// closed. A Client does not reconnect: watches and transactions are lost, so the
// caller opens a new Client and reads everything again.
//
// If a reply can be matched with a request but is not valid, for example a permission
// of an unknown kind, only that call fails, with ErrProtocol.
//
// The package knows the wire protocol (docs/misc/xenstore.txt and
// xen/include/public/io/xs_wire.h of Xen) and the two transports. It exports the
// wire for servers too. It must not know the meaning of nodes, such as devices, states
// and rings.
package xenstore
