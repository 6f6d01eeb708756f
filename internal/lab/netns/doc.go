// SPDX-License-Identifier: Apache-2.0

// Package netns gives tests, the demo and its guests private networks.
//
// It knows how to start a process in network namespaces of its own ([Enter],
// [Main], [Start]), how to run a function in another namespace ([Do], [NS]),
// and the few links and addresses such a network is made of ([AddBridge],
// [Attach], [AddAddr], [Up], ...). It must not know what the network is for:
// no TAP, no vif, no Xen.
//
// Nothing here cleans up, because nothing has to: a network namespace and all
// that is in it vanish with the last process, file descriptor and thread that
// refer to it. Processes started here die with their parent.
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
// and starts each test that touches the network with [Need], or [NeedTUN] where
// it opens TAP devices, which skip it, with the reason, on a machine where it
// cannot run.
package netns
