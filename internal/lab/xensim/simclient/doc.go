// SPDX-License-Identifier: Apache-2.0

// Package simclient is how a process takes part in an embedded Xen (package
// xensim) as one of its domains. It offers what the packages gntdev, evtchn,
// gntalloc and xenstore offer on a real one, with the same methods, the same
// error types and the same errnos:
//
//	on Xen                 here
//	gntdev.Open(path)      conn.Grants()
//	evtchn.Open(path)      conn.Events()
//	gntalloc.Open(path)    conn.Pages()
//	xenstore.Open()        conn.Xenstore()
//
// Each call opens anew, as the device nodes do, and what was opened lives until
// it is closed, even if the [Conn] is closed before. dom0's toolstack has
// [Conn.Control] besides, and a guest that means to misbehave [Conn.Memory].
//
// When the domain is destroyed, or the simulation ends, everything fails with
// [ErrGone].
//
// Two things cannot be had without a kernel. A queue of events that has
// overflown shows on Events.FD as POLLIN, not POLLERR. And the client library,
// which runs in the process, is trusted not to touch more of a foreign domain's
// memory than it was granted.
package simclient
