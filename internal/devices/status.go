// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/netbackd/netbackd/pkg/xenbus"
)

// AnswerTimeout bounds the time that Status and List wait for a device. A device that waits
// for a hung xenstored does not answer, and an administrator wants the status just then.
const AnswerTimeout = 2 * time.Second

// entry is a device with its id.
type entry[D any] struct {
	id     xenbus.DeviceID
	device D
}

// snapshot returns the devices that the program serves, in order, and those that it does not
// serve.
func (s *Set[D, S]) snapshot() (served []entry[D], others map[xenbus.DeviceID]Reason) {
	s.mu.Lock()
	for id, d := range s.devices {
		served = append(served, entry[D]{id, d})
	}
	others = maps.Clone(s.others)
	s.mu.Unlock()
	slices.SortFunc(served, func(a, b entry[D]) int { return a.id.Compare(b.id) })
	return served, others
}

// Served returns the devices that the program serves, ordered by domain and number.
func (s *Set[D, S]) Served() []D {
	served, _ := s.snapshot()
	list := make([]D, len(served))
	for i, e := range served {
		list[i] = e.device
	}
	return list
}

// Others returns the status of the devices that the program does not serve.
func (s *Set[D, S]) Others() []S {
	_, others := s.snapshot()
	var list []S
	for id, why := range others {
		list = append(list, s.cfg.Kind.Other(id, why))
	}
	return list
}

// Find returns the device, if the program serves it.
func (s *Set[D, S]) Find(id xenbus.DeviceID) (d D, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok = s.devices[id]
	return d, ok
}

// Knows reports whether there is a device, which the program may not serve.
func (s *Set[D, S]) Knows(id xenbus.DeviceID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, has := s.devices[id]
	_, other := s.others[id]
	return has || other
}

// Len returns the number of devices that the program serves.
func (s *Set[D, S]) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.devices)
}

// Names returns the names of all devices, also of those that the program does not serve.
func (s *Set[D, S]) Names() []string {
	served, others := s.snapshot()
	ids := slices.Collect(maps.Keys(others))
	for _, e := range served {
		ids = append(ids, e.id)
	}
	slices.SortFunc(ids, xenbus.DeviceID.Compare)
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = id.String()
	}
	return names
}

// statusOf asks a device for its status. It returns false if the device has ended.
func (s *Set[D, S]) statusOf(ctx context.Context, d D) (S, bool) {
	ctx, cancel := context.WithTimeout(ctx, AnswerTimeout)
	defer cancel()
	got, ok := d.Status(ctx)
	if !ok && ctx.Err() == nil {
		return got, false
	}
	if !ok {
		got = s.cfg.Kind.Silent(got, s.Silence())
	}
	return got, true
}

// Silence returns the error of a device that does not answer within AnswerTimeout.
func (s *Set[D, S]) Silence() string {
	return "the " + s.cfg.One + " does not answer; is xenstored alive?"
}

// List returns the status of all devices, ordered by domain and number.
func (s *Set[D, S]) List() []S {
	served, others := s.snapshot()
	answers := make([]*S, len(served))
	var wg sync.WaitGroup
	for i, e := range served {
		wg.Go(func() {
			if got, ok := s.statusOf(context.Background(), e.device); ok {
				answers[i] = &got
			}
		})
	}
	wg.Wait()
	var all []entry[S]
	for id, why := range others {
		all = append(all, entry[S]{id, s.cfg.Kind.Other(id, why)})
	}
	for i, got := range answers {
		if got != nil {
			all = append(all, entry[S]{served[i].id, *got})
		}
	}
	slices.SortFunc(all, func(a, b entry[S]) int { return a.id.Compare(b.id) })
	list := make([]S, len(all))
	for i := range all {
		list[i] = all[i].device
	}
	return list
}

// Status returns the status of one device. If the status still has the revision after,
// Status waits for another revision until ctx ends. ok is false if there is no such device.
func (s *Set[D, S]) Status(ctx context.Context, id xenbus.DeviceID, after uint64) (got S, ok bool) {
	if d, has := s.Find(id); has {
		d.AwaitChange(ctx, after)
		if got, ok := s.statusOf(context.WithoutCancel(ctx), d); ok {
			return got, true
		}
	}
	s.mu.Lock()
	why, other := s.others[id]
	s.mu.Unlock()
	if other {
		return s.cfg.Kind.Other(id, why), true
	}
	return got, false
}

// maxNames bounds the names in an error.
const maxNames = 8

// NoSuch returns an error that is NotFound, for a name that no device has.
func (s *Set[D, S]) NoSuch(name string) error {
	names := s.Names()
	switch {
	case len(names) == 0:
		return fmt.Errorf("%s: %w: the daemon has none; does the guest's config have %s and is its backend this domain?", name, s.cfg.NotFound, s.cfg.Config)
	case len(names) > maxNames:
		names = append(names[:maxNames], "...")
	}
	return fmt.Errorf("%s: %w; there are %s", name, s.cfg.NotFound, strings.Join(names, ", "))
}

// Parse parses the name of a device of one of the Set's classes.
func (s *Set[D, S]) Parse(name string) (xenbus.DeviceID, error) {
	id, err := xenbus.ParseDeviceID(name)
	if err != nil || !slices.Contains(s.cfg.Classes, id.Class) {
		return xenbus.DeviceID{}, fmt.Errorf("%s: %w: %s have names like %s", name, s.cfg.NotFound, s.cfg.Many, s.cfg.Example)
	}
	return id, nil
}

// Reset makes a device try again after it has given up.
func (s *Set[D, S]) Reset(name string) error {
	id, err := s.Parse(name)
	if err != nil {
		return err
	}
	d, has := s.Find(id)
	if !has {
		return fmt.Errorf("%s: %w", name, s.cfg.NotFound)
	}
	ctx, cancel := context.WithTimeout(context.Background(), AnswerTimeout)
	defer cancel()
	switch {
	case d.Reset(ctx):
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s does not answer; is xenstored alive?", name)
	}
	return fmt.Errorf("%s: %w", name, s.cfg.NotFound)
}
