// SPDX-License-Identifier: Apache-2.0

// Package fronttest is the other side for tests of frontends: an embedded Xen with
// guests, and a minimal backend.
//
// The backend follows netif.h and xen-netback's states. It has no offloads, no control
// ring and no batches of system calls. It shares no code with netbackd or with the
// frontend.
package fronttest

import (
	"context"
	"fmt"
	"strconv"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/internal/lab/xensim/simtest"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Xen is an embedded Xen, seen from dom0.
type Xen struct {
	Dir   string
	Dom0  *simclient.Conn
	Store *xenstore.Client
	Ctl   *simclient.Control

	t testing.TB
}

// NewXen starts an embedded Xen, until the test ends.
func NewXen(t testing.TB) *Xen {
	t.Helper()
	x := &Xen{Dir: simtest.Start(t), t: t}
	var err error
	if x.Dom0, err = simclient.Dial(x.Dir, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Dom0.Close() })
	if x.Store, err = x.Dom0.Xenstore(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Store.Close() })
	if x.Ctl, err = x.Dom0.Control(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Ctl.Close() })
	return x
}

// NewGuest makes a domain with one vif, as libxl does, and introduces it.
func (x *Xen) NewGuest() (domid xen.Domid) {
	x.t.Helper()
	domid, err := x.Ctl.CreateDomain(simclient.DomainConfig{GntallocLimit: 4096})
	if err != nil {
		x.t.Fatal(err)
	}
	id := strconv.Itoa(int(domid))
	x.mkdir("/local/domain/"+id, 0, domid)
	x.mkdir(x.BackDir(domid), 0, domid)
	x.mkdir(x.FrontDir(domid), domid, 0)
	x.Write(x.BackDir(domid), "frontend", x.FrontDir(domid), "frontend-id", id, "state", "1", "online", "1", "handle", "0")
	x.Write(x.FrontDir(domid), "backend", x.BackDir(domid), "backend-id", "0", "state", "1", "handle", "0",
		"mac", fmt.Sprintf("00:16:3e:00:00:%02x", domid))
	if err := x.Store.Introduce(context.Background(), domid, 1, 1); err != nil {
		x.t.Fatal(err)
	}
	return domid
}

// FrontDir returns the directory of a guest's vif, BackDir that of its backend.
func (x *Xen) FrontDir(domid xen.Domid) string {
	return xenbus.VifID{Domid: domid}.FrontendPath()
}

// BackDir returns the backend's directory of a guest's vif.
func (x *Xen) BackDir(domid xen.Domid) string {
	return xenbus.VifID{Domid: domid}.BackendPath(xen.Dom0)
}

// Write writes nodes below dir, given as keys and values in turn.
func (x *Xen) Write(dir string, kv ...string) {
	x.t.Helper()
	for i := 0; i < len(kv); i += 2 {
		if err := x.Store.Write(context.Background(), dir+"/"+kv[i], kv[i+1]); err != nil {
			x.t.Fatal(err)
		}
	}
}

// mkdir makes a directory that belongs to owner and that reader may read.
func (x *Xen) mkdir(dir string, owner, reader xen.Domid) {
	x.t.Helper()
	if err := x.Store.Mkdir(context.Background(), dir); err != nil {
		x.t.Fatal(err)
	}
	if err := x.Store.SetPermissions(context.Background(), dir, []xenstore.Perm{{Domid: owner}, {Domid: reader, Access: xenstore.AccessRead}}); err != nil {
		x.t.Fatal(err)
	}
}
