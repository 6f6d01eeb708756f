// SPDX-License-Identifier: Apache-2.0

// Package lab sets up a whole host on this machine: an embedded Xen, netbackd,
// bridges and guests, each a process of its own so that each can be killed, in a
// private network. The demo shows it to people; the scenarios try to break it.
//
// It starts the parts and connects them to each other. The demo and the scenarios decide
// what happens then.
package lab
