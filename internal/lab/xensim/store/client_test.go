// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// The tests here use the store through pkg/xenstore, as netbackd and the guests do.

// dialed returns a server with a client on its socket.
func dialed(t *testing.T) (*fixture, *xenstore.Client) {
	t.Helper()
	f := newFixture(t, Quota{WriteRate: -1})
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- f.Serve(l) }()
	t.Cleanup(func() {
		_ = f.Close()
		if err := <-served; !errors.Is(err, ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	c, err := xenstore.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return f, c
}

// guest returns a client of a domain.
func (f *fixture) guest(domid xen.Domid) *xenstore.Client {
	c := xenstore.New(f.xenbus(domid), xenstore.Xenbus)
	f.t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestVifAsToolstackGuestAndBackendSeeIt(t *testing.T) {
	f, dom0 := dialed(t)
	guest := f.guest(5)
	const (
		front = "/local/domain/5/device/vif/0"
		back  = "/local/domain/0/backend/vif/5/0"
	)
	must(t, dom0.Transaction(t.Context(), func(tx *xenstore.Tx) error {
		for _, dir := range []struct {
			path  string
			perms []xenstore.Perm
		}{
			{front, []xenstore.Perm{{Domid: 5}, {Domid: 0, Access: xenstore.AccessRead}}},
			{back, []xenstore.Perm{{Domid: 0}, {Domid: 5, Access: xenstore.AccessRead}}},
		} {
			if err := tx.Mkdir(t.Context(), dir.path); err != nil {
				return err
			}
			if err := tx.SetPermissions(t.Context(), dir.path, dir.perms); err != nil {
				return err
			}
			if err := tx.Write(t.Context(), dir.path+"/state", "1"); err != nil {
				return err
			}
		}
		return nil
	}))
	watchFront, err := dom0.Watch(t.Context(), front+"/state")
	must(t, err)
	watchBack, err := guest.Watch(t.Context(), back+"/state")
	must(t, err)
	for _, w := range []*xenstore.Watch{watchFront, watchBack} {
		if ev := <-w.C(); ev.Path != w.Path() {
			t.Errorf("first event %+v of %s", ev, w.Path())
		}
	}

	must(t, dom0.Write(t.Context(), back+"/state", "2"))
	if ev := <-watchBack.C(); ev.Path != back+"/state" {
		t.Errorf("guest was told of %+v", ev)
	}
	must(t, guest.Transaction(t.Context(), func(tx *xenstore.Tx) error {
		if err := tx.Write(t.Context(), "device/vif/0/tx-ring-ref", "8"); err != nil {
			return err
		}
		return tx.Write(t.Context(), "device/vif/0/state", "4")
	}))
	if ev := <-watchFront.C(); ev.Path != front+"/state" {
		t.Errorf("backend was told of %+v", ev)
	}
	if v, err := dom0.Read(t.Context(), front+"/tx-ring-ref"); v != "8" || err != nil {
		t.Errorf("ring ref %q, %v", v, err)
	}
	if err := guest.Write(t.Context(), back+"/state", "6"); !errors.Is(err, xenstore.ErrPermission) {
		t.Errorf("guest writes the backend's state: %v", err)
	}

	// The guest dies: its nodes are removed, and the backend gets events for both.
	release, err := dom0.Watch(t.Context(), xenstore.ReleaseDomain)
	must(t, err)
	<-release.C()
	f.died(5)
	if ev := <-watchFront.C(); ev.Path != front+"/state" {
		t.Errorf("backend was told of %+v", ev)
	}
	<-release.C()
	if ok, err := dom0.Exists(t.Context(), front); ok || err != nil {
		t.Errorf("frontend exists: %v, %v", ok, err)
	}
	if v, err := dom0.Read(t.Context(), back+"/state"); v != "2" || err != nil {
		t.Errorf("backend state %q, %v", v, err)
	}
	<-guest.Done()
}

func TestListOfAnyLength(t *testing.T) {
	_, c := dialed(t)
	var want []string
	for i := range 1500 {
		name := fmt.Sprintf("child-%d", i)
		want = append(want, name)
		must(t, c.Mkdir(t.Context(), "/d/"+name))
	}
	got, err := c.List(t.Context(), "/d")
	must(t, err)
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got, err := c.List(t.Context(), "/d/child-0"); len(got) != 0 || err != nil {
		t.Errorf("empty node has %q, %v", got, err)
	}
}

func TestCountersOfManyWritersAddUp(t *testing.T) {
	_, c := dialed(t)
	must(t, c.Write(t.Context(), "/n", "0"))
	var wg sync.WaitGroup
	const writers, rounds = 4, 25
	for range writers {
		wg.Go(func() {
			for range rounds {
				// The client may time out. Here that is no error.
				for {
					err := c.Transaction(t.Context(), func(tx *xenstore.Tx) error {
						n, err := tx.ReadUint(t.Context(), "/n", 32)
						if err != nil {
							return err
						}
						return tx.Write(t.Context(), "/n", fmt.Sprint(n+1))
					})
					if err == nil {
						break
					}
					if !errors.Is(err, xenstore.ErrAgain) {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if n, err := c.ReadUint(t.Context(), "/n", 32); n != writers*rounds || err != nil {
		t.Errorf("counted %d, %v", n, err)
	}
}

func TestErrorsAsClientsKnowThem(t *testing.T) {
	f, dom0 := dialed(t)
	guest := f.guest(5)
	must(t, dom0.Write(t.Context(), "/secret", "1"))
	for _, tt := range []struct {
		name string
		do   func() error
		want error
	}{
		{"missing", func() error { _, err := dom0.Read(t.Context(), "/missing"); return err }, xenstore.ErrNotExist},
		{"secret", func() error { _, err := guest.Read(t.Context(), "/secret"); return err }, xenstore.ErrPermission},
		{"too big", func() error { return guest.Write(t.Context(), "a", strings.Repeat("x", 3000)) }, xenstore.ErrQuota},
		{"not for guests", func() error { return guest.Release(t.Context(), 6) }, xenstore.ErrPermission},
		{"no such domain", func() error { return dom0.Introduce(t.Context(), 9, 1, 1) }, xenstore.ErrInvalid},
		{"not introduced", func() error { return dom0.Release(t.Context(), 9) }, xenstore.ErrNotExist},
		{"root", func() error { return dom0.Remove(t.Context(), "/") }, xenstore.ErrInvalid},
		{"gift", func() error {
			must(t, guest.Write(t.Context(), "mine", "1"))
			return guest.SetPermissions(t.Context(), "mine", []xenstore.Perm{{Domid: 6}})
		}, xenstore.ErrPermission},
	} {
		if err := tt.do(); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestDomainManagementOfClient(t *testing.T) {
	f, c := dialed(t)
	f.created(7)
	must(t, c.Introduce(t.Context(), 7, 1, 1))
	if ok, err := c.IsIntroduced(t.Context(), 7); !ok || err != nil {
		t.Errorf("introduced: %v, %v", ok, err)
	}
	must(t, c.Release(t.Context(), 7))
	if ok, err := c.IsIntroduced(t.Context(), 7); ok || err != nil {
		t.Errorf("introduced: %v, %v", ok, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
