// SPDX-License-Identifier: Apache-2.0

// Package netfront is a complete frontend of Xen's para-virtual network device:
// the guest's half of a vif, as a library.
//
// It has three uses. It is a guest's network card, when a [Pump] moves packets between
// its queues and a TAP whose other side is a real TCP stack. It checks the backend: a
// [Queue] checks every response against netif.h and against the rules that frontends in
// the field rely on, and counts each breach as a [Violation]. And it is a hostile guest,
// when a test uses [Queue.Raw] and the unchecked writers of [Device].
//
// A [Device] is the xenbus side: it publishes rings and features, goes through the states
// and follows the backend's. It belongs to one goroutine.
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
// It needs a [Host]: the embedded Xen is one, and a real guest with /dev/xen/gntalloc,
// /dev/xen/evtchn and /dev/xen/xenbus, whose own netfront driver must not bind the
// device.
//
// The package must not share code with the backend: its rules come from the headers and
// from other frontends.
package netfront
