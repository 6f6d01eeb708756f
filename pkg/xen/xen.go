// SPDX-License-Identifier: Apache-2.0

// Package xen holds what all other packages about Xen share: the numbers of domains and
// of grants, and the stamp that identifies a connection in the headers of its rings.
package xen

// Domid is the number of a domain: domid_t of Xen's xen.h.
type Domid uint16

// Numbers of domains with a meaning (xen.h).
const (
	// Dom0 is the first domain, in which the toolstack runs.
	Dom0 Domid = 0
	// FirstReservedDomid is DOMID_FIRST_RESERVED: no domain has this number or a
	// higher one.
	FirstReservedDomid Domid = 0x7ff0
	// DomidSelf is DOMID_SELF: to Xen, the domain that makes the call. It does not stand
	// for that domain in an entry of a grant table.
	DomidSelf Domid = 0x7ff0
)

// Gref is a grant reference: an index into the grant table of the domain that
// granted a page (grant_ref_t of Xen's grant_table.h). It says nothing without the
// number of that domain.
type Gref uint32
