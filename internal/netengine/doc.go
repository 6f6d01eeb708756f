// SPDX-License-Identifier: Apache-2.0

// Package netengine does for a vif everything that touches pages of its guest: it maps
// rings, binds event channels, opens journals, identifies connections, serves the control
// ring, and has the data plane move packets.
//
// An [Engine] gives each vif a [Link]. The vif knows xenstore, the TAP and the files of the
// run directory, and the link knows the guest's memory. A connection is made in two steps:
// [Link.Prepare] maps the rings and finds out whether they were served before; then the vif
// sets up the TAP for it; then [Link.Start] serves them.
//
// [Local] is the engine in the process of its caller.
package netengine
