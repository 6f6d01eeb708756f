// SPDX-License-Identifier: Apache-2.0

package fronttest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"

	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Options are the settings of a backend. The zero value is the simplest one.
type Options struct {
	// Offers are nodes of its directory that replace or extend the usual ones.
	Offers map[string]string
	// Refuse makes it go to Closed where it should connect.
	Refuse bool
	// Tap receives the packets. It has at most as many queues as the backend
	// offers. Without a Tap the packets are sent back to the guest.
	Tap *tap.Device
}

// Backend is a running backend of one vif.
type Backend struct {
	x     *Xen
	domid xen.Domid
	o     Options
	end   func()

	mu     sync.Mutex
	states []xenbus.State // guarded by mu
	mcast  []string       // extras of multicast control seen; guarded by mu
}

// Start starts a backend for a guest's vif, until the test ends or Stop.
func (x *Xen) Start(domid xen.Domid, o Options) *Backend {
	x.t.Helper()
	b := &Backend{x: x, domid: domid, o: o}
	queues := 1
	if o.Tap != nil {
		queues = o.Tap.Queues()
	}
	x.Write(x.BackDir(domid), "feature-rx-copy", "1", "feature-sg", "1", "feature-no-csum-offload", "1",
		"feature-split-event-channels", "1", "multi-queue-max-queues", strconv.Itoa(queues))
	for k, v := range o.Offers {
		x.Write(x.BackDir(domid), k, v)
	}
	front, err := x.Store.Watch(context.Background(), x.FrontDir(domid)+"/state")
	if err != nil {
		x.t.Fatal(err)
	}
	mine, err := x.Store.Watch(context.Background(), x.BackDir(domid)+"/state")
	if err != nil {
		x.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	b.set(xenbus.InitWait)
	go func() {
		defer close(done)
		if err := b.run(ctx, front, mine); err != nil {
			x.t.Errorf("backend of domain %d: %v", domid, err)
		}
	}()
	b.end = sync.OnceFunc(func() {
		cancel()
		<-done
		front.Close()
		mine.Close()
	})
	x.t.Cleanup(b.end)
	return b
}

// Stop ends the backend at once.
func (b *Backend) Stop() { b.end() }

// States returns the states that the backend has gone through.
func (b *Backend) States() []xenbus.State {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.states)
}

// Mcast returns the edits of the multicast list that were asked for, as "add" or
// "del" and the address.
func (b *Backend) Mcast() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.mcast)
}

func (b *Backend) set(state xenbus.State) {
	b.mu.Lock()
	b.states = append(b.states, state)
	b.mu.Unlock()
	if err := b.x.Store.Write(context.Background(), b.x.BackDir(b.domid)+"/state", state.Value()); err != nil {
		b.x.t.Error(err)
	}
}

// run follows the states of the frontend, and its own state when the toolstack writes it.
// It reads a state from the node and never infers it from an event.
func (b *Backend) run(ctx context.Context, front, mine *xenstore.Watch) error {
	state := xenbus.InitWait
	var stop func() error
	disconnect := func() error {
		if stop == nil {
			return nil
		}
		f := stop
		stop = nil
		return f()
	}
	to := func(states ...xenbus.State) {
		for _, s := range states {
			b.set(s)
			state = s
		}
	}
	for {
		select {
		case <-ctx.Done():
			return disconnect()
		case <-front.C():
		case <-mine.C():
		}
		f, err := b.readState(b.x.FrontDir(b.domid))
		if err != nil {
			return errors.Join(err, disconnect())
		}
		own, err := b.readState(b.x.BackDir(b.domid))
		if err != nil {
			return errors.Join(err, disconnect())
		}
		if own == xenbus.Closing && state == xenbus.Connected && f == xenbus.Connected {
			continue // the toolstack detaches: the frontend closes first
		}
		switch f {
		case xenbus.Initialising:
			switch state {
			case xenbus.Connected:
				err = disconnect()
				to(xenbus.Closing, xenbus.Closed, xenbus.InitWait)
			case xenbus.Closed:
				to(xenbus.InitWait)
			}
		case xenbus.Connected:
			if state != xenbus.InitWait {
				break
			}
			if b.o.Refuse {
				to(xenbus.Closing, xenbus.Closed)
				break
			}
			if stop, err = b.connect(); err == nil {
				to(xenbus.Connected)
			}
		case xenbus.Closing:
			if state == xenbus.Connected || state == xenbus.InitWait {
				err = disconnect()
				to(xenbus.Closing)
			}
		case xenbus.Closed:
			if state != xenbus.Closed {
				err = disconnect()
				to(xenbus.Closed)
			}
		}
		if err != nil {
			return errors.Join(err, disconnect())
		}
	}
}

func (b *Backend) readState(dir string) (xenbus.State, error) {
	v, err := b.x.Store.Read(context.Background(), dir+"/state")
	if err != nil {
		return xenbus.Unknown, err
	}
	return xenbus.ParseState(v)
}

// connect serves the queues that the frontend has published.
func (b *Backend) connect() (stop func() error, err error) {
	dir := b.x.FrontDir(b.domid)
	n := uint64(1)
	if ok, err := b.x.Store.Exists(context.Background(), dir+"/multi-queue-num-queues"); err != nil {
		return nil, err
	} else if ok {
		if n, err = b.x.Store.ReadUint(context.Background(), dir+"/multi-queue-num-queues", 8); err != nil {
			return nil, err
		}
	}
	var queues []*queue
	stop = func() error {
		var errs []error
		for _, q := range queues {
			errs = append(errs, q.stop())
		}
		return errors.Join(errs...)
	}
	for i := range int(n) {
		at := dir
		if n > 1 {
			at = fmt.Sprintf("%s/queue-%d", dir, i)
		}
		q, err := b.open(at, i)
		if err != nil {
			return nil, errors.Join(err, stop())
		}
		queues = append(queues, q)
	}
	return stop, nil
}

// open maps a queue's rings, binds its event channels and serves it.
func (b *Backend) open(dir string, i int) (q *queue, err error) {
	num := func(key string) (n uint32) {
		v, e := b.x.Store.ReadUint(context.Background(), dir+"/"+key, 32)
		err = errors.Join(err, e)
		return uint32(v)
	}
	q = &queue{b: b}
	refs := []xen.Gref{xen.Gref(num("tx-ring-ref")), xen.Gref(num("rx-ring-ref"))}
	split, e := b.x.Store.Exists(context.Background(), dir+"/event-channel-tx")
	err = errors.Join(err, e)
	var remote []uint32
	if split {
		remote = []uint32{num("event-channel-tx"), num("event-channel-rx")}
	} else {
		remote = []uint32{num("event-channel")}
	}
	if err != nil {
		return nil, err
	}
	if b.o.Tap != nil {
		q.tap = b.o.Tap.Queue(i)
	}
	return q, q.start(b.x.Dom0, b.domid, refs, remote)
}

// sawMcast records an extra of multicast control.
func (b *Backend) sawMcast(e netif.ExtraInfo) {
	what := "del"
	if e.Type == netif.ExtraMcastAdd {
		what = "add"
	}
	a := e.Addr()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mcast = append(b.mcast, fmt.Sprintf("%s %02x:%02x:%02x:%02x:%02x:%02x", what, a[0], a[1], a[2], a[3], a[4], a[5]))
}
