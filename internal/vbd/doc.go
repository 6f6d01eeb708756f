// SPDX-License-Identifier: Apache-2.0

// Package vbd runs one vbd, a disk of a guest, from the moment that the toolstack writes its
// backend directory into xenstore to the moment that the directory is gone.
//
// A [Vbd] is an actor. One goroutine owns everything about it: the state that it shows the
// frontend, the disk, the connection to the data plane. An event only makes it reconcile,
// in three steps:
//
//   - It observes: it reads both directories as they are now (observe.go).
//   - It plans the shortest legal way to the state that they call for (machine.go, which
//     draws the states).
//   - It performs the plan step by step (perform.go).
//
// So events may be merged, repeated or late without harm. That goroutine waits for no disk:
// others open and close it, and wait for requests in flight, and report their end as events
// (disk.go, connection.go).
//
// The package knows xenstore's keys of a vbd, and connects the rings and channels that they
// name to internal/blkengine and a disk of internal/disk. It must not know other vbds, or look
// into requests.
package vbd
