// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"sync"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/host"
	"github.com/netbackd/netbackd/internal/netcontrol"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// ownPages is the daemon's part in the pages that this domain grants to itself: it opens
// their device, and has the number of this domain read once xenstored answers. Without them
// the daemon works as well, and copies by address.
type ownPages struct {
	pages *host.OwnPages // nil: there are none
	off   error          // the reason for that

	mu   sync.Mutex
	said string // what the log has been told last; guarded by mu
}

// errOwnOff is the reason if the administrator wants none.
var errOwnOff = errors.New("switched off by --own-pages=none")

// open opens the device.
func (o *ownPages) open(h Host, want string) {
	if want == "none" {
		o.off = errOwnOff
		return
	}
	pages, err := h.OpenOwnPages()
	if err != nil {
		o.off = err
		return
	}
	o.pages = pages
}

// pager returns the source of the data path's own pages, or nil.
func (o *ownPages) pager() dataplane.OwnPager {
	if o.pages == nil {
		return nil
	}
	return o.pages
}

// learn is called with each new connection to xenstored.
func (o *ownPages) learn(ctx context.Context, s xenbus.Store, log *zap.Logger) {
	if o.pages == nil {
		return
	}
	err := o.pages.Learn(ctx, s)
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil || err.Error() == o.said {
		return
	}
	o.said = err.Error()
	log.Warn("packets are copied by address, for want of own pages", zap.Error(err))
}

// reason returns why there are no own pages, or nil.
func (o *ownPages) reason() error {
	if o.pages == nil {
		return o.off
	}
	_, err := o.pages.Domid()
	return err
}

// status returns the state of the pages, with that of the data path.
func (o *ownPages) status(p dataplane.OwnPages) *netcontrol.OwnPages {
	s := &netcontrol.OwnPages{Granted: p.Granted, Wanted: p.Wanted}
	switch err := o.reason(); {
	case err != nil:
		s.Reason = err.Error()
	case p.Lost:
		s.Granted, s.Reason = 0, "Xen refused them"
	}
	return s
}

// close closes the device.
func (o *ownPages) close() error {
	if o.pages == nil {
		return nil
	}
	return o.pages.Close()
}
