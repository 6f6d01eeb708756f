// SPDX-License-Identifier: Apache-2.0

// Package traffic makes network traffic and counts its losses and errors: TCP streams and
// UDP packets of a pattern of which the receiver checks every byte, and pings.
//
// Both sides of a vif use it: a guest's agent and the host. The context bounds each
// function, and each server keeps a bounded number of peers.
//
// The functions Listen... and Dial... open sockets on the calling goroutine. A goroutine
// that is locked to a thread in another network namespace gets sockets there, which any
// goroutine may then use.
//
// The package must not depend on the device that carries the packets.
package traffic
