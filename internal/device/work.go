// SPDX-License-Identifier: Apache-2.0

package device

import (
	"context"
	"time"

	"golang.org/x/time/rate"

	"github.com/netbackd/netbackd/internal/budget"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Work bounds and counts the work that a device does after writes of its guest to xenstore.
// A look is one read of the guest's nodes. It is also the Store of the device: it charges
// each request to the guest, and leaves the device's turn until xenstored has answered,
// which may take long.
//
// It belongs to the goroutine that owns the device.
type Work struct {
	store Store
	guest *budget.Guest
	turn  *budget.Turn // the goroutine holds it except while it waits

	requests int           // requests to xenstored so far
	owed     bool          // the guest has written, and the device has not looked since
	dueAt    time.Time     // time of the look, if owed
	foundNew bool          // this look has found a change
	idle     *rate.Limiter // limits looks that find no change
	idleTill time.Time     // no look before that time, since earlier ones found no change
}

var _ Store = (*Work)(nil)

// NewWork makes the Work of a device of a guest.
func NewWork(s Store, g *budget.Guest) *Work {
	return &Work{store: s, guest: g, turn: g.Turn(), idle: budget.Idle()}
}

// SetStore replaces the connection to xenstore.
func (w *Work) SetStore(s Store) { w.store = s }

// Turn returns the right of the goroutine to make calls that may block its thread.
func (w *Work) Turn() *budget.Turn { return w.turn }

// Owed reports whether a look at the guest's nodes is to come, and when. Until then events
// of the guest tell nothing new.
func (w *Work) Owed() (at time.Time, owed bool) { return w.dueAt, w.owed }

// Pay pays for a look at the guest's nodes, and reports whether it may happen at once.
func (w *Work) Pay() bool {
	now := time.Now()
	w.owed, w.dueAt = true, now.Add(w.guest.Look(now, w.idleTill))
	return !w.dueAt.After(now)
}

// Look runs f, which reads nodes. due is true if a look that was paid for has its time by
// now.
func (w *Work) Look(f func(due bool)) {
	due := w.owed && !time.Now().Before(w.dueAt)
	if due {
		w.owed, w.foundNew = false, false
	}
	before := w.requests
	f(due)
	if !due {
		return
	}
	now := time.Now()
	w.guest.Looked(now, w.requests-before)
	if !w.foundNew {
		w.idleTill = now.Add(w.idle.ReserveN(now, 1).DelayFrom(now))
	}
}

// FoundNew records that the present look has found a change.
func (w *Work) FoundNew() { w.foundNew = true }

// Read reads a node.
func (w *Work) Read(ctx context.Context, path string) (value string, err error) {
	w.request(1, func() { value, err = w.store.Read(ctx, path) })
	return value, err
}

// Write writes a node.
func (w *Work) Write(ctx context.Context, path, value string) (err error) {
	w.request(1, func() { err = w.store.Write(ctx, path, value) })
	return err
}

// WatchNode watches a node.
func (w *Work) WatchNode(ctx context.Context, path string) (x *xenstore.Watch, err error) {
	w.request(1, func() { x, err = w.store.WatchNode(ctx, path) })
	return x, err
}

// IsIntroduced reports whether a domain exists.
func (w *Work) IsIntroduced(ctx context.Context, domid xen.Domid) (is bool, err error) {
	w.request(1, func() { is, err = w.store.IsIntroduced(ctx, domid) })
	return is, err
}

// Transaction counts its start, its end and the requests of f.
func (w *Work) Transaction(ctx context.Context, f func(*xenstore.Tx) error) (err error) {
	w.request(0, func() {
		err = w.store.Transaction(ctx, func(tx *xenstore.Tx) error {
			defer func() { w.count(2 + tx.Requests()) }()
			return f(tx)
		})
	})
	return err
}

// request runs f, which makes n requests.
func (w *Work) request(n int, f func()) {
	w.count(n)
	w.turn.Aside(f)
}

func (w *Work) count(n int) {
	w.requests += n
	w.guest.Requested(n)
}
