// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

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
	exists, err := s.exists(ctx, id)
	if err != nil || !exists {
		s.removeOther(id)
		return err
	}
	return s.decide(ctx, id)
}

// exists reports whether the directory of a device exists.
func (s *Set[D, S]) exists(ctx context.Context, id xenbus.DeviceID) (bool, error) {
	return s.store.Exists(ctx, s.path(id)+"/state")
}

// decide starts a new device whose directory exists, if it is ours.
func (s *Set[D, S]) decide(ctx context.Context, id xenbus.DeviceID) error {
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
		if err := s.startAll(ctx, class, doms); err != nil {
			return err
		}
	}
	return nil
}

// atOnce is the number of guests whose directories a scan reads at the same time: each request
// to xenstored takes a turn of it and of this process.
const atOnce = 32

// startAll starts the new devices of guests. It reads the directories of several guests at the
// same time.
func (s *Set[D, S]) startAll(ctx context.Context, class xenbus.Class, doms []string) error {
	found, errs := make([][]xenbus.DeviceID, len(doms)), make([]error, len(doms))
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(atOnce, len(doms)) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(doms); i = int(next.Add(1)) - 1 {
				found[i], errs[i] = s.newOnes(ctx, class, doms[i])
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	for _, id := range slices.Concat(found...) {
		if err := s.decide(ctx, id); err != nil {
			return err
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
	return s.startAll(ctx, class, []string{dom})
}

// newOnes returns the devices of a guest that have a directory and are not served. It changes
// nothing but the list of devices that others serve: those that are gone are removed from it.
func (s *Set[D, S]) newOnes(ctx context.Context, class xenbus.Class, dom string) (ids []xenbus.DeviceID, err error) {
	guest := string(class) + "/" + dom + "/"
	if _, err := xenbus.ParseDevicePath(guest + "0"); err != nil {
		return nil, nil // not a domain's
	}
	devs, err := s.list(ctx, s.base(class)+"/"+dom)
	if err != nil {
		return nil, err
	}
	for _, dev := range devs {
		id, err := xenbus.ParseDevicePath(guest + dev)
		if _, has := s.devices[id]; err != nil || has {
			continue
		}
		exists, err := s.exists(ctx, id)
		switch {
		case err != nil:
			return nil, err
		case exists:
			ids = append(ids, id)
		default:
			s.removeOther(id)
		}
	}
	return ids, nil
}

// maxChildren bounds the children of a directory: domains have numbers of 16 bits.
const maxChildren = 1 << 16

// list lists a directory. It returns nothing if the directory does not exist.
func (s *Set[D, S]) list(ctx context.Context, path string) ([]string, error) {
	return xenbus.List(ctx, s.store, path, maxChildren)
}
