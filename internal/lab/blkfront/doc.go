// SPDX-License-Identifier: Apache-2.0

// Package blkfront is a frontend of Xen's para-virtual block device: the guest's half of a
// vbd, as a library.
//
// A [Device] is the xenbus side: it publishes rings and features, goes through the states
// of Linux's blkfront, and reads what the backend says of the disk. It belongs to one
// goroutine.
//
//	dev, err := blkfront.Open(ctx, host, blkfront.Config{Queues: 2, Order: 4, Indirect: 256})
//	err = dev.Connect(ctx)      // waits for the backend: 2, then 4
//	for _, q := range dev.Queues() { ... }
//	err = dev.Disconnect(ctx)   // 5, 6, rings freed
//
// A [Queue] is a ring with its pages. It belongs to one goroutine too, which may be
// another one. It submits any operation with any segments, and takes answers in any order:
//
//	b, ok := q.TakePages(nil, 32, true)
//	id, err := q.Submit(&blkfront.Request{Op: blkif.OpRead, Sector: 8, Segs: blkfront.Whole(b)})
//	err = q.Push()
//	for {
//		a, ok, err := q.Poll()
//		if !ok { err = q.Wait(ctx); continue }
//		use(a)
//	}
//
// It checks the backend: an answer must be for a request that waits for one, once, with
// the operation of that request; no byte of a slot may have another content than the
// response and what the request had there; and a page must not be in use any more when its
// request is answered, unless grants are persistent. Each breach is a [Violation].
//
// It is a hostile guest, too, when a test uses [Queue.PutSlot], [Queue.SetReqProd],
// grefs of its own and [Config.Keys].
//
// The package must not share code with the backend but the layout of slots. It runs on any
// [xenfront.Host]: the embedded Xen, xentest, and a real guest without a block driver of its
// own for the device.
package blkfront
