// SPDX-License-Identifier: Apache-2.0

// Package foreign runs the front ends and back ends of vhost-user that others wrote: DPDK's
// testpmd, QEMU with a guest of Debian's kernel, and passt. test/vhost/build fetches them.
//
// Programs starts them. A Guest is QEMU with a guest, which an agent (package vmagent)
// obeys. A Recorder stands between a front end and a back end and keeps their messages.
// Frames sends frames of a pattern through an interface and checks those that return.
//
// The package must not depend on the data path, and knows netbackd as a program only.
package foreign
