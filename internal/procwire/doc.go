// SPDX-License-Identifier: Apache-2.0

// Package procwire carries messages with open files between a broker and a process that it
// has started. Either side may be taken over by a guest, so neither trusts the other:
// frames are bounded, each kind of message has a [Rule], and a frame that breaks a rule ends
// the connection. Files that come with it are closed.
//
// Both ends are the same program, so there are no versions.
//
// # Messages
//
// A connection is a socket of type SOCK_SEQPACKET, and a frame is one message of it. A
// request is answered once, with an answer or a failure, perhaps later and in any order. A
// notice is not answered. Both sides may send both. [Conn.Call] sends a request and waits
// for its answer; [Conn.Post] sends a notice.
//
// Bodies are made with [Writer] and read with [Reader], which accept exactly one encoding
// of each value.
//
// # Bounds
//
// A side that does not take frames for the time Config.Timeout ends the connection; so does
// a request that was not answered for that long only end its Call. Config.Rate bounds the
// frames that are taken per second: the others wait in the socket, at the cost of their
// sender. Config.Pending bounds the requests that wait for answers, in each direction.
package procwire
