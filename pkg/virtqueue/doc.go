// SPDX-License-Identifier: Apache-2.0

// Package virtqueue is the device's side of the virtqueues of virtio 1.2: it takes chains
// of buffers from a ring in guest memory and publishes them as used. It is for back ends of
// vhost-user, in which the driver is a guest.
//
// [Split] is a queue in the format of section 2.7, [Packed] one in that of section 2.8. They
// have the same methods. [SplitDriver] and [PackedDriver] are the other side of them, for
// tests.
//
// A back end takes a [Batch] of chains, reads or writes their pieces, and publishes the
// batch. Chains are published in the order in which they were taken, all of a batch with
// one store: a successor of a back end that was killed starts at the used index and neither
// loses a chain nor repeats one that was published. A batch of packets for the guest is made
// with TakeFor, which takes the chains of one packet (VIRTIO_NET_F_MRG_RXBUF) or none.
//
// # The driver is not trusted
//
// The driver can write rings and tables at any time. Each word is read once, into private
// memory, and checked there. Descriptors that were not checked have a type of their own,
// which does not leave the package. A [Piece] is within the table of memory, but the bytes
// in it can change while they are used.
//
// Every loop is bounded by the size of the queue or by [MaxPieces]. A broken rule is an
// [*Error] with a [Reason]. It ends the use of the queue, since it cannot be told where the
// next chain starts. Chains that were taken before it can be published.
//
// # What is checked
//
// Chains may have up to as many descriptors as the queue, and indirect tables up to
// [MaxPieces], as in QEMU: Linux makes tables longer than a small queue. A descriptor may
// span regions, which makes several pieces. An indirect descriptor ends its chain. Unknown
// flags are ignored, as virtio says. That two chains use the same descriptor or the same
// memory is not noticed: it harms only the guest.
//
// # Costs
//
// Nothing is allocated, locked or looked up in a map per chain. Regions are in a slice that
// is searched by halves, after the region of the last descriptor was tried. There is no
// interface on the way of a chain. A data path that keeps its queues behind an interface of
// its own pays for one indirect call per batch, since Take, Publish and Arm are methods of
// batches; only TakeFor is called for each packet, in a loop that such a data path writes
// for each format. A type parameter would not be cheaper: Go compiles one body for all
// pointer types, and calls methods through a table there.
//
// # What the package does not know
//
// It knows rings and memory. It must not know how memory was mapped, how a side is notified,
// what a vnet header says, or any protocol that sets a queue up.
package virtqueue
