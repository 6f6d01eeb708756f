// SPDX-License-Identifier: Apache-2.0

// Package netns gives tests, the demo and its guests private networks.
//
// It starts a process in network namespaces of its own ([Enter], [Main], [Start]), runs a
// function in another namespace ([Do], [NS]), and makes links and addresses
// ([AddBridge], [Attach], [AddAddr], [Up], ...). It must not depend on TAPs, vifs or Xen.
//
// Nothing needs a cleanup: a network namespace and everything in it is removed with the
// last process, file descriptor and thread that refer to it. Processes started here die
// with their parent.
//
// A package whose tests want a private network writes
//
//	func TestMain(m *testing.M) { os.Exit(netns.Main(m)) }
//
// or, to check for leaked goroutines as well,
//
//	func TestMain(m *testing.M) {
//		if code, done := netns.Enter(); done {
//			os.Exit(code)
//		}
//		goleak.VerifyTestMain(m)
//	}
//
// and starts each test that uses the network with [Need], or [NeedTUN] if it opens TAP
// devices. They skip the test, with the reason, on a machine where it cannot run.
package netns
