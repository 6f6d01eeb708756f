// SPDX-License-Identifier: Apache-2.0

// Package vif is the life of one vif: from the moment the toolstack writes its
// backend directory into xenstore to the moment the directory is gone.
//
// A [Vif] is an actor. One goroutine owns everything about it: the TAP device,
// the state it shows the frontend, the connection to the data plane. Whatever
// happens elsewhere only makes it look again: it reads both directories as they
// are now (observe.go), takes the shortest legal way to where they say it should
// be (machine.go), and does that step by step (steps.go). So events may be
// merged, repeated or come late without harm, which matters because xenstore
// merges, repeats and delays them, and because the guest writes half of what is
// read. For the same reason nothing that failed is tried again before something
// has changed (trouble.go).
//
// What the vif shows the frontend runs through these states (io/xenbus.h):
//
//	Initialising ── TAP made, features published ──> InitWait
//	InitWait ── frontend Connected, rings mapped, hotplug done ──> Connected
//	Connected ── frontend Closing ──> Closing ── frontend Closed ──> Closed
//	Closed ── frontend Initialising, still online ──> InitWait
//	any ── toolstack wants it gone (online=0, state=5) ──> Closed, within a second
//
// The package knows xenstore's vif keys, and how to connect what they name to
// internal/dataplane. It must not know of other vifs, or look into packets.
package vif
