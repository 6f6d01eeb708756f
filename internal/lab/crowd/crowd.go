// SPDX-License-Identifier: Apache-2.0

package crowd

import (
	"context"
	"errors"
	"sync"

	"github.com/netbackd/netbackd/internal/lab"
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

// each calls f for every guest of a list, for atOnce of them at a time, and returns all
// errors.
func each(guests []*Guest, f func(i int, g *Guest) error) error {
	next := make(chan int)
	errs := make([]error, len(guests))
	var wg sync.WaitGroup
	for range min(atOnce, len(guests)) {
		wg.Go(func() {
			for i := range next {
				errs[i] = f(i, guests[i])
			}
		})
	}
	for i := range guests {
		next <- i
	}
	close(next)
	wg.Wait()
	return errors.Join(errs...)
}

// Add makes n domains with a vif each. Their vifs are in InitWait, and their hotplug scripts
// are done.
func (c *Crowd) Add(ctx context.Context, n, queues int) ([]*Guest, error) {
	added := make([]*Guest, n)
	err := each(added, func(i int, _ *Guest) (err error) {
		added[i], err = newGuest(ctx, c.lab, queues)
		return err
	})
	for _, g := range added {
		if g != nil {
			c.Guests = append(c.Guests, g)
		}
	}
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
	err := each(c.Guests, func(_ int, g *Guest) error {
		_, err := c.lab.Destroy(ctx, g.Domid)
		return err
	})
	for _, g := range c.Guests {
		_ = g.leave() // its domain is gone, and with it what the guest had
	}
	c.Guests = nil
	return err
}
