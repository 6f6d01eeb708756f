// SPDX-License-Identifier: Apache-2.0

package xenfront

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// ErrGone is returned while waiting for a backend that has removed itself.
var ErrGone = errors.New("xenfront: the backend is gone")

// Bus is the xenbus side of a frontend: its directory, its state, and the backend's.
// It belongs to one goroutine.
type Bus struct {
	Host
	dir       string // of the frontend
	backend   string // path of the backend's directory
	backendID xen.Domid
	watch     *xenstore.Watch // the backend's state
	state     xenbus.State    // the state that we wrote last
}

// OpenBus finds the backend of the device in dir. It writes nothing.
func OpenBus(ctx context.Context, host Host, dir string) (*Bus, error) {
	d := &Bus{Host: host, dir: dir}
	if err := d.Locate(ctx); err != nil {
		return nil, err
	}
	s, err := readState(ctx, host.Store, d.Path("state"))
	if err != nil {
		d.watch.Close()
		return nil, err
	}
	d.state = s
	return d, nil
}

// Locate reads the backend's path and domain, which change when the domain migrates, and
// watches the backend's state.
func (d *Bus) Locate(ctx context.Context) error {
	path, err := d.Store.Read(ctx, d.Path("backend"))
	if err != nil {
		return fmt.Errorf("xenfront: find the backend of %s: %w", d.dir, err)
	}
	id, err := d.Store.Read(ctx, d.Path("backend-id"))
	if err != nil {
		return fmt.Errorf("xenfront: find the backend of %s: %w", d.dir, err)
	}
	n, err := strconv.ParseUint(id, 10, 16)
	if err != nil {
		return fmt.Errorf("xenfront: backend-id of %s: %w", d.dir, err)
	}
	d.backendID = xen.Domid(n)
	if d.watch != nil && d.backend == path {
		return nil
	}
	w, err := d.Store.Watch(ctx, path+"/state")
	if err != nil {
		return fmt.Errorf("xenfront: watch the backend: %w", err)
	}
	old := d.watch
	d.watch, d.backend = w, path
	if old != nil {
		old.Close()
	}
	return nil
}

// Path returns the path of a node of the frontend's directory.
func (d *Bus) Path(key string) string { return d.dir + "/" + key }

// Backend returns the path of the backend's directory.
func (d *Bus) Backend() string { return d.backend }

// BackendID returns the domain that the backend runs in.
func (d *Bus) BackendID() xen.Domid { return d.backendID }

// State returns the state that the device wrote last.
func (d *Bus) State() xenbus.State { return d.state }

// Key reads a node of the frontend's directory. It is "" if there is none.
func (d *Bus) Key(ctx context.Context, key string) (string, error) {
	return readOr(ctx, d.Store, d.Path(key), "")
}

// BackendKey reads a node of the backend's directory. It is "" if there is none.
func (d *Bus) BackendKey(ctx context.Context, key string) (string, error) {
	return readOr(ctx, d.Store, d.backend+"/"+key, "")
}

// WriteKey writes any value to a node of the frontend's directory.
func (d *Bus) WriteKey(ctx context.Context, key, value string) error {
	return d.Store.Write(ctx, d.Path(key), value)
}

// RemoveKey removes a node of the frontend's directory.
func (d *Bus) RemoveKey(ctx context.Context, key string) error {
	return d.Store.Remove(ctx, d.Path(key))
}

// CloseBus ends the watch of the backend.
func (d *Bus) CloseBus() { d.watch.Close() }

// SetState writes any state, regardless of the last one, and does not wait.
func (d *Bus) SetState(ctx context.Context, s xenbus.State) error {
	d.state = s
	return d.WriteKey(ctx, "state", s.Value())
}

// Grant makes pages and grants the backend access to them, beside those of its
// queues.
func (d *Bus) Grant(n int, writable bool) (*gntalloc.Pages, error) {
	return d.Pages.Alloc(d.backendID, n, writable)
}

// FreedGref returns a grant reference that was valid and has been freed.
func (d *Bus) FreedGref() (xen.Gref, error) {
	p, err := d.Grant(1, true)
	if err != nil {
		return 0, err
	}
	ref := p.Refs()[0]
	return ref, p.Free()
}

// BackendState reads the backend's state.
func (d *Bus) BackendState(ctx context.Context) (xenbus.State, error) {
	return readState(ctx, d.Store, d.backend+"/state")
}

// Changes returns a channel of events: the backend's state may have changed, and
// BackendState reads it. The channel is closed with the connection to xenstore, and
// replaced when a Connect finds another backend.
func (d *Bus) Changes() <-chan xenstore.Event { return d.watch.C() }

// WaitBackend waits until the backend is in one of the states and returns it. It
// fails with ErrGone if the backend's node is missing, unless StateUnknown is
// among them.
func (d *Bus) WaitBackend(ctx context.Context, states ...xenbus.State) (xenbus.State, error) {
	for {
		got, err := d.BackendState(ctx)
		if err != nil {
			return got, err
		}
		for _, s := range states {
			if s == got {
				return got, nil
			}
		}
		if got == xenbus.Unknown {
			return got, fmt.Errorf("%w: %s", ErrGone, d.backend)
		}
		select {
		case <-ctx.Done():
			return got, fmt.Errorf("xenfront: backend %s is %v, awaited %v: %w", d.backend, got, states, ctx.Err())
		case _, ok := <-d.watch.C():
			if !ok {
				return got, fmt.Errorf("xenfront: wait for the backend: %w", xenstore.ErrClosed)
			}
		}
	}
}

// SwitchState writes our state, unless the toolstack has removed the device meanwhile: a
// write would create its directory again.
func (d *Bus) SwitchState(ctx context.Context, s xenbus.State) error {
	err := d.Store.Transaction(ctx, func(tx *xenstore.Tx) error {
		if _, err := tx.Read(ctx, d.Path("state")); err != nil {
			return err
		}
		return tx.Write(ctx, d.Path("state"), s.Value())
	})
	if err != nil {
		return fmt.Errorf("xenfront: go to %v: %w", s, err)
	}
	d.state = s
	return nil
}

// readState treats a node without read permission as missing: when a device is removed,
// its parents' permissions decide the error, and they deny access.
func readState(ctx context.Context, s Store, path string) (xenbus.State, error) {
	v, err := readOr(ctx, s, path, "0")
	if errors.Is(err, xenstore.ErrPermission) {
		return xenbus.Unknown, nil
	}
	if err != nil {
		return xenbus.Unknown, fmt.Errorf("xenfront: read state: %w", err)
	}
	state, err := xenbus.ParseState(strings.TrimSpace(v))
	if err != nil {
		return xenbus.Unknown, fmt.Errorf("xenfront: %s: %w", path, err)
	}
	return state, nil
}

// readOr is like Read with a default value for a missing node.
func readOr(ctx context.Context, s Store, path, missing string) (string, error) {
	v, err := s.Read(ctx, path)
	if errors.Is(err, xenstore.ErrNotExist) {
		return missing, nil
	}
	return v, err
}
