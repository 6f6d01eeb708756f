// SPDX-License-Identifier: Apache-2.0

// Package simclient makes a process part of a domain of an embedded Xen (package xensim).
// It offers the same methods, error types and errnos as the packages gntdev, evtchn,
// gntalloc and xenstore on a real one:
//
//	on Xen                 here
//	gntdev.Open(path)      conn.Grants()
//	evtchn.Open(path)      conn.Events()
//	gntalloc.Open(path)    conn.Pages()
//	xenstore.Open()        conn.Xenstore()
//
// Each call opens a new file, as with the device nodes. The file stays open until it is
// closed, even if the [Conn] is closed before. [Conn.Control] is for dom0's toolstack, and
// [Conn.Memory] for a guest that misbehaves.
//
// When the domain is destroyed, or the simulation ends, everything fails with
// [ErrGone].
//
// Two things need a kernel and differ. An overflown queue of events shows on Events.FD as
// POLLIN, not POLLERR. And the simulation trusts the client library, which runs in the
// process, to access only the granted memory of a foreign domain.
package simclient
