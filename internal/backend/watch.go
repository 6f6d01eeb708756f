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
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// key names a vif.
type key struct {
	domid xen.Domid
	devid int
}

func (k key) String() string { return fmt.Sprintf("vif%d.%d", k.domid, k.devid) }

// firstReserved is the first number that no guest has (DOMID_FIRST_RESERVED).
const firstReserved = 0x7ff0

// parseKey reads the names of the two directories of a vif. Both are decimal
// numbers, as a toolstack writes them.
func parseKey(dom, dev string) (k key, ok bool) {
	d, err := strconv.ParseUint(dom, 10, 16)
	if err != nil || d >= firstReserved || strconv.FormatUint(d, 10) != dom {
		return k, false
	}
	n, err := strconv.ParseUint(dev, 10, 16)
	if err != nil || strconv.FormatUint(n, 10) != dev {
		return k, false
	}
	return key{xen.Domid(d), int(n)}, true
}

func (b *Backend) path(k key) string {
	return fmt.Sprintf("%s/%d/%d", b.base, k.domid, k.devid)
}

// findSelf finds our own domain's path.
func (b *Backend) findSelf() error {
	domid := uint64(0)
	s, err := b.store.Read("domid")
	switch {
	case err == nil:
		if domid, err = strconv.ParseUint(s, 10, 16); err != nil {
			return fmt.Errorf("own domid is %q", s)
		}
	case errors.Is(err, xenstore.ErrNotExist):
		// Only dom0 may have no such node.
	default:
		return err
	}
	b.own = xenstore.DomainPath(xen.Domid(domid))
	b.base = b.own + "/backend/vif"
	return nil
}

// watchReleases tells when a domain is gone. An unprivileged domain may not be
// told; it sees the guest's nodes go.
func (b *Backend) watchReleases() (<-chan xenstore.Event, error) {
	w, err := b.store.Watch(xenstore.ReleaseDomain)
	if errors.Is(err, xenstore.ErrPermission) {
		b.cfg.Log.Info("not told when guests end, as in a driver domain", zap.Error(err))
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return w.C(), nil
}

// domainGone is called when a domain has gone or shut down, which one is not
// said. The vifs of those that are gone are told to look.
func (b *Backend) domainGone() error {
	lives := map[xen.Domid]bool{}
	for k, v := range b.vifs {
		alive, known := lives[k.domid]
		if !known {
			var err error
			alive, err = b.store.IsIntroduced(k.domid)
			if err != nil && !errors.Is(err, xenstore.ErrPermission) {
				return err
			}
			lives[k.domid] = alive
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
		return b.scanGuest(ctx, dom) // it came or went
	}
	dev, node, _ := strings.Cut(rest, "/")
	if k, ok := parseKey(dom, dev); ok {
		return b.ensure(ctx, k, node)
	}
	return nil
}

// ensure tells the vif that a node of it has changed, with "" all of it, or starts it
// if it is new and its directory is there.
func (b *Backend) ensure(ctx context.Context, k key, node string) error {
	if v := b.vifs[k]; v != nil {
		v.Changed(node)
		return nil
	}
	there, err := b.store.Exists(b.path(k) + "/state")
	if err != nil || !there {
		b.removeForeign(k)
		return err
	}
	ours, err := b.isOurs(k)
	switch {
	case err != nil:
		return err
	case !ours:
		return b.addForeign(k)
	}
	b.start(ctx, k)
	return nil
}

// scan finds all vifs there are, and has those look that are known already.
func (b *Backend) scan(ctx context.Context) error {
	for _, v := range b.vifs {
		v.Poke()
	}
	doms, err := b.list(b.base)
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

// scanGuest is scan for the vifs of one guest.
func (b *Backend) scanGuest(ctx context.Context, dom string) error {
	for k, v := range b.vifs {
		if strconv.Itoa(int(k.domid)) == dom {
			v.Poke()
		}
	}
	return b.startNew(ctx, dom)
}

// startNew starts the vifs of a guest that are not known yet.
func (b *Backend) startNew(ctx context.Context, dom string) error {
	if _, ok := parseKey(dom, "0"); !ok {
		return nil
	}
	devs, err := b.list(b.base + "/" + dom)
	if err != nil {
		return err
	}
	for _, dev := range devs {
		k, ok := parseKey(dom, dev)
		if !ok || b.vifs[k] != nil {
			continue
		}
		if err := b.ensure(ctx, k, ""); err != nil {
			return err
		}
	}
	return nil
}

// list lists a directory that may not be there.
func (b *Backend) list(path string) ([]string, error) {
	names, err := b.store.List(path)
	if errors.Is(err, xenstore.ErrNotExist) {
		return nil, nil
	}
	return names, err
}
