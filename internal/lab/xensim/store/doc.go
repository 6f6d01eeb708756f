// SPDX-License-Identifier: Apache-2.0

// Package store is an embedded xenstored: the tree, its permissions, quotas,
// watches and transactions, served over the real wire protocol.
//
// The model is the C xenstored of Xen 4.17, and the package is as strict as
// that one: what Xen refuses is refused with the same errno, what Xen limits is
// limited at the same number, and replies and watch events leave in the same
// order. Where the daemon and docs/misc/xenstore.txt differ, the daemon wins.
// In particular 4.17 has no depth argument for WATCH, no @releaseDomain/<domid>
// and none of the feature and quota messages.
//
// These things differ, because they have to or because they serve no purpose:
//
//   - There is no ring page. A domain's connection is any byte stream, and a
//     domain may have several; its quotas span all of them.
//   - A connection that breaks the protocol, or the domain of which is released, is
//     closed. On a real ring it would go silent.
//   - xenstored lets the queue of a privileged connection grow for ever. Here
//     one that does not read is first not read from, then closed.
//   - Where 4.17 trips over itself (RESET_WATCHES in a transaction, a root owned
//     by a domain that dies, the target of a living domain that dies, an errno
//     that was never set), the store does what was meant.
//
// The package knows domains as numbers that exist or do not: the hypervisor
// tells it by DomainCreated, DomainShutdown and DomainDied. It must not know
// what the nodes mean, nor anything of grants, event channels or devices.
//
// All state belongs to one goroutine (Server.loop), as in xenstored, which has
// a single thread. Each connection adds a reader and a writer that carry bytes
// and know no more than whole messages.
package store
