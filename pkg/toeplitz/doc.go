// SPDX-License-Identifier: Apache-2.0

// Package toeplitz is receive side scaling as netif has it: the Toeplitz hash of
// a packet's addresses and ports, the rules for which packet has which, and the
// table that turns hashes into queues (xen/include/public/io/netif.h,
// XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ and the messages around it).
//
// It knows Ethernet, IP and TCP headers as far as these rules need them. It
// knows nothing of control rings, guests, or how packets reach their queues.
//
// A packet's queue is
//
//	var tuple toeplitz.Tuple
//	hash := uint32(0) // what has no hash goes where hash 0 goes
//	if tuple.Extract(frame, types) {
//		hash = hasher.Hash(tuple.Input())
//	}
//	queue := mapping.Queue(hash)
//
// and tuple.Type() and hash are what a guest that asked for hashes is told.
package toeplitz
