// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// TestDetach: the toolstack detaches the vif in various states of the guest.
func TestDetach(t *testing.T) {
	const gone = "disconnect closed unregister"
	for _, tt := range []struct {
		name   string
		before func(w *world) // the detach
		after  func(w *world) // and before the vif looks
		want   string
	}{
		{"frontend not there yet", nil, nil, "closed unregister"},
		{"frontend closed before", func(w *world) { w.frontState(xenbus.Closed) }, nil, "unregister"},
		{"frontend follows at once", nil, func(w *world) { w.frontState(xenbus.Closed) }, "closed unregister"},
		{"frontend directory removed", nil, func(w *world) { w.must(w.tool.Remove(t.Context(), frontDir)) }, "closed unregister"},
		{"frontend hides its state", nil, func(w *world) {
			// The back end is in a driver domain, which is not privileged.
			w.xs.Client = w.connectAs(9)
			w.must(w.guest.SetPermissions(t.Context(), frontDir+"/state", []xenstore.Perm{{Domid: domid, Access: xenstore.AccessNone}}))
		}, "closed unregister"},
		{"frontend writes no state", nil, func(w *world) { w.must(w.guest.Write(t.Context(), frontDir+"/state", "banana")) }, "closed unregister"},
		{"frontend in a state that is none of its own", nil, func(w *world) { w.frontState(xenbus.InitWait) }, "closed unregister"},
		{"domain gone", nil, func(w *world) { w.srv.DomainDied(domid) }, "closed unregister"},
		{"connected, frontend follows", connected, func(w *world) { w.frontState(xenbus.Closed) }, gone},
		{"connected, frontend directory removed", connected, func(w *world) { w.must(w.tool.Remove(t.Context(), frontDir)) }, gone},
		{"connected, frontend writes no state", connected, func(w *world) { w.must(w.guest.Write(t.Context(), frontDir+"/state", "banana")) }, gone},
		{"connected, domain gone", connected, func(w *world) { w.srv.DomainDied(domid) }, gone},
		{"connected, frontend starts anew", connected, func(w *world) { w.frontState(xenbus.Initialising) }, gone},
		{"waiting for hotplug", func(w *world) { w.rings(1, false); w.frontState(xenbus.Connected); w.settle() },
			func(w *world) { w.frontState(xenbus.Closed) }, gone},
		{"quarantined", func(w *world) { connected(w); w.breach() }, func(w *world) { w.frontState(xenbus.Closed) }, "closed unregister"},
		{"refused", func(w *world) { w.rings(1, false, "event-channel", "-"); w.frontState(xenbus.Connected); w.settle() }, nil, "unregister"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.attach()
			w.wantSteps("publish init-wait")
			if tt.before != nil {
				tt.before(w)
			}
			w.settle()
			w.detach()
			if tt.after != nil {
				tt.after(w)
			}
			w.wantSteps(tt.want)
			w.wantState("6")
			w.wantHeld(nothing)
			w.wantTap(0)
			if got := w.journals(); got != "" {
				t.Errorf("journals left: %s", got)
			}
			// From now on the guest has no influence.
			w.must(w.tool.Write(t.Context(), frontDir+"/state", "1"))
			w.wantSteps("unregister")
			w.wantState("6")
			w.wantTap(0)
			// Then the toolstack removes everything.
			w.must(w.tool.Remove(t.Context(), backDir))
			w.wantSteps("gone")
			w.wantState("-")
			w.wantError("-")
		})
	}
}

func connected(w *world) {
	w.plugIn()
	w.rings(2, false)
	w.frontState(xenbus.Connected)
	w.wantSteps("connect plug connected")
}

// connectAs connects the vif as the domain of an unprivileged back end, which may write to
// the same nodes as a back end in domain 0.
func (w *world) connectAs(id xen.Domid) *xenstore.Client {
	w.t.Helper()
	w.srv.DomainCreated(id)
	w.must(w.tool.Introduce(w.t.Context(), id, 1, 1))
	for _, dir := range []string{"/local/domain/0/backend", "/local/domain/0/error"} {
		w.must(w.tool.Mkdir(w.t.Context(), dir))
		w.allow(dir, id, domid)
	}
	w.allow(frontDir, domid, id)
	return w.connect(id)
}

// allow makes one domain the owner of a node and of everything below, and lets another
// domain read it.
func (w *world) allow(path string, owner, reader xen.Domid) {
	w.t.Helper()
	w.must(w.tool.SetPermissions(w.t.Context(), path, []xenstore.Perm{{Domid: owner, Access: xenstore.AccessNone}, {Domid: reader, Access: xenstore.AccessRead}}))
	names, err := w.tool.List(w.t.Context(), path)
	w.must(err)
	for _, n := range names {
		w.allow(path+"/"+n, owner, reader)
	}
}

// TestDetachFollowsTheFrontend: a guest that closes properly is followed.
func TestDetachFollowsTheFrontend(t *testing.T) {
	w := newWorld(t)
	w.up(2)
	w.detach()
	w.wantSteps("grace")
	w.wantHeld("4 pages, 2 handles, 2 ports") // packets still pass
	if got := w.status().Waits; got != "the guest to close" {
		t.Errorf("waits for %q", got)
	}
	w.frontState(xenbus.Closing)
	w.wantSteps("disconnect closing grace")
	w.wantState("5")
	w.wantHeld(nothing)
	w.frontState(xenbus.Closed)
	w.wantSteps("closed unregister")
	w.wantState("6")
	if got := w.status().Waits; got != "the toolstack to remove it" {
		t.Errorf("waits for %q", got)
	}
}

// TestDetachInTime: a guest that does not close is closed. libxl waits 10 s; the vif
// takes less than one.
func TestDetachInTime(t *testing.T) {
	if DefaultGrace >= time.Second {
		t.Errorf("grace is %v", DefaultGrace)
	}
	for _, front := range []xenbus.State{xenbus.Connected, xenbus.Closing, xenbus.Reconfiguring} {
		t.Run(front.String(), func(t *testing.T) {
			w := newWorld(t)
			w.cfg.Grace = 50 * time.Millisecond
			w.v = New(w.cfg)
			w.up(1)
			w.frontState(front)
			w.detach()
			began := time.Now()
			w.settle()
			if at := w.v.alarm.At(); at.IsZero() || at.Sub(w.v.detachAt) > 10*time.Millisecond {
				t.Fatalf("the alarm is set for %v, the grace ends at %v", at, w.v.detachAt)
			}
			for w.get(backDir+"/state") != "6" { // as Run would
				<-w.v.alarm.C()
				w.v.alarm.Rang()
				w.settle()
			}
			if took := time.Since(began); took > w.cfg.Grace+slack {
				t.Errorf("took %v", took)
			}
			w.wantState("6")
			w.wantTap(0)
		})
	}
}

// TestDetachRevoked: the toolstack may take a detach back.
func TestDetachRevoked(t *testing.T) {
	w := newWorld(t)
	w.up(1)
	w.detach()
	w.wantSteps("grace")
	w.must(w.tool.Write(t.Context(), backDir+"/online", "1"))
	w.wantSteps("")
	if w.v.situation().detach != detachNone {
		t.Error("still detaching")
	}
}

// TestDetachIsNotOverwritten: the toolstack writes Closing while the vif is on its way
// to another state.
func TestDetachIsNotOverwritten(t *testing.T) {
	w := newWorld(t)
	w.attach("hotplug-status", "connected")
	w.wantSteps("publish init-wait")
	w.rings(1, false)
	w.frontState(xenbus.Connected)
	once := true
	w.host.Intercept(func(c xentest.Call) error {
		if c.Op == xentest.OpMap && once { // between the look and the state
			once = false
			w.detach()
		}
		return nil
	})
	w.wantSteps("connect plug connected grace")
	w.wantState("5")
	w.frontState(xenbus.Closed)
	w.wantSteps("disconnect closed unregister")
	w.wantState("6")
}

// TestDirectoryRemoved: a write of the vif never brings a removed directory back.
func TestDirectoryRemoved(t *testing.T) {
	remove := func(w *world) {
		w.must(w.tool.Transaction(t.Context(), func(tx *xenstore.Tx) error {
			return errors.Join(tx.Remove(t.Context(), backDir), tx.Remove(t.Context(), frontDir))
		}))
	}
	check := func(t *testing.T, w *world) {
		t.Helper()
		w.settle()
		w.wantState("-")
		if there, err := w.tool.Exists(t.Context(), backDir); there || err != nil {
			t.Errorf("the directory is back: %v", err)
		}
		w.wantTap(0)
		w.wantHeld(nothing)
		w.wantError("-")
		if got := w.journals(); got != "" {
			t.Errorf("journals left: %s", got)
		}
	}
	t.Run("while nothing happens", func(t *testing.T) {
		w := newWorld(t)
		w.up(2)
		remove(w)
		w.wantSteps("gone")
		check(t, w)
	})
	t.Run("before the first look", func(t *testing.T) {
		w := newWorld(t)
		w.wantSteps("gone")
		check(t, w)
	})
	t.Run("after an error", func(t *testing.T) {
		w := newWorld(t)
		w.attach("mac", "none")
		w.wantSteps("publish closed")
		w.wantError(`22 key "mac" is "none", want an address such as 00:16:3e:01:02:03`)
		remove(w)
		w.wantSteps("gone")
		check(t, w)
	})
	// The directory is removed just before each transaction.
	for n := 1; ; n++ {
		w := newWorld(t)
		count := 0
		cut := hookTx(w, func() {
			if count++; count == n {
				remove(w)
			}
		})
		w.attach("hotplug-status", "connected")
		w.rings(1, false)
		w.frontState(xenbus.Connected)
		got := w.settle()
		cut()
		if count < n {
			if n < 4 {
				t.Errorf("only %d transactions", count)
			}
			break
		}
		t.Logf("transaction %d: %s", n, got)
		check(t, w)
	}
}

// hookTx calls f before each transaction of the vif, until the function that it returns
// is called.
func hookTx(w *world, f func()) (cut func()) {
	old := w.v.cfg.Store
	w.v.cfg.Store = &txHook{Store: old, f: f}
	return func() { w.v.cfg.Store = old }
}

type txHook struct {
	Store
	f func()
}

func (s *txHook) Transaction(ctx context.Context, f func(*xenstore.Tx) error) error {
	s.f()
	return s.Store.Transaction(ctx, f)
}

// TestMadeAgain: the toolstack has removed the device and made it again between two
// looks of the vif.
func TestMadeAgain(t *testing.T) {
	for name, before := range map[string]func(w *world){
		"never connected":        func(w *world) { w.attach(); w.settle() },
		"connected":              func(w *world) { w.up(2) },
		"on its way out":         func(w *world) { w.up(1); w.detach(); w.settle() },
		"closed":                 func(w *world) { w.up(1); w.detach(); w.frontState(xenbus.Closed); w.settle() },
		"quarantined":            func(w *world) { w.up(1); w.breach() },
		"could not be published": func(w *world) { w.attach("mtu", "1"); w.settle() },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			before(w)
			old := 0
			if l := w.iface(ifname); l != nil {
				old = l.Index
			}
			w.must(w.tool.Remove(t.Context(), backDir))
			w.must(w.tool.Remove(t.Context(), frontDir))
			w.attach()
			w.wantSteps("publish init-wait")
			w.wantState("2")
			if l := w.iface(ifname); l == nil || l.Index == old {
				t.Errorf("interface %+v is the old one", l)
			}
			connected(w)
			w.wantState("4")
			w.wantError("-")
		})
	}
}

// TestFrontendRemoved: libxl removes the frontend if the vif does not close in time,
// and when a domain ends.
func TestFrontendRemoved(t *testing.T) {
	w := newWorld(t)
	w.up(2)
	w.must(w.tool.Remove(t.Context(), frontDir))
	w.wantSteps("disconnect closing closed unregister")
	w.wantState("6")
	w.wantHeld(nothing)
	w.wantTap(0)
	w.must(w.tool.Remove(t.Context(), backDir))
	w.wantSteps("gone")
}

// TestDomainGone: the nodes of a domain that is gone still show Connected.
func TestDomainGone(t *testing.T) {
	w := newWorld(t)
	w.up(2)
	w.xs.alive = func() (bool, error) { return false, nil }
	w.wantSteps("disconnect closing closed unregister")
	w.wantState("6")
	w.wantHeld(nothing)
	w.wantTap(0)
}

// TestDriverDomain: an unprivileged back end may not ask whether a domain exists, and
// has few watches.
func TestDriverDomain(t *testing.T) {
	w := newWorld(t)
	w.upInDriverDomain()
	t.Run("out of watches", func(t *testing.T) {
		w.v.unwatch()
		w.xs.watch = func(string) error { return unix.ENOSPC }
		w.wantSteps("")
		w.wantError("28 xenstore: WATCH " + frontDir + "/state: no space left on device")
		if w.v.alarm.At().IsZero() {
			t.Error("the alarm is not set")
		}
		w.detach()
		w.frontState(xenbus.Closed)
		w.wantSteps("disconnect closed unregister")
		w.wantState("6")
	})
}

// upInDriverDomain attaches a vif to an unprivileged back end, which may read the
// frontend's directory and nothing above it, and connects it.
func (w *world) upInDriverDomain() {
	w.t.Helper()
	w.attach("hotplug-status", "connected")
	w.xs.Client = w.connectAs(9)
	w.wantSteps("publish init-wait")
	w.rings(1, false)
	w.frontState(xenbus.Connected)
	w.wantSteps("connect plug connected")
	w.wantState("4")
}

// wantNoErrors checks that the vif reported no error when it last reconciled.
func (w *world) wantNoErrors() {
	w.t.Helper()
	w.wantError("-")
	for _, e := range w.log.FilterLevelExact(zapcore.ErrorLevel).All() {
		w.t.Errorf("log: %s %v", e.Message, e.ContextMap())
	}
}

// TestGoneInDriverDomain: a driver domain may not read the directories above its own, so
// xenstored answers EACCES for a removed node. Removed devices and guests look like that.
func TestGoneInDriverDomain(t *testing.T) {
	for name, remove := range map[string]string{
		"the frontend": frontDir,
		"the guest":    "/local/domain/7",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.upInDriverDomain()
			w.must(w.tool.Remove(t.Context(), remove))
			if _, err := w.xs.Client.Read(t.Context(), frontDir+"/state"); !errors.Is(err, unix.EACCES) {
				t.Fatalf("xenstored says %v", err)
			}
			w.wantSteps("disconnect closing closed unregister")
			w.wantNoErrors()
			w.wantState("6")
			w.wantHeld(nothing)
			w.wantTap(0)
			w.must(w.tool.Remove(t.Context(), backDir))
			w.wantSteps("gone")
			w.wantNoErrors()
		})
	}
}

// TestHiddenFrontend: a guest that hides its directory from a driver domain counts as gone
// until the toolstack makes the device again. So it cannot make the daemon remove and
// create TAPs.
func TestHiddenFrontend(t *testing.T) {
	w := newWorld(t)
	w.upInDriverDomain()
	index := w.iface(ifname).Index
	hide := func(access xenstore.Access) {
		t.Helper()
		for _, path := range []string{frontDir, frontDir + "/state"} {
			w.must(w.guest.SetPermissions(t.Context(), path, []xenstore.Perm{{Domid: domid}, {Domid: 9, Access: access}}))
		}
	}
	w.must(w.guest.SetPermissions(t.Context(), frontDir+"/state", []xenstore.Perm{{Domid: domid}}))
	w.wantSteps("disconnect closing closed")
	w.wantNoErrors()
	if l := w.iface(ifname); l == nil || l.Index != index {
		t.Errorf("interface %+v, want the one with index %d", l, index)
	}

	hide(xenstore.AccessNone)
	w.wantSteps("unregister")
	w.wantNoErrors()
	w.wantTap(0)
	if got := w.status().Waits; got != "the toolstack to remove it" {
		t.Errorf("waits for %q", got)
	}
	hide(xenstore.AccessRead)
	w.frontState(xenbus.Initialising)
	w.wantSteps("unregister")
	w.wantState("6")
	w.wantTap(0)

	w.must(w.tool.Remove(t.Context(), backDir))
	w.must(w.tool.Remove(t.Context(), frontDir))
	w.attach()
	w.allow("/local/domain/0/backend", 9, domid)
	w.allow(frontDir, domid, 9)
	w.wantSteps("publish init-wait")
	w.plugIn()
	w.rings(1, false)
	w.frontState(xenbus.Connected)
	w.wantSteps("connect plug connected")
	w.wantNoErrors()
}

// TestDetachReadBeforeItsEvent: the vif looks because of the guest, finds the
// toolstack's Closing before its event has come, and reads online with it.
func TestDetachReadBeforeItsEvent(t *testing.T) {
	w := newWorld(t)
	w.up(1)
	w.detach()
	w.v.unread = 0
	w.v.guard(t.Context(), func() { w.v.reconcile(t.Context()) })
	if w.v.detachAt.IsZero() {
		t.Error("the detach was not noticed")
	}
	for _, e := range w.log.FilterLevelExact(zap.ErrorLevel).All() {
		t.Errorf("log: %s", e.Message)
	}
}
