// SPDX-License-Identifier: Apache-2.0

// Package offload decides and does what the ends of a vif leave undone to one
// another: unfinished checksums and unsegmented TCP.
//
// Both ends speak of it in their own terms, netif with flags and a GSO extra
// that say what is missing but not where, the TAP with a struct virtio_net_hdr
// that says where. [Parse] finds the headers, [PlanTx] goes from netif to the
// TAP and [PlanRx] back. Where the receiver cannot take what it is given,
// [Complete] and [CompleteSCTP] finish the checksum and a [Segmenter] cuts the
// frame as the kernel's tcp_gso_segment would:
//
//	guest to host                        host to guest
//	h, err := Parse(head, total)         h, _ := Parse(frame, len(frame))
//	p, err := PlanTx(meta, h, total)     p, err := PlanRx(vnet, h, len(frame), guest)
//	if p.WritePseudo {                   if p.WritePseudo {
//		WritePseudo(head, h, total)          WritePseudo(frame, h, len(frame))
//	}                                    }
//	p.Header.Encode ...                  switch p.Action { ... }
//
// Packets come from guests, and every length in them may be a lie. Parse
// believes a length only after it has seen that the octets are there; no
// function reads outside its slices, and all loops are bounded. Headers have to
// be in private memory: what was checked must be what is used. Payload may be
// memory a guest can still write, at the cost of a wrong checksum.
//
// All functions are pure but for the slices they are given. None of them
// allocates, so a failure is an [Error], a small number with a name.
//
// The package knows Ethernet, VLAN tags, IPv4, IPv6, TCP, UDP, SCTP's checksum
// and struct virtio_net_hdr. It must not know rings, devices, features or where
// a packet is kept.
package offload
