// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/netbackd/netbackd/internal/devices"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// Other returns the status of a vif that netbackd does not serve.
func (k kind) Other(id xenbus.DeviceID, _ devices.Reason) vif.Status {
	s := vif.Status{
		Name: id.String(), Domid: id.Domid, Devid: id.Devid, ServedBy: "none",
		Features: []string{}, Mcast: []string{}, Queues: []vif.QueueStatus{},
		Counters: map[string]uint64{},
	}
	if b := k.b; b.cfg.Kernel != nil && b.cfg.Kernel.Serves(id.Vif()) {
		s.ServedBy = "kernel"
	}
	return s
}

// Silent returns s with text as its error.
func (kind) Silent(s vif.Status, text string) vif.Status {
	s.Error = text
	return s
}

// Vifs returns the number of vifs that netbackd serves.
func (b *Backend) Vifs() int { return b.set.Len() }

// Names returns the names of all vifs, also of those that netbackd does not serve.
func (b *Backend) Names() []string { return b.set.Names() }

// List returns the status of all vifs, ordered by domain and number.
func (b *Backend) List() []vif.Status { return b.set.List() }

// Lines returns the lines of all vifs, ordered by domain and number. Only vifs that are busy
// are asked.
func (b *Backend) Lines() []vif.Line {
	up, err := tap.Up()
	if err != nil {
		up = nil // each vif is asked
	}
	served := b.set.Served()
	lines := make([]*vif.Line, len(served))
	ctx, cancel := context.WithTimeout(context.Background(), devices.AnswerTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for i, v := range served {
		ask := func() { lines[i] = b.line(ctx, v.Vif, up) }
		if v.Busy() || up == nil {
			wg.Go(ask)
		} else {
			ask()
		}
	}
	wg.Wait()
	var all []vif.Line
	for _, s := range b.set.Others() {
		all = append(all, s.Line())
	}
	for _, l := range lines {
		if l != nil {
			all = append(all, *l)
		}
	}
	slices.SortFunc(all, func(a, b vif.Line) int {
		return cmp.Or(cmp.Compare(a.Domid, b.Domid), cmp.Compare(a.Devid, b.Devid))
	})
	for _, v := range served {
		v.Shown()
	}
	return all
}

// line returns the line of a vif, nil if the vif has ended.
func (b *Backend) line(ctx context.Context, v *vif.Vif, up map[int]bool) *vif.Line {
	l, ok := v.Line(ctx, up)
	if !ok && ctx.Err() == nil {
		return nil
	}
	if !ok {
		l.Error = b.set.Silence()
	}
	return &l
}

// Status returns the status of one vif, by its name or by the present name of its
// interface. If the status still has the revision after, Status waits for another revision
// until ctx ends. It returns ErrNoVif if there is no such vif.
func (b *Backend) Status(ctx context.Context, name string, after uint64) (vif.Status, error) {
	id, err := b.set.Parse(name)
	if err != nil {
		return b.statusByInterface(name)
	}
	if s, ok := b.set.Status(ctx, id, after); ok {
		return s, nil
	}
	return vif.Status{}, b.set.NoSuch(name)
}

// statusByInterface asks all vifs, since a hotplug script may rename an interface at any
// time.
func (b *Backend) statusByInterface(name string) (vif.Status, error) {
	for _, s := range b.List() {
		if name != "" && s.Interface == name {
			return s, nil
		}
	}
	return vif.Status{}, b.set.NoSuch(name)
}

// Reset ends the quarantine of a vif and makes it retry a failed connection.
func (b *Backend) Reset(name string) error { return b.set.Reset(name) }
