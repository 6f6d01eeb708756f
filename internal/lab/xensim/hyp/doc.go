// SPDX-License-Identifier: Apache-2.0

// Package hyp is the hypervisor of the embedded Xen: domains with their memory,
// version 1 grant tables that live in that memory, and event channels.
//
// It models xen/common/grant_table.c and event_channel.c closely enough to give
// the same answer, for the same reason, to everything a backend or a frontend
// on Linux asks of them. Where a guest races the hypervisor (it can change its
// grant entries and its pages at any moment) it races this one too, with the
// same atomic operations on the same words.
//
// What is left out: version 2 tables, transfers, IPIs, physical and virtual
// interrupts, and device (IOMMU) mappings.
//
// The package knows the hypercalls. It must not know how a process reaches
// them: what Linux's device nodes make of them is in package dev, the sockets
// are in package xensim.
//
// # Locks
//
// Three kinds, never held across anything that blocks: Hypervisor.mu guards the
// set of domains, Hypervisor.ev all event channels, and grantTable.mu one
// domain's grants. A thread holds at most one of them.
package hyp
