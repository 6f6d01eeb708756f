// SPDX-License-Identifier: Apache-2.0

// Package blkcases is a list of requests that a hostile or odd frontend of a block device
// makes, with the answer that each must get.
//
// One list is for all: the checks of pkg/blkif, the data path on a guest in memory, the
// embedded Xen, and a real guest. A [Case] makes one request out of a [World], which holds
// the guest's pages and what the backend has published. A [Player] puts the requests into a
// ring and checks all that a guest can see: the status, the bytes of its own pages that no
// segment has, and every byte of the disk that the request does not name.
//
// What only the host can see is the caller's to check: the counter named by the case's
// reason, a line in the log, and that other guests keep their i/o.
package blkcases
