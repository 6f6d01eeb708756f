// SPDX-License-Identifier: Apache-2.0

// Package netif is the ABI of Xen's para-virtual network device in Go: the
// slots, extras, flags and statuses of xen/include/public/io/netif.h, and views
// of its shared rings for both ends.
//
// A vif has one tx ring (guest to backend) and one rx ring (backend to guest)
// per queue, and at most one control ring. Each ring is one granted 4 KiB page:
//
//	offset  0  req_prod   written by the frontend
//	offset  4  req_event  written by the backend
//	offset  8  rsp_prod   written by the backend
//	offset 12  rsp_event  written by the frontend
//	offset 64  ring[]     256 slots of 12 B (tx), 256 of 8 B (rx), 128 of 16 B (ctrl)
//
// Producer indices run freely over 32 bits and are masked only to find a slot.
// A response takes the place of a request, so answering a slot destroys the request
// in it.
//
// The peer can write the whole page at any time. The views therefore read every
// word exactly once, with an atomic load, into a value that belongs to the
// caller; they never return a pointer into the page. They do not check the values
// that the peer wrote: the caller does.
//
// The package knows memory layout and index arithmetic. It must not know how pages are
// mapped, how the peer is notified, or how packets are handled.
package netif
