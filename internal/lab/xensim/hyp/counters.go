// SPDX-License-Identifier: Apache-2.0

package hyp

import (
	"sync/atomic"

	"github.com/netbackd/netbackd/internal/lab/xensim/wire"
)

// domainCounters holds the atomic counters of which wire.Counters is a copy.
type domainCounters struct {
	grantMaps, grantUnmaps                       atomic.Uint64
	grantCopyCalls, grantCopyOps, grantCopyBytes atomic.Uint64
	grantFailures                                atomic.Uint64
	eventBinds, eventCloses, eventSends          atomic.Uint64
	setupTableCalls                              atomic.Uint64
	eventsDelivered, eventsCoalesced             atomic.Uint64
	eventsDropped                                atomic.Uint64
	grantedMaps, grantedUnmaps                   atomic.Uint64
	grantedCopies                                atomic.Uint64
}

func (c *domainCounters) snapshot() wire.Counters {
	return wire.Counters{
		GrantMaps:       c.grantMaps.Load(),
		GrantUnmaps:     c.grantUnmaps.Load(),
		GrantCopyCalls:  c.grantCopyCalls.Load(),
		GrantCopyOps:    c.grantCopyOps.Load(),
		GrantCopyBytes:  c.grantCopyBytes.Load(),
		GrantFailures:   c.grantFailures.Load(),
		EventBinds:      c.eventBinds.Load(),
		EventCloses:     c.eventCloses.Load(),
		EventSends:      c.eventSends.Load(),
		SetupTableCalls: c.setupTableCalls.Load(),
		EventsDelivered: c.eventsDelivered.Load(),
		EventsCoalesced: c.eventsCoalesced.Load(),
		EventsDropped:   c.eventsDropped.Load(),
		GrantedMaps:     c.grantedMaps.Load(),
		GrantedUnmaps:   c.grantedUnmaps.Load(),
		GrantedCopies:   c.grantedCopies.Load(),
	}
}

// CountCopy counts ops copy operations of d that moved bytes bytes. Linux makes a
// hypercall for each 16 operations (GNTDEV_COPY_BATCH).
func (d *Domain) CountCopy(ops, bytes int) {
	d.counters.grantCopyCalls.Add(uint64(ops+15) / 16)
	d.counters.grantCopyOps.Add(uint64(ops))
	d.counters.grantCopyBytes.Add(uint64(bytes))
}
