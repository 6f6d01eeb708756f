// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"fmt"
	"slices"
	"sync"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/dataplane"
)

// news is what the data plane has noticed of one connection. It holds how
// things are, or that something happened, not how often. So however long the vif does
// not listen nothing is lost and nothing piles up.
type news struct {
	mu      sync.Mutex // guards all below
	breach  error      // the first
	stalled []bool     // by queue
	tooBig  bool       // since the vif listened last
}

// noticeOf makes the callback of a connection, which runs in the workers. That
// the TAP is gone the vif finds by looking.
func (v *Vif) noticeOf(l *link) func(dataplane.Notice) {
	return func(n dataplane.Notice) {
		if n.Kind == dataplane.TapGone {
			v.Poke()
			return
		}
		l.news.put(n)
		select {
		case v.news <- struct{}{}:
		default:
		}
	}
}

func (n *news) put(x dataplane.Notice) {
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
	}
}

func (n *news) get() (stalled []bool, tooBig bool, breach error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	tooBig, n.tooBig = n.tooBig, false
	return slices.Clone(n.stalled), tooBig, n.breach
}

// hear acts on the news of the connection there is. Of others there is none.
func (v *Vif) hear() {
	l := v.link
	if l == nil {
		return
	}
	stalled, tooBig, breach := l.news.get()
	if breach != nil {
		v.quarantine(breach)
		return
	}
	if tooBig {
		v.refuseMTU()
	}
	for i, now := range stalled {
		switch {
		case now && !l.stalled[i]:
			v.log.Warn("guest gives no rx slots", zap.Int("queue", i))
		case !now && l.stalled[i]:
			v.log.Info("guest gives rx slots again", zap.Int("queue", i))
		}
	}
	if !slices.Equal(l.stalled, stalled) {
		l.stalled = stalled
		v.saveRecord()
	}
	// One queue is enough, as for xen-netback: a flow that steering puts there
	// gets nowhere, and only a queue that has traffic can be seen to stall.
	if dark := slices.Contains(stalled, true); v.live && dark != l.dark {
		l.dark = dark
		v.setCarrier(!dark)
	}
}
