// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/dataplane"
)

// notices collects the data plane's notices of one connection: the present state of its
// queues, and whether something has happened, but not how often. So no notice is lost, and
// they take no more memory while the vif is busy.
type notices struct {
	mu      sync.Mutex // guards all below
	breach  error      // the first breach of the ring protocol
	stalled []bool     // queues whose guest posts no rx slots
	tooBig  bool       // a packet was too big for the guest, since take was last called
	merging bool       // packets were merged, or could have been, since then
	died    error      // the packet process has ended; nil: it has not
}

// noticeHandler returns the callback of a connection, which the workers call. After
// TapGone it only wakes the vif, which then checks the TAP itself.
func (v *Vif) noticeHandler(c *connection) func(dataplane.Notice) {
	return func(n dataplane.Notice) {
		if n.Kind == dataplane.TapGone {
			v.Poke()
			return
		}
		c.notices.add(n)
		v.notice()
	}
}

// notice makes the vif handle its notices.
func (v *Vif) notice() {
	select {
	case v.notices <- struct{}{}:
	default:
	}
}

// deathHandler returns the callback for the end of the packet process of a connection.
func (v *Vif) deathHandler(c *connection) func(error) {
	return func(err error) {
		c.notices.mu.Lock()
		c.notices.died = err
		c.notices.mu.Unlock()
		v.notice()
	}
}

// dead returns the reason of the end of the packet process, or nil.
func (n *notices) dead() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.died
}

func (n *notices) add(x dataplane.Notice) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch x.Kind {
	case dataplane.Breach:
		if n.breach == nil {
			n.breach = fmt.Errorf("queue %d: %w", x.Queue, x.Err)
		}
	case dataplane.Stalled:
		n.stalled[x.Queue] = true
	case dataplane.Resumed:
		n.stalled[x.Queue] = false
	case dataplane.TooBig:
		n.tooBig = true
	case dataplane.Coalescing:
		n.merging = true
	}
}

func (n *notices) take() (stalled []bool, tooBig, merging bool, breach error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	tooBig, n.tooBig = n.tooBig, false
	merging, n.merging = n.merging, false
	return slices.Clone(n.stalled), tooBig, merging, n.breach
}

// handleNotices acts on the notices of the present connection, if there is one.
func (v *Vif) handleNotices(ctx context.Context) {
	c := v.conn
	if c == nil {
		return
	}
	if err := c.notices.dead(); err != nil {
		v.resume(err)
		return
	}
	stalled, tooBig, merging, breach := c.notices.take()
	if breach != nil {
		v.quarantine(ctx, breach)
		return
	}
	if tooBig {
		v.enforceMTU()
	}
	if merging {
		v.checkXDP(c)
	}
	for i, now := range stalled {
		switch {
		case now && !c.stalled[i]:
			v.log.Warn("guest posts no rx slots", zap.Int("queue", i))
		case !now && c.stalled[i]:
			v.log.Info("guest posts rx slots again", zap.Int("queue", i))
		}
	}
	if !slices.Equal(c.stalled, stalled) {
		c.stalled = stalled
		v.saveRecord()
	}
	// One stalled queue turns the carrier off, as with xen-netback: a flow that is
	// steered there makes no progress, and only a queue that has traffic can stall.
	if c.carrier == carrierWaiting {
		return
	}
	if now := carrierFor(stalled); now != c.carrier {
		c.carrier = now
		v.setCarrier(now == carrierOn)
	}
}

// checkXDP pauses the merging of packets while an XDP program is attached to the TAP.
func (v *Vif) checkXDP(c *connection) {
	info, err := v.tap.Info()
	if err == nil && info.XDP != c.xdp {
		err = v.link.PauseCoalescing(info.XDP)
	}
	switch {
	case err != nil:
		v.log.Debug("XDP program not looked for", zap.Error(err))
	case info.XDP && !c.xdp:
		v.log.Info("coalescing paused: an XDP program is attached to the interface")
	case !info.XDP && c.xdp:
		v.log.Info("coalescing goes on: the XDP program is gone")
	}
	if err == nil {
		c.xdp = info.XDP
	}
}
