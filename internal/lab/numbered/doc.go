// SPDX-License-Identifier: Apache-2.0

// Package numbered is the load of tests that kill netbackd: traffic of a vif in both directions
// in which every packet is known (package ledger). The guest's end is a queue of package
// netfront, which checks rings, grants and flags; the host's end is a packet socket on the vif's
// interface. Both ends are in one process, so a sender knows how far the receiver is, and nothing
// but the back end can lose a packet.
package numbered
