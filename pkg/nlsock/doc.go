// SPDX-License-Identifier: Apache-2.0

// Package nlsock keeps sockets of netlink for later requests.
//
// github.com/vishvananda/netlink makes a socket for each request, unless it has a Handle. And
// if a socket cannot be bound it closes the descriptor twice: at once, and when the garbage
// collector finds the os.File of it. By then the number may belong to another file, such as
// a queue of a TAP. So this package makes and binds the sockets itself, and lends them to the
// library.
//
// A socket serves one request at a time, so no request waits for another one. A request that
// finds no idle socket makes one. A socket is kept after an answer of the kernel that is
// complete. It is closed after any other error, so that a late answer is never taken for that
// of a later request.
//
// The sockets that are kept belong to the network namespace of the process. A thread that has
// entered another one gets a new socket there, which is closed after the request.
package nlsock
