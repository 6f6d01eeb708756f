// SPDX-License-Identifier: Apache-2.0

// Package hyp is the hypervisor of the embedded Xen: domains with their memory,
// version 1 grant tables that live in that memory, and event channels.
//
// It models xen/common/grant_table.c and event_channel.c closely enough to return
// the same result, for the same reason, to every call of a backend or a frontend
// on Linux. Where a guest races the hypervisor (it can change its
// grant entries and its pages at any moment) it races this one too, with the
// same atomic operations on the same words.
//
// It omits version 2 tables, transfers, IPIs, physical and virtual interrupts, and device
// (IOMMU) mappings.
//
// The package implements the hypercalls. Package dev implements Linux's device nodes on
// top of them, and package xensim the sockets.
//
// # Locks
//
// Three kinds, never held across anything that blocks: Hypervisor.mu guards the
// set of domains, Hypervisor.ev all event channels, and grantTable.mu one
// domain's grants. A thread holds at most one of them.
package hyp
