// SPDX-License-Identifier: Apache-2.0

// Package blkif is the ABI of Xen's para-virtual block device in Go: the requests,
// responses and statuses of xen/include/public/io/blkif.h in the layouts of its three
// protocols, views of the shared ring for both ends, and the checks of a request.
//
// A vbd has one ring per queue. A ring is 1 to 16 granted pages of 4 KiB that are mapped
// one after the other:
//
//	offset  0  req_prod   written by the frontend
//	offset  4  req_event  written by the backend
//	offset  8  rsp_prod   written by the backend
//	offset 12  rsp_event  written by the frontend
//	offset 64  ring[]     32 slots per page, of 112 B (x86_64 and arm) or 108 B (x86_32)
//
// Producer indices run freely over 32 bits and are masked only to find a slot.
// Requests are answered in any order. A response takes the next slot of the ring, and so
// destroys a request that may still be in flight: a backend keeps a copy of each request
// that it has consumed.
//
// The peer can write the whole ring at any time. The views therefore read every word of
// a slot once, with an atomic load, into a [Slot] that belongs to the caller. All that
// follows works on this copy:
//
//	b.Copy(i, &slot)         the slot, read once
//	slot.Decode(p, &req)     its fields, unchecked
//	req.Check(&limits)       operation and number of segments
//	req.Direct(segs)         the segments of the slot, or
//	DecodeIndirect(page, segs)  those of a copy of an indirect page
//	req.Place(&limits, segs) write protection, range and alignment
//
// Each refusal has a [Reason], which knows the status of the response and the name of a
// counter. The order of the checks is that of Linux's blkback.
//
// The package knows memory layout, index arithmetic and these rules. It must not know how
// pages are mapped or copied, how the peer is notified, or what stores the data.
package blkif
