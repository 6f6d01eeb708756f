// SPDX-License-Identifier: Apache-2.0

// Package vif runs one vif, from the moment that the toolstack writes its backend
// directory into xenstore to the moment that the directory is gone.
//
// A [Vif] is an actor. One goroutine owns everything about it: the TAP device, the state
// that it shows the frontend, the connection to the data plane. An event only makes it
// reconcile, in three steps:
//
//   - It observes: it reads both directories as they are now (observe.go).
//   - It plans the shortest legal way to the state that they call for (machine.go, which
//     draws the states).
//   - It performs the plan step by step (perform.go).
//
// So events may be merged, repeated or late without harm. That matters because xenstore
// merges, repeats and delays them, and because the guest writes half of the nodes that the
// vif reads. For the same reason a failed attempt is not repeated before something has
// changed (errors.go).
//
// The package knows xenstore's keys of a vif, and hands the rings, channels and settings
// that they name to internal/netengine, which touches the guest's memory. It must not know
// other vifs, or look into packets.
package vif
