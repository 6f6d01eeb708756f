// SPDX-License-Identifier: Apache-2.0

// Package wire defines the protocol of the embedded Xen's hypercall socket: the messages,
// their layout, and the types of a toolstack.
//
// The socket is hyp.sock in the simulation's directory, of type
// SOCK_SEQPACKET: a message is a packet. Each connection stands for one open
// file of a domain's Linux, such as one open of /dev/xen/gntdev, or for one
// more thread that uses it. A process may hand its connection to another one, which adopts
// the file with a call; later it gets further connections for it from the simulation, so it
// need not connect itself. Everything held through a file is released when its last
// connection closes for any reason. The first message is a [Hello] with the file and the
// domain; then every message is a call with exactly one reply, except the two calls marked
// as one-way.
//
// The package encodes and decodes messages. Package xensim implements the calls.
package wire
