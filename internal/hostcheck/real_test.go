// SPDX-License-Identifier: Apache-2.0

package hostcheck

import (
	"context"
	"net"
	"testing"

	"github.com/netbackd/netbackd/internal/lab/xensim/store"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// TestAskXenstore: a driver domain may read only a part of xenstore, and in a dom0 the
// domain's own number may be missing.
func TestAskXenstore(t *testing.T) {
	srv := store.New(store.Options{})
	defer func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
	}()
	connect := func(domid xen.Domid, kind xenstore.Kind) *xenstore.Client {
		ours, theirs := net.Pipe()
		served := make(chan struct{})
		go func() { defer close(served); _ = srv.ServeConn(theirs, domid, kind) }()
		c := xenstore.New(ours, kind)
		t.Cleanup(func() { _ = c.Close(); <-served })
		return c
	}
	dom0 := connect(0, xenstore.Socket)
	srv.DomainCreated(9)
	for _, err := range []error{
		dom0.Mkdir(t.Context(), "/local/domain/0"),
		dom0.Introduce(t.Context(), 9, 1, 1),
		dom0.Write(t.Context(), "/local/domain/9/domid", "9"),
		dom0.SetPermissions(t.Context(), "/local/domain/9/domid", []xenstore.Perm{{Domid: 0}, {Domid: 9, Access: xenstore.AccessRead}}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]*xenstore.Client{"dom0": dom0, "driver domain": connect(9, xenstore.Xenbus)} {
		if err := askDomid(context.Background(), c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
