// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

var errVifGone = errors.New("the vif is detached")

// maxKept bounds the violations that are described.
const maxKept = 64

// vif is a connected vif. Its goroutine, serve, owns device and card; others
// reach it through do.
type vif struct {
	cfg  VifConfig
	mac  string
	dev  *netfront.Device
	card *tap.Device
	jobs chan func()
	done chan struct{}

	// The fields below belong to serve.

	pumps    []*pump
	mcast    [][6]byte // the addresses that the backend's list should hold
	detached bool

	// Of connections that have ended.
	past       netfront.Stats
	violations []string
	broken     map[string]uint64
}

// pump is a netfront.Pump with the function that ends it.
type pump struct {
	*netfront.Pump
	stop func() error
}

// newVif makes the card and connects the vif.
func newVif(ctx context.Context, host netfront.Host, cfg VifConfig) (*vif, error) {
	cfg = cfg.withDefaults()
	dev, err := netfront.Open(ctx, host, cfg.Front)
	if err != nil {
		return nil, err
	}
	v := &vif{cfg: cfg, dev: dev, mac: cfg.MAC, jobs: make(chan func()), done: make(chan struct{}), broken: map[string]uint64{}}
	if v.mac == "" {
		if v.mac, err = dev.Key(ctx, "mac"); err != nil {
			return nil, errors.Join(err, dev.Close())
		}
	}
	if v.card, err = newCard(cfg, v.mac); err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	if err := v.connect(ctx); err != nil {
		return nil, errors.Join(err, v.close())
	}
	return v, nil
}

// connect connects the device from any state, and starts the pumps.
func (v *vif) connect(ctx context.Context) error {
	connect := v.dev.Connect
	if s := v.dev.State(); s != xenbus.Initialising && s != xenbus.Unknown {
		connect = v.dev.Reconnect
	}
	if err := connect(ctx); err != nil {
		return err
	}
	return v.start(ctx)
}

// start gives each queue of the device a queue of the card and a pump.
func (v *vif) start(ctx context.Context) error {
	queues := v.dev.Queues()
	if err := v.card.SetQueues(len(queues)); err != nil {
		return err
	}
	if !v.cfg.Plain {
		if err := v.card.SetOffload(v.dev.TapOffload()); err != nil {
			return err
		}
	}
	for i, q := range queues {
		p, err := netfront.NewPump(q, v.card.Queue(i), !v.cfg.Plain)
		if err != nil {
			return errors.Join(err, v.stop())
		}
		running, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- p.Run(running) }()
		v.pumps = append(v.pumps, &pump{p, sync.OnceValue(func() error {
			cancel()
			return <-ended
		})})
	}
	if err := errors.Join(v.card.SetCarrier(true), awaitReady(ctx, v.card.Index())); err != nil {
		return errors.Join(err, v.stop())
	}
	// The backend's list is empty after a new connection.
	want := v.mcast
	v.mcast = nil
	if v.cfg.Front.Features.MulticastControl {
		list, err := multicastList(v.cfg.Name)
		if err != nil {
			return err
		}
		want = append(want, list...)
	}
	_, err := v.editMulticast(ctx, true, want)
	return err
}

// stop ends the pumps and keeps their counters.
func (v *vif) stop() error {
	err := v.card.SetCarrier(false)
	for _, p := range v.pumps {
		err = errors.Join(err, p.stop())
	}
	for _, q := range v.dev.Queues() {
		v.keep(q)
	}
	v.pumps = nil
	return err
}

// keep adds a queue's counters to those of the past.
func (v *vif) keep(q *netfront.Queue) {
	v.past.Add(q.Stats())
	for _, b := range q.Violations() {
		if len(v.violations) < maxKept {
			v.violations = append(v.violations, b.Error())
		}
	}
	for r, n := range q.Broken() {
		v.broken[r.String()] += n
	}
}

// close ends the vif without a message to the backend.
func (v *vif) close() error {
	return errors.Join(v.stop(), v.dev.Close(), v.card.Close())
}

// serve runs jobs and follows the backend's states until ctx ends or the vif is detached.
func (v *vif) serve(ctx context.Context) {
	defer close(v.done)
	changes := v.dev.Changes()
	for {
		select {
		case <-ctx.Done():
			_ = v.close() // the process ends, which frees everything
			return
		case job := <-v.jobs:
			job()
			if v.detached {
				return
			}
		case _, ok := <-changes:
			if !ok {
				changes = nil // the connection to xenstore has ended
				continue
			}
			v.follow(ctx)
		}
		if changes != nil {
			changes = v.dev.Changes() // another one once the backend has moved
		}
	}
}

// follow reacts to the backend's state as a frontend without further commands does. A
// failure shows in the vif's state.
func (v *vif) follow(ctx context.Context) {
	b, err := v.dev.BackendState(ctx)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, defaultTimeout)
	defer cancel()
	mine := v.dev.State()
	switch {
	case mine == xenbus.Connected && (b == xenbus.Closing || b == xenbus.Closed):
		err = errors.Join(v.stop(), v.dev.FinishClosing(ctx))
		if online, _ := v.dev.BackendKey(ctx, "online"); err == nil && online == "1" && v.cfg.Reconnect {
			_ = v.connect(ctx)
		}
	}
}

// do runs f on the vif's goroutine.
func (v *vif) do(ctx context.Context, f func() error) error {
	result := make(chan error, 1)
	select {
	case v.jobs <- func() { result <- f() }:
		return <-result
	case <-v.done:
		return errVifGone
	case <-ctx.Done():
		return ctx.Err()
	}
}

// detach disconnects, removes the card and ends the vif, even if the backend does
// not follow.
func (v *vif) detach(ctx context.Context) error {
	return v.do(ctx, func() error {
		v.detached = true
		return errors.Join(v.disconnect(ctx), v.close())
	})
}

func (v *vif) disconnect(ctx context.Context) error {
	if v.dev.State() != xenbus.Connected {
		return nil
	}
	return errors.Join(v.stop(), v.dev.Disconnect(ctx))
}

// reconnect closes the device, if it is connected, and connects it again.
func (v *vif) reconnect(ctx context.Context, front *netfront.Config) error {
	if err := v.disconnect(ctx); err != nil {
		return err
	}
	v.configure(front)
	return v.connect(ctx)
}

// suspend connects the device again as after a resume: without closing it.
func (v *vif) suspend(ctx context.Context, front *netfront.Config) error {
	if err := v.stop(); err != nil {
		return err
	}
	v.configure(front)
	if err := v.dev.Suspend(ctx); err != nil {
		return err
	}
	return v.start(ctx)
}

// configure replaces the frontend's configuration.
func (v *vif) configure(front *netfront.Config) {
	if front == nil {
		return
	}
	front.Dir = v.cfg.Front.Dir
	v.cfg.Front = *front
	v.cfg = v.cfg.withDefaults()
	v.dev.SetConfig(v.cfg.Front)
}

func (v *vif) info(ctx context.Context) (VifInfo, error) {
	b, err := v.dev.BackendState(ctx)
	return VifInfo{
		Name:    v.cfg.Name,
		MAC:     v.mac,
		State:   v.dev.State(),
		Backend: b,
		Queues:  len(v.pumps),
		Split:   v.cfg.Front.SplitEvents && v.dev.Offers().SplitEvents,
		Control: v.dev.Control() != nil,
		Offers:  v.dev.Offers(),
	}, err
}

// stats collects the counters of all pumps.
func (v *vif) stats() (VifStats, error) {
	s := VifStats{Name: v.cfg.Name, Total: v.past, Violations: slices.Clone(v.violations), Broken: maps.Clone(v.broken)}
	for _, p := range v.pumps {
		err := p.Do(func(q *netfront.Queue) {
			one := QueueStats{Stats: q.Stats(), Tx: q.TxState(), Rx: q.RxState()}
			if err := q.Err(); err != nil {
				one.Error = err.Error()
			}
			s.Queues = append(s.Queues, one)
			s.Total.Add(one.Stats)
			for _, b := range q.Violations() {
				if len(s.Violations) < maxKept {
					s.Violations = append(s.Violations, b.Error())
				}
			}
			for r, n := range q.Broken() {
				s.Broken[r.String()] += n
			}
		})
		if err != nil {
			return s, fmt.Errorf("%w: %w", err, p.stop())
		}
	}
	return s, nil
}

// pump finds the pump of a queue.
func (v *vif) pump(queue int) (*pump, error) {
	if queue < 0 || queue >= len(v.pumps) {
		return nil, fmt.Errorf("%s has %d queues, and none with number %d", v.cfg.Name, len(v.pumps), queue)
	}
	return v.pumps[queue], nil
}

// setHash configures hashing, and has the queues check the backend's hashes. With a
// control ring of byte streams packets carry no hashes.
func (v *vif) setHash(ctx context.Context, h *netfront.Hash) error {
	if err := v.expectHash(nil); err != nil {
		return err
	}
	if err := v.dev.Control().SetHash(ctx, *h); err != nil || v.cfg.Front.Stream {
		return err
	}
	return v.expectHash(h)
}

// expectHash has each queue check hashes against h, or check none if h is nil.
func (v *vif) expectHash(h *netfront.Hash) (err error) {
	for _, p := range v.pumps {
		err = errors.Join(err, p.Do(func(q *netfront.Queue) { q.ExpectHash(h, len(v.pumps)) }))
	}
	return err
}

// setXDPHeadroom asks for headroom before each packet, and has the queues check it.
func (v *vif) setXDPHeadroom(ctx context.Context, n uint16) (err error) {
	for _, p := range v.pumps {
		err = errors.Join(err, p.Do(func(q *netfront.Queue) { q.ExpectXDPHeadroom(n) }))
	}
	return errors.Join(err, v.dev.SetXDPHeadroom(ctx, n))
}

// syncMulticast makes the backend's multicast list equal to the card's.
func (v *vif) syncMulticast(ctx context.Context) (McastResult, error) {
	want, err := multicastList(v.cfg.Name)
	if err != nil {
		return McastResult{}, err
	}
	return v.editMulticast(ctx, true, want)
}

// editMulticast adds addresses to the backend's list or removes them, and waits for the
// backend's answers.
func (v *vif) editMulticast(ctx context.Context, add bool, addrs [][6]byte) (McastResult, error) {
	addrs = slices.DeleteFunc(slices.Clone(addrs), func(a [6]byte) bool { return add && slices.Contains(v.mcast, a) })
	p, err := v.pump(0)
	if err != nil {
		return McastResult{}, err
	}
	var before, now netfront.Stats
	n := uint64(0)
	var full error
	if err := p.Do(func(q *netfront.Queue) {
		before = q.Stats()
		for _, a := range addrs {
			if full = q.SendMcast(add, a); full != nil {
				return
			}
			n++
			v.mcast = slices.DeleteFunc(v.mcast, func(b [6]byte) bool { return a == b })
			if add {
				v.mcast = append(v.mcast, a)
			}
		}
	}); err != nil {
		return McastResult{}, err
	}
	var r McastResult
	for {
		if err := p.Do(func(q *netfront.Queue) { now = q.Stats() }); err != nil {
			return r, err
		}
		r.Okay, r.Failed = now.McastOkay-before.McastOkay, now.McastError-before.McastError
		if r.Okay+r.Failed >= n {
			break
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return r, fmt.Errorf("the backend answered %d of %d edits of its multicast list: %w", r.Okay+r.Failed, n, ctx.Err())
		}
	}
	for _, a := range v.mcast {
		r.List = append(r.List, net.HardwareAddr(a[:]).String())
	}
	return r, full
}
