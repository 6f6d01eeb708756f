// SPDX-License-Identifier: Apache-2.0

// Package vhostuser speaks vhost-user, by which a front end (QEMU, another virtual machine
// monitor, DPDK) has another process serve the rings of a virtio device. The back end is
// that process. Its messages, and their order with real front ends, are those of QEMU's
// docs/interop/vhost-user.rst and of programs that were seen.
//
// [Backend] is a session with a front end. It decodes messages, keeps what was agreed, maps
// memory, and calls a [Handler]: once per message, never per packet. [Frontend] is the
// other side, for tests. Package virtqueue has the rings.
//
// # Rings
//
// A ring is started when its size, its addresses and a kick are there: [Handler.StartRing].
// The handler serves it from the first time that the kick is readable. GET_VRING_BASE, a
// reset and the end of the session stop it. Enabled is another state, which is independent:
// front ends enable rings before there is any memory. A ring that is started and not enabled
// discards what the guest sends and gives it nothing. While no ring is started a handler
// writes to no guest memory and notifies no guest. The session itself sends nothing but
// answers.
//
// # Memory
//
// A [Table] is an immutable set of regions of four kinds:
//
//	flags 0              shared memory, mapped from a file
//	flags 1              foreign pages of a domain, by privcmd
//	flags 2              granted pages, by gntdev, mapped as a whole
//	flags 2 + 0x100, 0x8 granted pages that are not mapped in advance
//
// Others are refused. The last kind is not mapped: rings are, while they are started, and
// buffers are copied by grant copies. Pieces of such a region have no memory but an address,
// from which [Gref] makes a grant; [Table.Region] has the domain and the device. Foreign pages cannot
// be pinned, so neither O_DIRECT nor registered buffers of io_uring can use them.
//
// The two fields for Xen are recognised by the size of a region, not by what was agreed:
// QEMU 10.0 acknowledges VHOST_USER_PROTOCOL_F_XEN_MMAP and sends regions without them.
//
// When the memory changes the handler gets a new table with the rings of the old one, and
// the old one is unmapped when the handler has returned.
//
// # The front end is not trusted
//
// Sizes, counts, ranges, indices and flags are checked before anything is mapped, and files
// by fstat(2). A message that breaks the protocol ends the session, after a failed
// acknowledgement if one was asked for. A message that began has to be complete within a
// time, and answers have to be read within the same. A file that is made shorter after it
// was mapped makes the process fault when it uses the memory (SIGBUS): workers that must
// survive this set runtime/debug.SetPanicOnFault. Descriptors of events are made
// non-blocking, but a front end has the same open file and can change that: a session whose
// workers wait in Signal empties the counter, which is why notifications go to eventfds only.
//
// # What is not served
//
// The channel from the back end to the front end, in-band notifications, IOTLB messages,
// post-copy migration, the transfer of a device's state, shared objects and the features of
// the crypto and GPU devices. Their protocol features are not offered. The number 41 was
// proposed for Xen once and has another meaning now; it is refused.
//
// The package knows messages and memory. It must not know packets, TAPs, or who listens on
// which socket.
package vhostuser
