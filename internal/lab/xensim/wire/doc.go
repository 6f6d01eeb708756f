// SPDX-License-Identifier: Apache-2.0

// Package wire is what crosses the embedded Xen's hypercall socket: which
// messages there are, how they are laid out, and the types a toolstack sees.
//
// The socket is hyp.sock in the simulation's directory, of type
// SOCK_SEQPACKET: a message is a packet. Each connection stands for one open
// file of a domain's Linux, such as one open of /dev/xen/gntdev, or for one
// more thread that uses it. Everything held through a file goes when its last
// connection closes, however it closes. The first message is
// a [Hello] that says which file of which domain; then every message is a call
// with exactly one reply, except the two calls marked as one-way.
//
// The package knows bytes. It must not know what a call does.
package wire
