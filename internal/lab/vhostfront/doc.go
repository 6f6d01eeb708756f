// SPDX-License-Identifier: Apache-2.0

// Package vhostfront is a front end of vhost-user that plays a guest with a virtio network
// device, as package netfront plays a PV guest. It is for tests and the demo.
//
// A [Device] makes the guest's memory in a memfd, lays out rings and buffers in it, and
// agrees with a back end on a unix socket, as client or as server. When the back end dies,
// Device.Reconnect gives the rings, as they are, to the next one. A [Pump] moves packets
// between a pair of rings and a queue of a TAP, whose host side is then the guest's network
// card.
//
// Pumps do not stop while the back end is away or while the memory table changes.
//
// The back end is not trusted. Each breach of a rule is counted and described: chains out of
// order, writes beside the buffers or to the packets that the guest sends, vnet headers that
// were not agreed on, writes and notifications while all rings are stopped, pages missing in
// the log.
//
// The package knows one device. It must not know who makes traffic, Xen, or the code of the
// back end.
package vhostfront
