// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// path returns the device's directory.
func (s *Set[D, S]) path(id xenbus.DeviceID) string { return id.BackendPath(s.self) }

// base returns the directory of a class.
func (s *Set[D, S]) base(c xenbus.Class) string { return s.own + "/backend/" + string(c) }

// findSelf reads the number of our own domain.
func (s *Set[D, S]) findSelf(ctx context.Context) (err error) {
	s.self, err = xenbus.OwnDomid(ctx, s.store)
	s.own = xenstore.DomainPath(s.self)
	return err
}

// watchReleases watches for the end of domains. A driver domain may not watch that. It sees
// the removal of the guest's nodes instead.
func (s *Set[D, S]) watchReleases(ctx context.Context) (<-chan xenstore.Event, error) {
	w, err := s.store.Watch(ctx, xenstore.ReleaseDomain)
	if errors.Is(err, xenstore.ErrPermission) {
		s.cfg.Log.Info("no events for the end of guests, as in a driver domain", zap.Error(err))
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return w.C(), nil
}

// domainGone tells the devices whose domain has ended. xenstored's event does not name the
// domain that has ended or shut down.
func (s *Set[D, S]) domainGone(ctx context.Context) error {
	lives := map[xen.Domid]bool{}
	for id, d := range s.devices {
		alive, known := lives[id.Domid]
		if !known {
			var err error
			alive, err = s.store.IsIntroduced(ctx, id.Domid)
			if err != nil && !errors.Is(err, xenstore.ErrPermission) {
				return err
			}
			lives[id.Domid] = alive
		}
		if !alive {
			d.Changed("")
		}
	}
	return nil
}

// changed handles an event below the directory of a class.
func (s *Set[D, S]) changed(ctx context.Context, e xenstore.Event) error {
	rest, ok := strings.CutPrefix(e.Path, s.own+"/backend/")
	class, rest, below := strings.Cut(rest, "/")
	if e.Overflow || !ok || !below {
		return s.scan(ctx)
	}
	dom, rest, ok := strings.Cut(rest, "/")
	if !ok {
		return s.scanGuest(ctx, xenbus.Class(class), dom) // its directory was made or removed
	}
	dev, node, _ := strings.Cut(rest, "/")
	id, err := xenbus.ParseDevicePath(class + "/" + dom + "/" + dev)
	if err != nil {
		return nil // not a device's
	}
	return s.ensure(ctx, id, node)
}

// ensure tells the device that a node of its directory has changed, or any node if node is
// "". It starts the device if it is new, its directory exists, and it is ours.
func (s *Set[D, S]) ensure(ctx context.Context, id xenbus.DeviceID, node string) error {
	if d, has := s.devices[id]; has {
		d.Changed(node)
		return nil
	}
	exists, err := s.store.Exists(ctx, s.path(id)+"/state")
	if err != nil || !exists {
		s.removeOther(id)
		return err
	}
	why, err := s.owner(ctx, id)
	switch {
	case err != nil:
		return err
	case why != ours:
		return s.addOther(ctx, id, why)
	}
	s.start(ctx, id)
	return nil
}

// scan starts all new devices, and pokes the others.
func (s *Set[D, S]) scan(ctx context.Context) error {
	for _, d := range s.devices {
		d.Changed("")
	}
	for _, class := range s.cfg.Classes {
		doms, err := s.list(ctx, s.base(class))
		if err != nil {
			return err
		}
		for _, dom := range doms {
			if err := s.startNew(ctx, class, dom); err != nil {
				return err
			}
		}
	}
	return nil
}

// scanGuest starts the new devices of one guest, and pokes its others.
func (s *Set[D, S]) scanGuest(ctx context.Context, class xenbus.Class, dom string) error {
	for id, d := range s.devices {
		if id.Class == class && strconv.Itoa(int(id.Domid)) == dom {
			d.Changed("")
		}
	}
	return s.startNew(ctx, class, dom)
}

// startNew starts the new devices of a guest.
func (s *Set[D, S]) startNew(ctx context.Context, class xenbus.Class, dom string) error {
	guest := string(class) + "/" + dom + "/"
	if _, err := xenbus.ParseDevicePath(guest + "0"); err != nil {
		return nil // not a domain's
	}
	devs, err := s.list(ctx, s.base(class)+"/"+dom)
	if err != nil {
		return err
	}
	for _, dev := range devs {
		id, err := xenbus.ParseDevicePath(guest + dev)
		if _, has := s.devices[id]; err != nil || has {
			continue
		}
		if err := s.ensure(ctx, id, ""); err != nil {
			return err
		}
	}
	return nil
}

// maxChildren bounds the children of a directory: domains have numbers of 16 bits.
const maxChildren = 1 << 16

// list lists a directory. It returns nothing if the directory does not exist.
func (s *Set[D, S]) list(ctx context.Context, path string) ([]string, error) {
	return xenbus.List(ctx, s.store, path, maxChildren)
}
