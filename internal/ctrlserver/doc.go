// SPDX-License-Identifier: Apache-2.0

// Package ctrlserver serves the control ring of one connection: it does what the
// frontend asks for over it, hashing and static grants, and records it for a
// successor.
//
// A [Server] has a goroutine of its own, because a message may take as long as it takes
// to map five hundred pages, and neither the vif nor any queue waits for that. From
// Start to Stop everything about the ring belongs to that goroutine, except what
// [Server.Status] returns. For each message it
//
//	takes the message off the ring   ctrlring.Back.Next
//	carries it out                   ctrlring.Calls.Do, hashing.go, grefs.go
//	changes the data path            steering.go, dataplane.Conn
//	records what has changed         record.go
//	publishes the response           ctrlring.Back.Flush
//
// in this order, so that a daemon killed at any instruction leaves a message that is
// carried out again or a response that is sent again.
//
// A ring whose frontend breaks its protocol goes out of use. Packets are not affected,
// and what was set before stays in force.
//
// The package knows the protocols' semantics and how the data path follows them. It
// must not know xenstore, or the states of a vif.
package ctrlserver
