// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// guestWork accounts for the vif's work after writes of its guest to xenstore. A look is
// one read of the guest's nodes.
type guestWork struct {
	requests int           // requests to xenstored so far
	owed     bool          // the guest has written, and the vif has not looked since
	dueAt    time.Time     // time of the look, if owed
	foundNew bool          // this look has found a change
	idle     *rate.Limiter // limits looks that find no change
	idleTill time.Time     // no look before that time, since earlier ones found no change
}

// payForLook pays for a look at the guest's nodes, and reports whether it may happen at
// once.
func (v *Vif) payForLook() bool {
	now := time.Now()
	v.work.owed, v.work.dueAt = true, now.Add(v.cfg.Guest.Look(now, v.work.idleTill))
	return !v.work.dueAt.After(now)
}

// reconcileInTurn reconciles with the toolstack's nodes, and with the guest's nodes if a
// look is due. It reports whether the vif has ended.
func (v *Vif) reconcileInTurn(ctx context.Context) (gone bool) {
	paid := v.work.owed && !time.Now().Before(v.work.dueAt)
	if paid {
		v.work.owed, v.work.foundNew = false, false
		v.unread |= unreadFront
	}
	before := v.work.requests
	v.inTurn(ctx, func() { gone = v.reconcile(ctx) })
	if paid {
		now := time.Now()
		v.cfg.Guest.Looked(now, v.work.requests-before)
		if !v.work.foundNew {
			v.work.idleTill = now.Add(v.work.idle.ReserveN(now, 1).DelayFrom(now))
		}
	}
	return gone
}

// countingStore charges each request to the guest. It leaves the vif's turn until xenstored
// has answered, which may take long.
type countingStore struct {
	Store
	v *Vif
}

func (s countingStore) Read(ctx context.Context, path string) (value string, err error) {
	s.v.request(1, func() { value, err = s.Store.Read(ctx, path) })
	return value, err
}

func (s countingStore) Write(ctx context.Context, path, value string) (err error) {
	s.v.request(1, func() { err = s.Store.Write(ctx, path, value) })
	return err
}

func (s countingStore) Watch(ctx context.Context, path string) (w *xenstore.Watch, err error) {
	s.v.request(1, func() { w, err = s.Store.Watch(ctx, path) })
	return w, err
}

func (s countingStore) IsIntroduced(ctx context.Context, domid xen.Domid) (is bool, err error) {
	s.v.request(1, func() { is, err = s.Store.IsIntroduced(ctx, domid) })
	return is, err
}

// Transaction counts its start, its end and the requests of f.
func (s countingStore) Transaction(ctx context.Context, f func(*xenstore.Tx) error) (err error) {
	s.v.request(0, func() {
		err = s.Store.Transaction(ctx, func(tx *xenstore.Tx) error {
			defer func() { s.v.countRequests(2 + tx.Requests()) }()
			return f(tx)
		})
	})
	return err
}

// request runs f, which makes n requests.
func (v *Vif) request(n int, f func()) {
	v.countRequests(n)
	v.turn.Aside(f)
}

func (v *Vif) countRequests(n int) {
	v.work.requests += n
	v.cfg.Guest.Requested(n)
}

// unread is a set of parts of xenstore that may have changed since they were last read. An
// observation reads these parts, and always the state in the backend directory.
type unread uint32

const (
	unreadNodes  unread = 1 << iota // the backend directory, except for its state
	unreadFront                     // the frontend's state and, if its state needs them, its keys
	unreadDomain                    // the existence of the frontend's domain
	unreadAll    = unreadNodes | unreadFront | unreadDomain
)

// Changed tells the vif that the node at key below the backend directory has changed;
// an empty key is the directory itself. It never blocks. It ignores nodes that only this
// package writes.
func (v *Vif) Changed(key string) {
	key, _, _ = strings.Cut(key, "/")
	switch {
	case key == "":
		v.changed.Or(uint32(unreadAll))
	case key == "state":
	case key == reconfiguredInKey, isOffered(key):
		return
	default:
		v.changed.Or(uint32(unreadNodes))
	}
	v.wake()
}
