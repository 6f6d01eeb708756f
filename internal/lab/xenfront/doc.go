// SPDX-License-Identifier: Apache-2.0

// Package xenfront has what the frontends of all classes of devices share: the devices of
// their domain, on an embedded or a real Xen, the xenbus side with its states, and the
// sleep of a queue that others can end. It knows no class. It must not share code with
// the backends.
package xenfront
