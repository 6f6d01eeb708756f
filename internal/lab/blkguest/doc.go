// SPDX-License-Identifier: Apache-2.0

// Package blkguest is the agent that plays a guest with disks. It connects vbds by package
// blkfront, uses them by package diskcheck, plays the bad requests of package blkcases, and
// reports. In the embedded Xen it is a process of its own; in a real guest it is a program
// that takes the place of the guest's block driver.
//
// [Main] is the agent, which speaks package linerpc. [Client] has a method for each command;
// [Start] starts an agent:
//
//	g, err := blkguest.Start(blkguest.StartOptions{Config: blkguest.Config{Xen: dir, Domid: 3}})
//	defer g.Close()
//	info, err := g.Attach(ctx, blkguest.DiskConfig{Front: blkfront.Config{Queues: 4}})
//	res, err := g.Run(ctx, blkguest.LoadArgs{Load: diskcheck.Load{Requests: 1000, Reads: 50}})
//	err = g.Scan(ctx, "")
//
// The end of the input ends the agent without a message to the backend, as a crash of the
// guest would; the command quit disconnects the disks first.
//
// The package must not depend on the backend.
package blkguest
