// SPDX-License-Identifier: Apache-2.0

// Package tap makes multi-queue TAP devices and moves frames through them.
//
// It knows /dev/net/tun: how a device is opened, adopted from a process that
// died, given more or fewer queues, offloads, carrier and persistence; the
// header in front of each frame ([VnetHdr]); and what the kernel's errors mean.
// It must not know who is at the other end of the frames (no Xen, no vifs) nor
// what a device is plugged into (no bridges, no addresses).
//
// # Directions
//
// A [Queue] is the driver's end of the cable. What is written to it the host
// receives from the device; what the host sends to the device is read from it.
// The host's counters ([Stats]) therefore count a Write as received.
//
// # Two ways to open
//
// With Config.VnetHdr each frame carries a VnetHdr, and checksums and TCP
// segmentation can be left to either side; github.com/vishvananda/netlink opens
// such devices. Without, frames are plain Ethernet; github.com/songgao/water
// opens those. The first queue comes from the library; further queues, and every
// setting neither library knows, are made here by ioctl, in the same way for
// both. The two must not be mixed on one device: opening a persistent device
// without a vnet header takes the header away from it, so Create refuses.
//
// # Names
//
// Scripts rename a device as soon as they see it. A [Device] is therefore held
// by its queues; its name is asked for whenever it is needed. Create leaves the
// device down: plugging it in and bringing it up is the script's work, and a device
// that is up before the script has run announces itself on the wrong network.
//
// # Threads
//
// The methods of a Device belong to one goroutine at a time, except Index, which
// belongs to all. Each Queue belongs to one goroutine (or thread) at a time, which
// may be another one; before the Device closes a queue (Close, CloseKeep,
// SetQueues with fewer) that goroutine must have stopped using it. If the queue
// is registered with an io_uring it must be unregistered first: a ring keeps
// the queue, and so the device, alive and in use.
//
// # Namespaces
//
// A Device is made in the network namespace of the calling thread. It can be moved to
// another one, by a script for example, and is found there: frames go on, and all
// that goes through a queue works as before, such as its name, carrier and
// offloads. So do looking at it and deleting it, and giving it fewer queues. What
// else is changed, and a queue more, takes the right to enter that namespace
// (CAP_SYS_ADMIN, in both); without, it fails with [ErrElsewhere].
package tap
