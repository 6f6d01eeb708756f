// SPDX-License-Identifier: Apache-2.0

// Package toolstack is a small xl for the embedded Xen: it creates and destroys
// domains and attaches and detaches their vifs and vbds the way libxl 4.17 does. It
// writes the same nodes with the same permissions in the same transactions,
// waits for the same states for as long, runs the hotplug script at the same
// moments, and leaves the same nodes behind as libxl after a failure.
//
// A backend that works with it works with xl:
//
//   - attach waits 10 s for the backend to be seen in state 2 (InitWait), then
//     runs the script "online", or "add" for a vbd, and does not wait for state 4;
//   - detach writes online=0 and state=5, waits 10 s for state 6, then runs the
//     script "offline" and removes the nodes. A backend that does not close has
//     its frontend's directory removed and gets 10 s more; then its nodes go
//     without the script, and detach fails;
//   - destroy removes the frontend's directory at once, waits 10 s for each
//     backend, and continues in any case.
//
// The package uses xenstore, the hypervisor's control interface and, for its own hotplug
// script, bridges. It must not depend on a backend's code, and it reads no node that a
// guest can write.
package toolstack
