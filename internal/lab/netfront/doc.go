// SPDX-License-Identifier: Apache-2.0

// Package netfront is a complete frontend of Xen's para-virtual network device:
// the guest's half of a vif, as a library.
//
// It plays three parts. It is a guest's network card, when a [Pump] moves packets
// between its queues and a TAP whose other side is a real TCP stack. It is a judge
// of the backend: a [Queue] checks every response against netif.h and against what
// the frontends in the field rely on, and counts each breach as a [Violation]. And
// it is a hostile guest, when a test reaches for [Queue.Raw] and for the unchecked
// writers of [Device].
//
// A [Device] is the xenbus side: it publishes rings and features, walks the states
// and answers the backend's. It belongs to one goroutine.
//
//	dev, err := netfront.Open(host, netfront.Config{Dir: "device/vif/0", Queues: 2, Features: netfront.AllFeatures()})
//	err = dev.Connect(ctx)      // waits for the backend: 2, then 4
//	for _, q := range dev.Queues() { ... }
//	err = dev.Disconnect(ctx)   // 5, 6, rings freed
//
// A [Queue] is a tx and an rx ring with their buffers. It belongs to one goroutine
// too, which may be another one.
//
//	err = q.Send(frame, netfront.Meta{})
//	err = q.Flush()
//	for {
//		ok, err := q.Recv(&p)
//		if !ok { err = q.Wait(ctx); continue }
//		use(p.Frag(0)); q.Release(&p)
//	}
//
// It runs wherever [Host] can be filled in: in the embedded Xen, and in a real
// guest over /dev/xen/gntalloc, /dev/xen/evtchn and /dev/xen/xenbus, as long as the
// guest's own netfront driver leaves the device alone.
//
// The package must not know the backend's code: what it holds the backend to comes
// from the headers and from other frontends.
package netfront
