// SPDX-License-Identifier: Apache-2.0

// Package ctrlserver serves the control ring of one connection: it carries out the
// frontend's messages about hashing and static grants, and records the settings for a
// successor.
//
// A [Server] has its own goroutine, because a message may map five hundred pages, and
// neither the vif nor any queue should wait for that. From Start to Stop the ring belongs
// to that goroutine. Only [Server.Status] may be called from others. For each message the
// goroutine
//
//	takes the message off the ring   ctrlring.Back.Next
//	carries it out                   ctrlring.Calls.Do, hashing.go, grefs.go
//	changes the data path            steering.go, dataplane.Conn
//	records what has changed         record.go
//	publishes the response           ctrlring.Back.Flush
//
// in this order. So a daemon killed at any instruction leaves either a message that its
// successor carries out again, or a response that its successor sends again.
//
// A ring whose frontend breaks the protocol is not served any more. Packets are not
// affected, and earlier settings stay in force.
//
// The package knows the meaning of the messages and applies it to the data path. It must
// not know xenstore, or the states of a vif.
package ctrlserver
