// SPDX-License-Identifier: Apache-2.0

// Package staticgrant is the table of a queue's static grants: pages that a
// frontend asked the backend to keep mapped, so that requests which name them
// need no grant operation (xen/include/public/io/netif.h,
// XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING and DEL_GREF_MAPPING).
//
// A [Table] belongs to the worker that serves the queue, which looks grefs up in
// it for every request. Mapping and unmapping are system calls and are done
// elsewhere, so a change takes two steps:
//
//	p, err := source.Prepare(ctx, list)  // control: check, map
//	err = table.Commit(p)                // worker: put in, all or none
//	p.Unmap()                            // control: only if it was not put in
//
//	r := table.Detach(list)              // worker: take out what is not in use
//	n, err := r.Unmap()                  // control: unmap; list has the statuses
//
// Only after the last step may the frontend be answered. Steps of several
// changes may interleave in any order.
//
// The package knows grefs and mappings. It knows nothing of the messages that
// ask for them, of rings, or of what is in the pages.
//
// # What a frontend can and cannot do to it
//
// A gref must map to be put in, each page is mapped by itself so that it can be
// unmapped by itself, and the numbers are bounded: of a table by its limit, of a
// guest and of the process by a [Budget]. How long a look-up takes does not
// depend on the grefs a frontend chooses: they are spread by a multiplier it
// cannot know, and one that spreads them badly is replaced.
package staticgrant
