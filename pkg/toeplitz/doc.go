// SPDX-License-Identifier: Apache-2.0

// Package toeplitz is receive side scaling as netif defines it: the Toeplitz hash of
// a packet's addresses and ports, the rules that give a packet its hash, and the
// table that maps hashes to queues (xen/include/public/io/netif.h,
// XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ and the messages around it).
//
// It knows Ethernet, IP and TCP headers as far as these rules need them. It
// knows nothing of control rings, guests, or how packets reach their queues.
//
// A packet's queue is
//
//	var tuple toeplitz.Tuple
//	hash := uint32(0) // a packet without a hash has the queue of hash 0
//	if tuple.Extract(frame, types) {
//		hash = hasher.Hash(tuple.Input())
//	}
//	queue := mapping.Queue(hash)
//
// A guest that asked for hashes is sent tuple.Type() and hash.
package toeplitz
