// SPDX-License-Identifier: Apache-2.0

// Package hostile plays guests that load their host on purpose: a process that has the
// vifs of one guest or of several, and gives them one load at a time, as strong as it can or
// at a rate.
//
// [Main] is the process. It reads commands, one JSON object per line, as package linerpc
// describes, and [Client] has a method for each:
//
//	c, err := hostile.Start(cmd)
//	err = c.Join(ctx, hostile.JoinArgs{Xen: dir, Vifs: []hostile.Vif{{Domid: 3}}, Queues: 8})
//	err = c.Begin(ctx, hostile.LoadArgs{Load: hostile.Flood, Dst: mac})
//	strength, err := c.End(ctx)
//
// A load on rings keeps them full at little cost to its own processor: it looks at them
// many times in the time that a backend takes to empty them, and counts the looks that find
// an empty one. Loads on xenstore are as fast as xenstored lets a guest be. So the process is
// at least as strong as a guest with processors of its own, and [Strength] has the figures
// that show it.
//
// The package knows rings, keys and states as a frontend does. It must not depend on the
// backend.
package hostile
