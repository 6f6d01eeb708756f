// SPDX-License-Identifier: Apache-2.0

// Package blkengine does for a vbd everything that touches pages of its guest: it maps rings,
// binds event channels, maps journals, and has the data path serve requests from the disk.
//
// An [Engine] gives each vbd a [Link]. The vbd knows xenstore, opens and locks the disk, and
// keeps the files of the run directory; the link knows the guest's memory. A [Conn] is one
// connection of a frontend.
//
// [Local] is the engine in the process of its caller.
package blkengine
