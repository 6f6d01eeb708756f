// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// path returns the vif's directory.
func (b *Backend) path(k xenbus.VifID) string { return k.BackendPath(b.self) }

// findSelf reads the number of our own domain.
func (b *Backend) findSelf(ctx context.Context) error {
	domid := uint64(0)
	s, err := b.store.Read(ctx, "domid")
	switch {
	case err == nil:
		if domid, err = strconv.ParseUint(s, 10, 16); err != nil {
			return fmt.Errorf("own domid is %q", s)
		}
	case errors.Is(err, xenstore.ErrNotExist):
		// Every domain except dom0 has the node.
	default:
		return err
	}
	b.self = xen.Domid(domid)
	b.own = xenstore.DomainPath(b.self)
	b.base = b.own + "/backend/vif"
	return nil
}

// watchReleases watches for the end of domains. A driver domain may not watch that. It sees
// the removal of the guest's nodes instead.
func (b *Backend) watchReleases(ctx context.Context) (<-chan xenstore.Event, error) {
	w, err := b.store.Watch(ctx, xenstore.ReleaseDomain)
	if errors.Is(err, xenstore.ErrPermission) {
		b.cfg.Log.Info("no events for the end of guests, as in a driver domain", zap.Error(err))
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return w.C(), nil
}

// domainGone pokes the vifs whose domain has ended. xenstored's event does not name the
// domain that has ended or shut down.
func (b *Backend) domainGone(ctx context.Context) error {
	lives := map[xen.Domid]bool{}
	for k, v := range b.vifs {
		alive, known := lives[k.Domid]
		if !known {
			var err error
			alive, err = b.store.IsIntroduced(ctx, k.Domid)
			if err != nil && !errors.Is(err, xenstore.ErrPermission) {
				return err
			}
			lives[k.Domid] = alive
		}
		if !alive {
			v.Poke()
		}
	}
	return nil
}

// changed handles an event below the base directory.
func (b *Backend) changed(ctx context.Context, e xenstore.Event) error {
	rest, ok := strings.CutPrefix(e.Path, b.base+"/")
	if e.Overflow || !ok {
		return b.scan(ctx)
	}
	dom, rest, ok := strings.Cut(rest, "/")
	if !ok {
		return b.scanGuest(ctx, dom) // its directory was made or removed
	}
	dev, node, _ := strings.Cut(rest, "/")
	k, err := xenbus.ParseVifPath("vif/" + dom + "/" + dev)
	if err != nil {
		return nil // not a vif's
	}
	return b.ensure(ctx, k, node)
}

// ensure tells the vif that a node of its directory has changed, or any node if node is "".
// It starts the vif if it is new and its directory exists.
func (b *Backend) ensure(ctx context.Context, k xenbus.VifID, node string) error {
	if v := b.vifs[k]; v != nil {
		v.Changed(node)
		return nil
	}
	exists, err := b.store.Exists(ctx, b.path(k)+"/state")
	if err != nil || !exists {
		b.removeForeign(k)
		return err
	}
	ours, err := b.isOurs(ctx, k)
	switch {
	case err != nil:
		return err
	case !ours:
		return b.addForeign(ctx, k)
	}
	b.start(ctx, k)
	return nil
}

// scan starts all new vifs, and pokes the others.
func (b *Backend) scan(ctx context.Context) error {
	for _, v := range b.vifs {
		v.Poke()
	}
	doms, err := b.list(ctx, b.base)
	if err != nil {
		return err
	}
	for _, dom := range doms {
		if err := b.startNew(ctx, dom); err != nil {
			return err
		}
	}
	return nil
}

// scanGuest starts the new vifs of one guest, and pokes its others.
func (b *Backend) scanGuest(ctx context.Context, dom string) error {
	for k, v := range b.vifs {
		if strconv.Itoa(int(k.Domid)) == dom {
			v.Poke()
		}
	}
	return b.startNew(ctx, dom)
}

// startNew starts the new vifs of a guest.
func (b *Backend) startNew(ctx context.Context, dom string) error {
	if _, err := xenbus.ParseVifPath("vif/" + dom + "/0"); err != nil {
		return nil // not a domain's
	}
	devs, err := b.list(ctx, b.base+"/"+dom)
	if err != nil {
		return err
	}
	for _, dev := range devs {
		k, err := xenbus.ParseVifPath("vif/" + dom + "/" + dev)
		if err != nil || b.vifs[k] != nil {
			continue
		}
		if err := b.ensure(ctx, k, ""); err != nil {
			return err
		}
	}
	return nil
}

// maxChildren bounds the children of a directory: domains and vifs have numbers of 16 bits.
const maxChildren = 1 << 16

// list lists a directory. It returns nothing if the directory does not exist.
func (b *Backend) list(ctx context.Context, path string) ([]string, error) {
	return xenbus.List(ctx, b.store, path, maxChildren)
}
