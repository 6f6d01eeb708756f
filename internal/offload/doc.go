// SPDX-License-Identifier: Apache-2.0

// Package offload translates and performs the offloads of a vif: partial
// checksums and unsegmented TCP.
//
// The two sides describe them differently. netif has flags and a GSO extra, which
// do not say where the headers are. A TAP has struct virtio_net_hdr, which does.
// [Parse] finds the headers, [PlanTx] translates from netif to the TAP and [PlanRx]
// back. If the receiver does not take an offload, [Complete] and [CompleteSCTP]
// complete the checksum, and a [Segmenter] cuts the frame as the kernel's
// tcp_gso_segment does:
//
//	guest to host                        host to guest
//	h, err := Parse(head, total)         h, _ := Parse(frame, len(frame))
//	p, err := PlanTx(meta, h, total)     p, err := PlanRx(vnet, h, len(frame), guest)
//	if p.WritePseudo {                   if p.WritePseudo {
//		WritePseudo(head, h, total)          WritePseudo(frame, h, len(frame))
//	}                                    }
//	p.Header.Encode ...                  switch p.Action { ... }
//
// A [Merger] is the inverse of segmentation: it merges the packets of a flow that a guest
// without the offload sends.
//
// Packets come from guests, and no length in them can be trusted. Parse checks that
// the bytes are there before it uses a length; no function reads outside its
// slices, and all loops are bounded. Headers must be in private memory, so that
// the bytes that were checked are the bytes that are used. Payload may be memory
// that a guest can still write; then the checksum may be wrong.
//
// All functions are pure except for the slices they are given. None allocates, so a
// failure is an [Error], a small number with a name.
//
// The package knows Ethernet, VLAN tags, IPv4, IPv6, TCP, UDP and SCTP's checksum,
// and uses the types for offloads of pkg/netif and pkg/tap. It must not know rings,
// devices, features or where a packet is stored.
//
// pkg/toeplitz has a parser of its own (Tuple.Extract). That package is public and
// must not import the daemon, and its rules differ on purpose: it looks no further
// than the enabled hash types need, does not skip authentication headers, and takes
// every packet with an IPv6 fragment header for one without ports. internal/steer
// follows the rules of pkg/toeplitz in eBPF, which can share no code with either.
package offload
