// SPDX-License-Identifier: Apache-2.0

// Package virtfront plays the guest's side of a vhost-user network device: the driver of a
// pair of rings, in memory that Xen shares or in a memfd, and the front end that hands the
// memory to a back end.
//
// In a guest of a real Xen, [RunGuest] puts rings and buffers in granted pages, or in pages
// of the guest that the front end maps as foreign ones, and publishes a [Layout] in the
// guest's own directory of xenstore. In dom0, [RunFront] reads it, opens gntdev or privcmd,
// and passes memory and rings over the socket. It forwards events between eventfds and event
// channels and never touches the memory. [RunPlain] is both at once with shared memory.
// [RunPeer] is the other end: it sends frames into a TAP and checks what comes out of it.
//
// All frames have a number and contents that follow from it, so both ends check every byte.
//
// The package is for tests. It trusts nothing of a back end but lives with what one does:
// the driver counts what it finds wrong.
package virtfront
