// SPDX-License-Identifier: Apache-2.0

// Package vif runs one vif, from the moment that the toolstack writes its backend
// directory into xenstore to the moment that the directory is gone.
//
// A [Vif] is an actor. One goroutine owns everything about it: the TAP device, the state
// that it shows the frontend, the connection to the data plane. Events only make it
// reconcile: it observes, which is to read both directories as they are now
// (observe.go); plans the shortest legal way to where they say that it should be
// (machine.go, which draws the states); and performs that step by step (perform.go). So
// events may be merged, repeated or late without harm. That matters because xenstore
// merges, repeats and delays them, and because the guest writes half of what is read. For
// the same reason nothing that has failed is tried again before something has changed
// (errors.go).
//
// The package knows xenstore's keys of a vif, and how to connect what they name to
// internal/dataplane and internal/ctrlserver. It must not know other vifs, or look into
// packets.
package vif
