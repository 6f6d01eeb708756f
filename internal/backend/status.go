// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// ErrNoVif is returned for a vif that does not exist.
var ErrNoVif = errors.New("no such vif")

// answerTimeout bounds the time that Status and List wait for a vif. A vif that waits for a
// hung xenstored does not answer, and an administrator wants the status just then.
const answerTimeout = 2 * time.Second

// snapshot returns the vifs that netbackd serves, and the ids of those that it does not
// serve, both in order.
func (b *Backend) snapshot() (vifs []*vif.Vif, foreign []xenbus.VifID) {
	b.mu.Lock()
	vifs = slices.Collect(maps.Values(b.vifs))
	foreign = slices.Collect(maps.Keys(b.foreign))
	b.mu.Unlock()
	slices.SortFunc(vifs, func(v, w *vif.Vif) int { return v.ID().Compare(w.ID()) })
	slices.SortFunc(foreign, xenbus.VifID.Compare)
	return vifs, foreign
}

// find returns the vif, or nil if netbackd does not serve it.
func (b *Backend) find(k xenbus.VifID) *vif.Vif {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.vifs[k]
}

// Vifs returns the number of vifs that netbackd serves.
func (b *Backend) Vifs() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.vifs)
}

// Names returns the names of all vifs, also of those that netbackd does not serve.
func (b *Backend) Names() []string {
	vifs, foreign := b.snapshot()
	keys := foreign
	for _, v := range vifs {
		keys = append(keys, v.ID())
	}
	slices.SortFunc(keys, xenbus.VifID.Compare)
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = k.String()
	}
	return names
}

// statusOf asks a vif for its status. It returns false if the vif has ended.
func statusOf(ctx context.Context, v *vif.Vif) (vif.Status, bool) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	s, ok := v.Status(ctx)
	if !ok && ctx.Err() == nil {
		return s, false
	}
	if !ok {
		s.Error = "the vif does not answer; is xenstored alive?"
	}
	return s, true
}

// List returns the status of all vifs, ordered by domain and number.
func (b *Backend) List() []vif.Status {
	vifs, foreign := b.snapshot()
	answers := make([]*vif.Status, len(vifs))
	var wg sync.WaitGroup
	for i, v := range vifs {
		wg.Go(func() {
			if s, ok := statusOf(context.Background(), v); ok {
				answers[i] = &s
			}
		})
	}
	wg.Wait()
	list := []vif.Status{}
	for _, k := range foreign {
		list = append(list, b.foreignStatus(k))
	}
	for _, s := range answers {
		if s != nil {
			list = append(list, *s)
		}
	}
	slices.SortFunc(list, func(a, b vif.Status) int {
		return a.ID().Compare(b.ID())
	})
	return list
}

// Status returns the status of one vif, by its name or by the present name of its
// interface. If the status still has the revision after, Status waits for another revision
// until ctx ends. It returns ErrNoVif if there is no such vif.
func (b *Backend) Status(ctx context.Context, name string, after uint64) (vif.Status, error) {
	k, err := parseName(name)
	if err != nil {
		return b.statusByInterface(name)
	}
	if v := b.find(k); v != nil {
		v.AwaitChange(ctx, after)
		if s, ok := statusOf(context.WithoutCancel(ctx), v); ok {
			return s, nil
		}
	}
	b.mu.Lock()
	_, foreign := b.foreign[k]
	b.mu.Unlock()
	if foreign {
		return b.foreignStatus(k), nil
	}
	return vif.Status{}, b.noVif(name)
}

// statusByInterface asks all vifs, since a hotplug script may rename an interface at any
// time.
func (b *Backend) statusByInterface(name string) (vif.Status, error) {
	for _, s := range b.List() {
		if name != "" && s.Interface == name {
			return s, nil
		}
	}
	return vif.Status{}, b.noVif(name)
}

// maxNames bounds the names in an error.
const maxNames = 8

// noVif returns an error for a name that no vif has.
func (b *Backend) noVif(name string) error {
	names := b.Names()
	switch {
	case len(names) == 0:
		return fmt.Errorf("%s: %w: the daemon has none; does the guest's config have vif=[...] and is its backend this domain?", name, ErrNoVif)
	case len(names) > maxNames:
		names = append(names[:maxNames], "...")
	}
	return fmt.Errorf("%s: %w; there are %s", name, ErrNoVif, strings.Join(names, ", "))
}

// parseName parses the name of a vif.
func parseName(name string) (xenbus.VifID, error) {
	k, err := xenbus.ParseVifID(name)
	if err != nil {
		return k, fmt.Errorf("%s: %w: vifs have names like vif1.0", name, ErrNoVif)
	}
	return k, nil
}

// Reset ends the quarantine of a vif and makes it retry a failed connection.
func (b *Backend) Reset(name string) error {
	k, err := parseName(name)
	if err != nil {
		return err
	}
	v := b.find(k)
	if v == nil {
		return fmt.Errorf("%s: %w", name, ErrNoVif)
	}
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
	defer cancel()
	switch {
	case v.Reset(ctx):
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s does not answer; is xenstored alive?", name)
	}
	return fmt.Errorf("%s: %w", name, ErrNoVif)
}
