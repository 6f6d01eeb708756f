// SPDX-License-Identifier: Apache-2.0

package hostile

import (
	"context"
	"errors"
	"fmt"

	"github.com/netbackd/netbackd/internal/lab/xenfront"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// front is a frontend. Its rings belong to the goroutine of its load.
type front struct {
	*xenfront.Bus
	events  xenfront.Events
	closing func() error // closes the devices
	queues  []queue
	buffers bool // the rx rings are kept full

	rx       *gntalloc.Pages // the page that all rx slots name
	ctrlRing *gntalloc.Pages
	ctrl     *netif.CtrlFront // nil: the backend offers none
	ctrlPort evtchn.Port

	// Loads that begin again use the pages of the first time.
	sent map[string][]packet          // by the load and its destinations
	said map[Kind][]netif.CtrlRequest // by the load
}

// queue is a queue of a frontend.
type queue struct {
	rings *gntalloc.Pages // tx, then rx
	tx    *netif.TxFront
	rx    *netif.RxFront
	port  evtchn.Port
}

// newFront makes the frontend of a vif and connects it.
func newFront(ctx context.Context, args JoinArgs, v Vif) (_ *front, err error) {
	f := &front{buffers: args.Buffers, sent: map[string][]packet{}, said: map[Kind][]netif.CtrlRequest{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.leave())
		}
	}()
	var host xenfront.Host
	if host, f.closing, err = xenfront.Open(ctx, args.Xen, v.Domid); err != nil {
		return f, err
	}
	if f.events, err = host.Events(); err != nil {
		return f, err
	}
	if f.Bus, err = xenfront.OpenBus(ctx, host, fmt.Sprintf("device/vif/%d", v.Devid)); err != nil {
		return f, err
	}
	if f.rx, err = f.Grant(1, true); err != nil {
		return f, err
	}
	for range max(args.Queues, 1) {
		if err := f.addQueue(); err != nil {
			return f, err
		}
	}
	if err := f.addControl(); err != nil {
		return f, err
	}
	return f, f.connect(ctx)
}

func (f *front) addQueue() (err error) {
	var q queue
	if q.rings, err = f.Grant(2, true); err != nil {
		return err
	}
	mem := q.rings.Bytes()
	if q.tx, err = netif.InitTx(mem[:netif.PageSize]); err != nil {
		return err
	}
	if q.rx, err = netif.InitRx(mem[netif.PageSize:]); err != nil {
		return err
	}
	if q.port, err = f.events.BindUnbound(f.BackendID()); err != nil {
		return err
	}
	f.queues = append(f.queues, q)
	return nil
}

func (f *front) addControl() (err error) {
	if f.ctrlRing, err = f.Grant(1, true); err != nil {
		return err
	}
	if f.ctrl, err = netif.InitCtrl(f.ctrlRing.Bytes()); err != nil {
		return err
	}
	f.ctrlPort, err = f.events.BindUnbound(f.BackendID())
	return err
}

// leave closes the devices, as a guest that crashes does.
func (f *front) leave() error {
	var err error
	if f.Bus != nil {
		f.CloseBus()
	}
	if f.events != nil {
		err = f.events.Close()
	}
	if f.closing != nil {
		err = errors.Join(err, f.closing())
	}
	return err
}

// connect publishes the rings and waits for the backend.
func (f *front) connect(ctx context.Context) error {
	if _, err := f.WaitBackend(ctx, xenbus.InitWait); err != nil {
		return err
	}
	if err := f.publish(ctx); err != nil {
		return err
	}
	if _, err := f.WaitBackend(ctx, xenbus.Connected); err != nil {
		return err
	}
	f.post()
	return nil
}

// publish writes the keys and Connected, in one transaction.
func (f *front) publish(ctx context.Context) error {
	return f.Store.Transaction(ctx, func(tx *xenstore.Tx) error {
		w := xenfront.NewKeyWriter(ctx, tx, f.Path("")[:len(f.Path(""))-1])
		for _, k := range []string{"request-rx-copy", "feature-rx-notify", "feature-sg", "feature-gso-tcpv4"} {
			w.Flag(k, true)
		}
		if len(f.queues) > 1 {
			w.Write("multi-queue-num-queues", uint32(len(f.queues)))
		}
		for i, q := range f.queues {
			prefix := ""
			if len(f.queues) > 1 {
				prefix = fmt.Sprintf("queue-%d/", i)
			}
			w.Write(prefix+"tx-ring-ref", uint32(q.rings.Refs()[0]))
			w.Write(prefix+"rx-ring-ref", uint32(q.rings.Refs()[1]))
			w.Write(prefix+"event-channel", uint32(q.port))
		}
		w.Write("ctrl-ring-ref", uint32(f.ctrlRing.Refs()[0]))
		w.Write("event-channel-ctrl", uint32(f.ctrlPort))
		w.Text("state", xenbus.Connected.Value())
		return w.Err()
	})
}

// post fills the rx rings, if they are to be kept full, and takes what has arrived. It
// returns the number of slots that were answered.
func (f *front) post() (taken uint64) {
	for i := range f.queues {
		if f.buffers {
			taken += f.refill(i, netif.RxRingSize)
		}
	}
	return taken
}

// refill posts rx slots of a queue until n are posted.
func (f *front) refill(i int, n uint32) (taken uint64) {
	rx := f.queues[i].rx
	if got, err := rx.Responses(); err == nil {
		rx.Take(got)
		taken = uint64(got)
	}
	posted := false
	for netif.RxRingSize-rx.Free() < n {
		rx.Put(netif.RxRequest{ID: uint16(rx.ReqProd()) % netif.RxRingSize, Gref: f.rxRef()})
		posted = true
	}
	if posted && rx.Push() {
		_ = f.events.Notify(f.queues[i].port) // a connection that is closing has no port
	}
	return taken
}

func (f *front) rxRef() xen.Gref { return f.rx.Refs()[0] }
