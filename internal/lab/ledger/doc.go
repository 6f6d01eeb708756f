// SPDX-License-Identifier: Apache-2.0

// Package ledger knows every packet of a test that kills a back end: each has a number within
// its flow and content that follows from it. A [Source] makes the packets of a flow, [Read]
// finds the packets in a frame that arrived, and a book per flow says which of them came in
// order, twice, late or not at all.
//
// A packet carries a record from its first byte of payload to its last one. A back end may merge
// packets of a flow: then the records follow each other.
package ledger
