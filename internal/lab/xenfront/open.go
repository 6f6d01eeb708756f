// SPDX-License-Identifier: Apache-2.0

package xenfront

import (
	"context"
	"errors"
	"io"

	"github.com/netbackd/netbackd/internal/lab/xensim/gnttab"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntalloc"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// Open opens the devices of this domain for a frontend of any class. dir is the directory
// of an embedded Xen, in which the process is domain domid; empty means the real one.
// closeAll closes the devices.
func Open(ctx context.Context, dir string, domid xen.Domid) (h Host, closeAll func() error, err error) {
	if dir == "" {
		return openReal(ctx)
	}
	return openEmbedded(dir, domid)
}

func openReal(ctx context.Context) (h Host, closeAll func() error, err error) {
	pages, err := gntalloc.Open(gntalloc.DefaultPath)
	if err != nil {
		return h, nil, err
	}
	store, err := xenstore.Open(ctx)
	if err != nil {
		return h, nil, errors.Join(err, pages.Close())
	}
	h = Host{
		Pages:  pages,
		Store:  store,
		Events: func() (Events, error) { return evtchn.Open(evtchn.DefaultPath) },
	}
	return h, func() error { return errors.Join(store.Close(), pages.Close()) }, nil
}

// simPages adds the test whether a page is still in use, which a guest's kernel reads in
// its own grant table. A real guest's user space cannot read it.
type simPages struct {
	*simclient.Pages
	table gnttab.Table
}

var _ UseChecker = simPages{}

func (p simPages) InUse(ref xen.Gref) (bool, error) {
	if int(ref) >= p.table.Len() {
		return false, nil
	}
	return p.table.Head(ref).Flags()&(gnttab.Reading|gnttab.Writing) != 0, nil
}

func openEmbedded(dir string, domid xen.Domid) (h Host, closeAll func() error, err error) {
	var opened []io.Closer
	closeAll = func() error {
		var errs []error
		for i := len(opened) - 1; i >= 0; i-- {
			errs = append(errs, opened[i].Close())
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll())
		}
	}()
	conn, err := simclient.Dial(dir, domid)
	if err != nil {
		return h, nil, err
	}
	opened = append(opened, conn)
	store, err := conn.Xenstore()
	if err != nil {
		return h, nil, err
	}
	opened = append(opened, store)
	pages, err := conn.Pages()
	if err != nil {
		return h, nil, err
	}
	opened = append(opened, pages)
	mem, err := conn.Memory()
	if err != nil {
		return h, nil, err
	}
	opened = append(opened, mem)
	h = Host{
		Pages:  simPages{pages, mem.Table()},
		Store:  store,
		Events: func() (Events, error) { return conn.Events() },
	}
	return h, closeAll, nil
}
