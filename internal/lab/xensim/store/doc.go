// SPDX-License-Identifier: Apache-2.0

// Package store is an embedded xenstored: the tree, its permissions, quotas,
// watches and transactions, served over the real wire protocol.
//
// The model is the C xenstored of Xen 4.17, and the package is as strict: it refuses the
// same requests with the same errno, has the same limits, and sends replies and watch
// events in the same order. Where the daemon and docs/misc/xenstore.txt differ, it follows
// the daemon. In particular 4.17 has no depth argument for WATCH, no
// @releaseDomain/<domid> and none of the feature and quota messages.
//
// Differences:
//
//   - There is no ring page. A domain's connection is any byte stream, and a
//     domain may have several; its quotas span all of them.
//   - The store closes a connection that breaks the protocol or whose domain is
//     released. On a real ring xenstored would stop answering.
//   - xenstored lets the queue of a privileged connection grow without a bound. Here
//     the store stops reading from a client that does not read, and then closes it.
//   - Where 4.17 has a bug (RESET_WATCHES in a transaction, a root owned
//     by a domain that dies, the target of a living domain that dies, an errno
//     that was never set), the store has the intended behaviour.
//
// For the package, domains are numbers that exist or do not: the hypervisor calls
// DomainCreated, DomainShutdown and DomainDied. The package must not depend on the meaning
// of nodes, on grants, event channels or devices.
//
// All state belongs to one goroutine (Server.loop), as in xenstored, which has a single
// thread. Each connection has a reader and a writer, which only transport whole messages.
package store
