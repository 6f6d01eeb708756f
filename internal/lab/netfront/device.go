// SPDX-License-Identifier: Apache-2.0

package netfront

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
var ErrGone = errors.New("netfront: the backend is gone")

// Device is a vif as its frontend sees it. It belongs to one goroutine.
//
// The states it goes through are those of Linux's netfront:
//
//	             Connect                 Disconnect
//	Initialising ───────▶ Connected ──────▶ Closing ──▶ Closed
//	     ▲  (backend 2)      │ (backend 4)      (backend 5, 6)  │
//	     │                   │ Suspend                          │
//	     └───────────────────┴──────────────────────────────────┘
//	                                    Reconnect
type Device struct {
	host      Host
	cfg       Config
	backend   string // path of the backend's directory
	backendID xen.Domid
	watch     *xenstore.Watch // the backend's state
	state     xenbus.State    // the state that we wrote last
	offers    Offers
	queues    []*Queue
	ctrl      *Control
}

// Open finds the backend of a vif. It writes nothing.
func Open(ctx context.Context, host Host, cfg Config) (*Device, error) {
	d := &Device{host: host, cfg: cfg.withDefaults()}
	if err := d.locate(ctx); err != nil {
		return nil, err
	}
	s, err := readState(ctx, host.Store, d.path("state"))
	if err != nil {
		d.watch.Close()
		return nil, err
	}
	d.state = s
	return d, nil
}

// locate reads the backend's path and domain, which change when the domain migrates, and
// watches the backend's state.
func (d *Device) locate(ctx context.Context) error {
	path, err := d.host.Store.Read(ctx, d.path("backend"))
	if err != nil {
		return fmt.Errorf("netfront: find the backend of %s: %w", d.cfg.Dir, err)
	}
	id, err := d.host.Store.Read(ctx, d.path("backend-id"))
	if err != nil {
		return fmt.Errorf("netfront: find the backend of %s: %w", d.cfg.Dir, err)
	}
	n, err := strconv.ParseUint(id, 10, 16)
	if err != nil {
		return fmt.Errorf("netfront: backend-id of %s: %w", d.cfg.Dir, err)
	}
	d.backendID = xen.Domid(n)
	if d.watch != nil && d.backend == path {
		return nil
	}
	w, err := d.host.Store.Watch(ctx, path+"/state")
	if err != nil {
		return fmt.Errorf("netfront: watch the backend: %w", err)
	}
	old := d.watch
	d.watch, d.backend = w, path
	if old != nil {
		old.Close()
	}
	return nil
}

func (d *Device) path(key string) string { return d.cfg.Dir + "/" + key }

// Config returns the device's configuration with defaults filled in.
func (d *Device) Config() Config { return d.cfg }

// SetConfig changes the configuration for the next Connect. Dir stays.
func (d *Device) SetConfig(cfg Config) {
	cfg.Dir = d.cfg.Dir
	d.cfg = cfg.withDefaults()
}

// Backend returns the path of the backend's directory.
func (d *Device) Backend() string { return d.backend }

// BackendID returns the domain that the backend runs in.
func (d *Device) BackendID() xen.Domid { return d.backendID }

// State returns the state that the device wrote last.
func (d *Device) State() xenbus.State { return d.state }

// Offers returns the features that the backend had published when the device last
// connected.
func (d *Device) Offers() Offers { return d.offers }

// Queues returns the queues of a connected device. Every disconnection frees them: a
// goroutine that uses them must stop before.
func (d *Device) Queues() []*Queue { return d.queues }

// Control returns the control ring, or nil if there is none.
func (d *Device) Control() *Control { return d.ctrl }

// Key reads a node of the frontend's directory. It is "" if there is none.
func (d *Device) Key(ctx context.Context, key string) (string, error) {
	return readOr(ctx, d.host.Store, d.path(key), "")
}

// BackendKey reads a node of the backend's directory. It is "" if there is none.
func (d *Device) BackendKey(ctx context.Context, key string) (string, error) {
	return readOr(ctx, d.host.Store, d.backend+"/"+key, "")
}

// WriteKey writes any value to a node of the frontend's directory.
func (d *Device) WriteKey(ctx context.Context, key, value string) error {
	return d.host.Store.Write(ctx, d.path(key), value)
}

// RemoveKey removes a node of the frontend's directory.
func (d *Device) RemoveKey(ctx context.Context, key string) error {
	return d.host.Store.Remove(ctx, d.path(key))
}

// SetState writes any state, regardless of the last one, and does not wait.
func (d *Device) SetState(ctx context.Context, s xenbus.State) error {
	d.state = s
	return d.WriteKey(ctx, "state", s.Value())
}

// Grant makes pages and grants the backend access to them, beside those of the
// queues.
func (d *Device) Grant(n int, writable bool) (*gntalloc.Pages, error) {
	return d.host.Pages.Alloc(d.backendID, n, writable)
}

// FreedGref returns a grant reference that was valid and has been freed.
func (d *Device) FreedGref() (xen.Gref, error) {
	p, err := d.Grant(1, true)
	if err != nil {
		return 0, err
	}
	ref := p.Refs()[0]
	return ref, p.Free()
}

// BackendState reads the backend's state.
func (d *Device) BackendState(ctx context.Context) (xenbus.State, error) {
	return readState(ctx, d.host.Store, d.backend+"/state")
}

// Changes returns a channel of events: the backend's state may have changed, and
// BackendState reads it. The channel is closed with the connection to xenstore, and
// replaced when a Connect finds another backend.
func (d *Device) Changes() <-chan xenstore.Event { return d.watch.C() }

// WaitBackend waits until the backend is in one of the states and returns it. It
// fails with ErrGone if the backend's node is missing, unless StateUnknown is
// among them.
func (d *Device) WaitBackend(ctx context.Context, states ...xenbus.State) (xenbus.State, error) {
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
			return got, fmt.Errorf("netfront: backend %s is %v, awaited %v: %w", d.backend, got, states, ctx.Err())
		case _, ok := <-d.watch.C():
			if !ok {
				return got, fmt.Errorf("netfront: wait for the backend: %w", xenstore.ErrClosed)
			}
		}
	}
}

// Close frees everything at once without a message to the backend, as the end of the
// domain would.
func (d *Device) Close() error {
	d.watch.Close()
	return d.freeRings()
}

func (d *Device) freeRings() error {
	var errs []error
	for _, q := range d.queues {
		errs = append(errs, q.close())
	}
	d.queues = nil
	if d.ctrl != nil {
		errs = append(errs, d.ctrl.close())
		d.ctrl = nil
	}
	return errors.Join(errs...)
}

// switchState writes our state, unless the toolstack has removed the device meanwhile: a
// write would create its directory again.
func (d *Device) switchState(ctx context.Context, s xenbus.State) error {
	err := d.host.Store.Transaction(ctx, func(tx *xenstore.Tx) error {
		if _, err := tx.Read(ctx, d.path("state")); err != nil {
			return err
		}
		return tx.Write(ctx, d.path("state"), s.Value())
	})
	if err != nil {
		return fmt.Errorf("netfront: go to %v: %w", s, err)
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
		return xenbus.Unknown, fmt.Errorf("netfront: read state: %w", err)
	}
	state, err := xenbus.ParseState(strings.TrimSpace(v))
	if err != nil {
		return xenbus.Unknown, fmt.Errorf("netfront: %s: %w", path, err)
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
