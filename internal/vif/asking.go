// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"slices"
	"strings"

	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// askingStore is xenstore as a vif asks it: each request counts as the guest's, and the
// vif has no turn while it waits for the answer. xenstored may take long.
type askingStore struct {
	Store
	v *Vif
}

func (s askingStore) Read(path string) (value string, err error) {
	s.v.ask(1, func() { value, err = s.Store.Read(path) })
	return value, err
}

func (s askingStore) Write(path, value string) (err error) {
	s.v.ask(1, func() { err = s.Store.Write(path, value) })
	return err
}

func (s askingStore) Watch(path string) (w *xenstore.Watch, err error) {
	s.v.ask(1, func() { w, err = s.Store.Watch(path) })
	return w, err
}

func (s askingStore) IsIntroduced(domid xen.Domid) (is bool, err error) {
	s.v.ask(1, func() { is, err = s.Store.IsIntroduced(domid) })
	return is, err
}

// Transaction counts its start, its end and what f asks for.
func (s askingStore) Transaction(f func(*xenstore.Tx) error) (err error) {
	s.v.ask(0, func() {
		err = s.Store.Transaction(func(tx *xenstore.Tx) error {
			defer func() { s.v.asked(2 + tx.Requests()) }()
			return f(tx)
		})
	})
	return err
}

// ask makes n requests.
func (v *Vif) ask(n int, f func()) {
	v.asked(n)
	v.turn.Aside(f)
}

func (v *Vif) asked(n int) {
	v.requests += n
	v.cfg.Guest.Requested(n)
}

// unread is a set of what may have changed in xenstore since it was read last. What it
// does not name is not read again. The state in the backend directory always is.
type unread uint32

const (
	unreadNodes  unread = 1 << iota // the backend directory, but for its state
	unreadFront                     // the frontend's state and, where that matters, its offer
	unreadDomain                    // whether the frontend's domain is there
	unreadAll    = unreadNodes | unreadFront | unreadDomain
)

// Changed makes the vif look at xenstore again, because the node at key below the backend
// directory has changed; an empty key is the directory itself. It never blocks. What this
// package alone writes there the vif knows.
func (v *Vif) Changed(key string) {
	key, _, _ = strings.Cut(key, "/")
	switch {
	case key == "":
		v.changed.Or(uint32(unreadAll))
	case key == "state":
	case key == behindKey:
		return
	case slices.ContainsFunc(offers(0, false, 0), func(p published) bool { return p.key == key }):
		return
	default:
		v.changed.Or(uint32(unreadNodes))
	}
	v.rouse()
}
