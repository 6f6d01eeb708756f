// SPDX-License-Identifier: Apache-2.0

// Package vhostnet is the life of one network device of vhost-user: a TAP, the rings that a
// front end shares, and the sessions with front ends, one after the other.
//
// A session begins with a connection, which an Endpoint makes: a socket that is listened on,
// one that is connected to, or one that another program passed. In a session the front end
// accepts features, shares memory and starts rings. The data path serves these. The device
// follows with the TAP: its offloads are those that the guest takes, the queues of enabled
// pairs are attached to it, and it has a carrier while a pair is enabled and its guest posts
// buffers. A front end that breaks the protocol loses its connection. The next session may
// be that of the same front end.
//
// Counters last as long as the process. The indices of rings are in guest memory and are
// sent again by a front end that reconnects, so a killed process leaves nothing else behind.
//
// The package knows one device. It must not know flags, the control socket, other devices,
// or how packets are moved.
package vhostnet
