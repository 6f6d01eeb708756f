// SPDX-License-Identifier: Apache-2.0

// Package disk opens the backing stores of block devices: raw and sparse files, block
// devices, and a null store for measurements. It knows locks, geometry and the limits of
// discards. Reading and writing is left to package diskio.
//
// # The lock
//
// Open takes flock(2) on the open file: exclusive for a writer, shared for readers. So a
// disk has one writer. The lock belongs to the open file and not to a process: while an
// operation of a killed predecessor is still in the kernel, it holds the file and so the
// lock. When Open has returned, no older write can land any more. Open waits for the lock
// as long as its context allows.
//
// A writer also opens a block device with O_EXCL, which the kernel refuses while the device
// is mounted or part of a volume group, under any name of its node.
//
// A file that is attached to a loop device is refused, too: the kernel's back end uses
// files so, and takes no lock. This is a check when the disk is opened and no more.
//
// # Paths
//
// A path comes from the toolstack, never from a guest. Symbolic links are followed:
// /dev/vg/lv is one.
package disk
