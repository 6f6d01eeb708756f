// SPDX-License-Identifier: Apache-2.0

// Package traffic makes network traffic and says exactly what became of it: TCP
// streams and UDP packets of a pattern that the receiver checks to the last
// byte, and pings.
//
// It is the same on both sides of a vif: in a guest's agent and on the host. All
// functions are bounded by their context, all servers by the number of peers they
// keep.
//
// Sockets are opened by the functions called Listen... and Dial..., on the
// goroutine that calls them and on no other. A goroutine that is locked to a
// thread in another network namespace so gets sockets there, which may then be
// used from anywhere.
//
// The package knows package net. It must not know what carries the packets.
package traffic
