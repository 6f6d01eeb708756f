// SPDX-License-Identifier: Apache-2.0

// Package xenstore is a client of xenstored, the daemon that keeps the small
// tree through which Xen domains find each other.
//
// It knows the wire protocol (docs/misc/xenstore.txt and
// xen/include/public/io/xs_wire.h of Xen) and the two ways to reach xenstored.
// It must not know what the nodes mean: devices, states and rings are the
// business of its callers.
package xenstore
