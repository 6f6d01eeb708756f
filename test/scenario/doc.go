// SPDX-License-Identifier: Apache-2.0

// Package scenario holds netbackd's scenarios on the embedded Xen: whole hosts,
// with real TAPs and the TCP stacks of real guests, in which guests and toolstacks
// behave well or badly.
//
// Each test is one situation and is named after it. It runs in a process and a
// network namespace of its own, side by side with others (see runner_test.go). The
// daemon and the guests are processes as well, built with the race detector if there
// is a C compiler. A race, a panic, a leak of the daemon or a violation of the protocol
// by it fails the test.
//
// Scenarios of vhost-user run the process netbackd vhost-user and guests with virtio devices in
// the same world; their names begin with TestVhost.
//
// A rule about a frontend's nodes in xenstore or its rings is tested by a script of
// ../cross, which a guest plays on a real Xen as well. The tests here do what a script
// cannot: they kill daemons, run several guests and real streams, and play a toolstack
// that misbehaves.
package scenario
