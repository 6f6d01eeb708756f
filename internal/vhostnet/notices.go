// SPDX-License-Identifier: Apache-2.0

package vhostnet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/pkg/tap"
)

// notices collects what the data path reports: the present state, not how often it has
// changed. So no notice is lost, and they take no more memory while the device is busy.
type notices struct {
	wake    chan struct{}
	mu      sync.Mutex // guards all below
	gone    bool       // the TAP was deleted
	stalled []bool     // by pair: its guest posts no buffers
	merging bool       // packets were merged, or could have been, since take was last called
}

func newNotices(pairs int) notices {
	return notices{wake: make(chan struct{}, 1), stalled: make([]bool, pairs)}
}

// notice is called from the workers.
func (d *Device) notice(n dataplane.Notice) {
	if n.Kind == dataplane.Breach {
		d.end(fmt.Errorf("queue pair %d: %w", n.Queue, n.Err))
		return
	}
	d.notices.add(n)
}

func (n *notices) add(x dataplane.Notice) {
	n.mu.Lock()
	switch x.Kind {
	case dataplane.TapGone:
		n.gone = true
	case dataplane.Stalled:
		n.stalled[x.Queue] = true
	case dataplane.Resumed:
		n.stalled[x.Queue] = false
	case dataplane.Coalescing:
		n.merging = true
	}
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

func (n *notices) take() (gone, merging bool, stalled []bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	merging, n.merging = n.merging, false
	return n.gone, merging, slices.Clone(n.stalled)
}

// clear forgets what was reported about a pair whose ring ends.
func (n *notices) clear(pair int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stalled[pair] = false
}

// watch acts on notices until ctx ends. It calls stop when the TAP was deleted.
func (d *Device) watch(ctx context.Context, stop context.CancelCauseFunc) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.notices.wake:
		}
		gone, merging, stalled := d.notices.take()
		if gone {
			stop(fmt.Errorf("%w: %s", ErrTapGone, d.cfg.Tap.Name))
			return
		}
		for i, now := range stalled {
			d.showStall(i, now)
		}
		if merging {
			d.checkXDP()
		}
	}
}

// showStall takes the carrier away when the guest of a pair posts no buffers, as the vif of
// a guest that posts no slots loses it, and gives it back.
func (d *Device) showStall(pair int, on bool) {
	changed, err := d.link.setStalled(pair, on)
	switch {
	case err != nil && !errors.Is(err, tap.ErrGone):
		d.log.Warn("carrier not changed", zap.Error(err))
	case changed && on:
		d.log.Warn("guest posts no buffers", zap.Int("queue", pair))
	case changed:
		d.log.Info("guest posts buffers again", zap.Int("queue", pair))
	}
}

// checkXDP pauses the merging of packets while an XDP program is attached to the TAP.
func (d *Device) checkXDP() {
	info, err := d.link.dev.Info()
	if err == nil && info.XDP != d.xdp {
		err = d.rings.PauseCoalescing(info.XDP)
	}
	switch {
	case err != nil:
		d.log.Debug("XDP program not looked for", zap.Error(err))
	case info.XDP && !d.xdp:
		d.log.Info("coalescing paused: an XDP program is attached to the interface")
	case !info.XDP && d.xdp:
		d.log.Info("coalescing goes on: the XDP program is gone")
	}
	if err == nil {
		d.xdp = info.XDP
	}
}
