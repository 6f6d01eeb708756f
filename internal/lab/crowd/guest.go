// SPDX-License-Identifier: Apache-2.0

package crowd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Guest is the frontend of one vif. A domain with several vifs has several of them.
type Guest struct {
	Domid  xen.Domid
	Devid  int
	Queues []Queue

	lab    *lab.Lab
	conn   *simclient.Conn
	pages  *simclient.Pages
	events *simclient.Events
}

// Queue is a queue of a guest: its rings and its event channel.
type Queue struct {
	Rings *gntalloc.Pages // tx, rx, and a page of data
	Tx    *netif.TxFront
	Rx    *netif.RxFront
	Port  evtchn.Port
}

// queuePages is the number of pages of a queue.
const queuePages = 3

// up plays a hotplug script that brings the interface up and adds it to no bridge.
func up(ctx context.Context, s *xenstore.Client, h lab.Hotplug) error {
	if !h.Online {
		return nil
	}
	l, err := netlink.LinkByName(h.Vif)
	if err == nil {
		err = netlink.LinkSetUp(l)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", h.Vif, err)
	}
	return s.Write(ctx, h.Back+"/hotplug-status", "connected")
}

// newDomain makes a domain with vifs of so many queues each, and rings for them. The vifs are
// in InitWait, and their hotplug scripts are done.
func newDomain(ctx context.Context, l *lab.Lab, vifs, queues int) (guests []*Guest, err error) {
	domid, err := l.CreateDomain(ctx, "crowd", simclient.DomainConfig{GntallocLimit: 8192})
	if err != nil {
		return nil, err
	}
	for devid := range vifs {
		g := &Guest{Domid: domid, Devid: devid, lab: l}
		guests = append(guests, g)
		if err := l.Attach(ctx, domid, lab.VifConfig{Devid: devid, Script: up}); err != nil {
			return guests, err
		}
		if err := g.open(queues); err != nil {
			return guests, errors.Join(err, g.leave())
		}
	}
	return guests, nil
}

// open opens the guest's devices and makes its rings.
func (g *Guest) open(queues int) (err error) {
	if g.conn, err = g.lab.Join(g.Domid); err != nil {
		return err
	}
	if g.pages, err = g.conn.Pages(); err != nil {
		return err
	}
	if g.events, err = g.conn.Events(); err != nil {
		return err
	}
	for range queues {
		var q Queue
		if q.Rings, err = g.pages.Alloc(xen.Dom0, queuePages, true); err != nil {
			return err
		}
		mem := q.Rings.Bytes()
		if q.Tx, err = netif.InitTx(mem[:netif.PageSize]); err != nil {
			return err
		}
		if q.Rx, err = netif.InitRx(mem[netif.PageSize : 2*netif.PageSize]); err != nil {
			return err
		}
		if q.Port, err = g.events.BindUnbound(xen.Dom0); err != nil {
			return err
		}
		g.Queues = append(g.Queues, q)
	}
	return nil
}

// leave frees what open has made.
func (g *Guest) leave() error {
	var errs []error
	for _, q := range g.Queues {
		errs = append(errs, q.Rings.Free())
	}
	if g.events != nil {
		errs = append(errs, g.events.Close())
	}
	if g.pages != nil {
		errs = append(errs, g.pages.Close())
	}
	if g.conn != nil {
		errs = append(errs, io.Closer(g.conn).Close())
	}
	return errors.Join(errs...)
}

// VifName returns the name of the guest's vif.
func (g *Guest) VifName() string { return xenbus.VifID{Domid: g.Domid, Devid: g.Devid}.String() }

// keys returns the nodes of the frontend.
func (g *Guest) keys() map[string]string {
	k := map[string]string{"request-rx-copy": "1", "feature-rx-notify": "1", "feature-sg": "1"}
	if n := len(g.Queues); n > 1 {
		k["multi-queue-num-queues"] = strconv.Itoa(n)
	}
	for i, q := range g.Queues {
		prefix := ""
		if len(g.Queues) > 1 {
			prefix = fmt.Sprintf("queue-%d/", i)
		}
		k[prefix+"tx-ring-ref"] = fmt.Sprint(q.Rings.Refs()[0])
		k[prefix+"rx-ring-ref"] = fmt.Sprint(q.Rings.Refs()[1])
		k[prefix+"event-channel"] = fmt.Sprint(q.Port)
	}
	return k
}

// offer writes the keys and Connected. It does not wait for the backend.
func (g *Guest) offer(ctx context.Context) error {
	dir := g.lab.FrontPath(g.Domid, g.Devid)
	for k, v := range g.keys() {
		if err := g.lab.Store().Write(ctx, dir+"/"+k, v); err != nil {
			return err
		}
	}
	return g.show(ctx, xenbus.Connected)
}

// show writes the frontend's state.
func (g *Guest) show(ctx context.Context, s xenbus.State) error {
	return g.lab.Store().Write(ctx, g.lab.FrontPath(g.Domid, g.Devid)+"/state", s.Value())
}

// await waits until the backend is in one of the states.
func (g *Guest) await(ctx context.Context, states ...xenbus.State) error {
	return g.lab.BackState(ctx, g.Domid, g.Devid, states...)
}
