// SPDX-License-Identifier: Apache-2.0

// Package tap makes multi-queue TAP devices and moves frames through them.
//
// It knows how /dev/net/tun opens a device, adopts it from a process that has died, and
// changes its queues, offloads, carrier and persistence. It knows the header in front
// of each frame ([VnetHdr]) and the meaning of the kernel's errors. It must not know
// the other end of the frames (no Xen, no vifs) nor the network that a device belongs
// to (no bridges, no addresses).
//
// # Directions
//
// A [Queue] is the driver's end of the cable. The host receives the frames that are
// written to it, and sends the frames that are read from it. So the host's counters
// ([Stats]) count a Write as received.
//
// # Two ways to open
//
// With Config.VnetHdr each frame has a VnetHdr, and either side can complete checksums
// and TCP segmentation; github.com/vishvananda/netlink opens such devices. Without it
// frames are plain Ethernet; github.com/songgao/water opens such devices. The library
// opens the first queue, except for a device with the header that exists, whose owner it
// would change. This package opens further queues and changes settings that the libraries
// do not know, by ioctl and in the same way for both. The two must not be
// mixed on one device: opening a persistent device without a vnet header takes the
// header away from it, so Create refuses.
//
// # Names
//
// Scripts rename a device as soon as they see it. So a [Device] is identified by its
// queues, and asks for its name whenever that is needed. Create leaves the device
// down: the script connects it to a network and brings it up. A device that is up
// before the script has run would announce itself on the wrong network.
//
// # Threads
//
// The methods of a Device belong to one goroutine at a time, except Index, which any
// goroutine may call. Each Queue belongs to one goroutine (or thread) at a time, which
// may be another one; before the Device closes a queue (Close, CloseKeep,
// SetQueues with fewer) that goroutine must have stopped using it. If the queue
// is registered with an io_uring it must be unregistered first: a ring keeps
// the queue, and so the device, alive and in use.
//
// # Namespaces
//
// A Device is made in the network namespace of the calling thread. A script, for
// example, can move it to another one. There frames pass as before, and everything
// that is done through a queue works, such as asking for its name and changing carrier
// and offloads. Info, deleting it and closing queues work as well. Other changes, and
// opening queues, need the right to enter that namespace (CAP_SYS_ADMIN, in both).
// Without it they fail with [ErrElsewhere].
package tap
