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
//	r := table.Detach(list)              // worker: take out
//	n, err := r.Unmap()                  // control: unmap; list has the statuses
//
// The frontend may be answered only after the last step. Steps of several changes
// may interleave in any order.
//
// The package knows grefs and mappings. It knows nothing of the messages that
// request them, of rings, or of the contents of the pages.
//
// # Hostile frontends
//
// Only a gref that can be mapped is put in. Each page is mapped on its own, so that it
// can be unmapped on its own. The numbers are bounded: of a table by its limit, of a
// guest and of the process by a [Budget]. The time of a look-up does not depend on the
// grefs that a frontend chooses: they are spread by a multiplier that it cannot know,
// and a multiplier that spreads them badly is replaced.
package staticgrant
