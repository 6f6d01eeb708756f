// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/loglimit"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// writeMarker writes a node that only this instance of xenstored has. After a reconnect
// its absence means that xenstored was restarted empty. The toolstack's nodes do not show
// that, because they are written again soon. A domain may always write below its data node.
func (s *Set[D, S]) writeMarker(ctx context.Context) error {
	s.marker = s.own + "/data/" + s.cfg.Program
	err := s.store.Write(ctx, s.marker, "1")
	if errors.Is(err, xenstore.ErrPermission) {
		s.marker = s.own
		return nil
	}
	return err
}

// checkMarker returns an error if xenstore has lost its contents, and with them our devices.
func (s *Set[D, S]) checkMarker(ctx context.Context) error {
	if len(s.devices) == 0 {
		return nil
	}
	exists, err := s.store.Exists(ctx, s.marker)
	if err == nil && !exists {
		err = s.errEmpty()
	}
	return err
}

// maxClasses bounds the classes of a Set.
const maxClasses = 2

// session serves until a connection to xenstore is lost, or ctx ends.
func (s *Set[D, S]) session(ctx context.Context, serving func()) error {
	if err := s.findSelf(ctx); err != nil {
		return err
	}
	if err := s.writeMarker(ctx); err != nil {
		return err
	}
	var dirs [maxClasses]<-chan xenstore.Event
	for i, class := range s.cfg.Classes {
		w, err := s.store.Watch(ctx, s.base(class))
		if err != nil {
			return err
		}
		dirs[i] = w.C()
	}
	released, err := s.watchReleases(ctx)
	if err != nil {
		return err
	}
	if err := s.scan(ctx); err != nil {
		return err
	}
	if s.sweeps == 0 {
		s.sweep()
	}
	serving()
	for {
		err := s.next(ctx, dirs, released)
		if err != nil || ctx.Err() != nil {
			return err
		}
	}
}

const (
	maxSweeps  = 10
	sweepPause = time.Second
)

// sweep removes what is left of devices that are gone. The kernel may hold files of a
// killed process for a while, and with them what is to be removed.
func (s *Set[D, S]) sweep() {
	s.sweeps++
	s.sweepAt = nil
	again := s.cfg.Kind.Sweep(func(id xenbus.DeviceID) bool { _, has := s.devices[id]; return has })
	if again && s.sweeps < maxSweeps {
		s.sweepAt = time.After(sweepPause)
	}
}

// next handles one event of a session.
func (s *Set[D, S]) next(ctx context.Context, dirs [maxClasses]<-chan xenstore.Event, released <-chan xenstore.Event) error {
	var e xenstore.Event
	var ok bool
	select {
	case <-ctx.Done():
		return nil
	case <-s.store.Done():
		return s.store.Err()
	case e, ok = <-dirs[0]:
	case e, ok = <-dirs[1]:
	case _, ok := <-released:
		if !ok {
			return s.store.Err()
		}
		return s.domainGone(ctx)
	case answer := <-s.pings:
		close(answer)
		return nil
	case <-s.sweepAt:
		s.sweep()
		return nil
	case r := <-s.requests:
		r.done <- r.do(ctx)
		return nil
	case id := <-s.ended:
		return s.replace(ctx, id)
	}
	if !ok {
		return s.store.Err()
	}
	return s.changed(ctx, e)
}

// replace removes a device that has ended, and starts those that may take its place.
func (s *Set[D, S]) replace(ctx context.Context, id xenbus.DeviceID) error {
	s.forget(id)
	// The directory may have been made again while the device ended.
	if err := s.ensure(ctx, id, ""); err != nil {
		return err
	}
	var waiting []xenbus.DeviceID
	for other, why := range s.others {
		if why == OverLimit && other.Domid == id.Domid {
			waiting = append(waiting, other)
		}
	}
	for _, other := range waiting {
		if err := s.ensure(ctx, other, ""); err != nil {
			return err
		}
	}
	return nil
}

// start starts a device.
func (s *Set[D, S]) start(ctx context.Context, id xenbus.DeviceID) {
	g := s.guests[id.Domid]
	if g == nil {
		g = &guest{budget: s.cfg.Budgets.Guest()}
		s.guests[id.Domid] = g
	}
	g.devices++
	d := s.cfg.Kind.New(Slot{
		ID:        id,
		Path:      s.path(id),
		ErrorPath: id.ErrorPath(s.self),
		Store:     s.store,
		Log:       loglimit.Wrap(s.cfg.Log, g.budget.Log, g.budget.LineCut).With(s.fields(id)...),
		Guest:     g.budget,
		Taken:     func() bool { return s.kernelServes(id) },
	})
	s.mu.Lock()
	s.devices[id] = d
	delete(s.others, id)
	s.mu.Unlock()
	s.wg.Go(func() {
		d.Run(ctx)
		select {
		case s.ended <- id:
		case <-ctx.Done():
		}
	})
}

// fields returns the fields of a device in the log.
func (s *Set[D, S]) fields(id xenbus.DeviceID) []zap.Field {
	return []zap.Field{zap.Stringer(s.cfg.One, id), zap.Uint16("domid", uint16(id.Domid))}
}

// forget removes a device that has ended from the set.
func (s *Set[D, S]) forget(id xenbus.DeviceID) {
	s.mu.Lock()
	delete(s.devices, id)
	s.mu.Unlock()
	g := s.guests[id.Domid]
	if g.devices--; g.devices == 0 {
		delete(s.guests, id.Domid)
		s.cfg.Kind.GuestGone(id.Domid)
	}
}

// full reports whether the guest has as many devices as it may have.
func (s *Set[D, S]) full(domid xen.Domid) bool {
	g := s.guests[domid]
	return g != nil && s.cfg.MaxPerGuest > 0 && g.devices >= s.cfg.MaxPerGuest
}

// Ping waits until the goroutine in Run answers. An error alone does not mean that the
// program hangs: the goroutine may wait for xenstored, for at most the client's timeout,
// while devices are served.
func (s *Set[D, S]) Ping(ctx context.Context) error {
	answer := make(chan struct{})
	select {
	case s.pings <- answer:
		<-answer
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
