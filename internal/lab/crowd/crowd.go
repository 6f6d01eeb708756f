// SPDX-License-Identifier: Apache-2.0

package crowd

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// Crowd is a number of guests on one host. It belongs to one goroutine.
type Crowd struct {
	Guests []*Guest
	lab    *lab.Lab
}

// New makes a crowd without guests.
func New(l *lab.Lab) *Crowd { return &Crowd{lab: l} }

// atOnce is the number of guests for which the toolstack and the frontends work at a time.
const atOnce = 4

// each calls f for every element of a list, for atOnce of them at a time, and returns all
// errors.
func each[T any](list []T, f func(i int, e T) error) error {
	next := make(chan int)
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for range min(atOnce, len(list)) {
		wg.Go(func() {
			for i := range next {
				errs[i] = f(i, list[i])
			}
		})
	}
	for i := range list {
		next <- i
	}
	close(next)
	wg.Wait()
	return errors.Join(errs...)
}

// Add makes n domains with a vif each. Their vifs are in InitWait, and their hotplug scripts
// are done.
func (c *Crowd) Add(ctx context.Context, n, queues int) ([]*Guest, error) {
	return c.AddDomains(ctx, n, 1, queues)
}

// AddDomains makes n domains with so many vifs each, as Add does.
func (c *Crowd) AddDomains(ctx context.Context, n, vifs, queues int) (added []*Guest, err error) {
	domains := make([][]*Guest, n)
	err = each(domains, func(i int, _ []*Guest) (err error) {
		domains[i], err = newDomain(ctx, c.lab, vifs, queues)
		return err
	})
	added = slices.Concat(domains...)
	c.Guests = append(c.Guests, added...)
	return added, err
}

// Connect lets guests connect, and waits until the backends of all are Connected.
func (c *Crowd) Connect(ctx context.Context, guests []*Guest) error {
	if err := each(guests, func(_ int, g *Guest) error { return g.offer(ctx) }); err != nil {
		return err
	}
	return each(guests, func(_ int, g *Guest) error { return g.await(ctx, xenbus.Connected) })
}

// Disconnect lets guests close their vifs as a driver does that is unloaded, and waits until
// the backends of all are Closed.
func (c *Crowd) Disconnect(ctx context.Context, guests []*Guest) error {
	for _, step := range []struct {
		show  xenbus.State
		await []xenbus.State
	}{
		{xenbus.Closing, []xenbus.State{xenbus.Closing, xenbus.Closed}},
		{xenbus.Closed, []xenbus.State{xenbus.Closed}},
	} {
		if err := each(guests, func(_ int, g *Guest) error { return g.show(ctx, step.show) }); err != nil {
			return err
		}
		if err := each(guests, func(_ int, g *Guest) error { return g.await(ctx, step.await...) }); err != nil {
			return err
		}
	}
	return nil
}

// Destroy ends all domains, as `xl destroy` does: their vifs and TAPs are removed.
func (c *Crowd) Destroy(ctx context.Context) error {
	var domids []xen.Domid
	for _, g := range c.Guests {
		if !slices.Contains(domids, g.Domid) {
			domids = append(domids, g.Domid)
		}
	}
	err := each(domids, func(_ int, domid xen.Domid) error {
		_, err := c.lab.Destroy(ctx, domid)
		return err
	})
	for _, g := range c.Guests {
		_ = g.leave() // its domain is gone, and with it what the guest had
	}
	c.Guests = nil
	return err
}
