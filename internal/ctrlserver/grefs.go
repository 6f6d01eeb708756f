// SPDX-License-Identifier: Apache-2.0

package ctrlserver

import (
	"context"
	"errors"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/pkg/ctrlring"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
)

// grefHandler carries out the messages about static grants. It maps and unmaps pages in the
// server's goroutine. The queue's worker only adds mapped pages to its table and removes
// them.
type grefHandler struct {
	ctx    context.Context // ends with the connection
	log    *zap.Logger
	source staticgrant.Source
	tables []*staticgrant.Table // one per queue; belongs to the queue's worker once conn is set
	lists  [][]netif.GrefEntry  // contents of the tables
	conn   grantTables
}

// grantTables changes the tables of the queues, in their workers. It is a [turnConn].
type grantTables interface {
	AddGrants(queue int, p *staticgrant.Prepared) (now []netif.GrefEntry, err error)
	RemoveGrants(queue int, list []netif.GrefEntry) (r *staticgrant.Removed, now []netif.GrefEntry, err error)
}

var _ ctrlring.GrefHandler = (*grefHandler)(nil)

func newGrefHandler(ctx context.Context, log *zap.Logger, source staticgrant.Source, perQueue, queues int) grefHandler {
	g := grefHandler{ctx: ctx, log: log, source: source, lists: make([][]netif.GrefEntry, queues)}
	for range queues {
		g.tables = append(g.tables, staticgrant.New(perQueue))
	}
	return g
}

// GetGrefMappingSize implements [ctrlring.GrefHandler].
func (g *grefHandler) GetGrefMappingSize(queue uint32) (uint32, netif.CtrlStatus) {
	if uint64(queue) >= uint64(len(g.tables)) {
		return 0, netif.CtrlInvalidParameter
	}
	return uint32(g.tables[queue].Limit()), netif.CtrlSuccess
}

// AddGrefMapping implements [ctrlring.GrefHandler].
func (g *grefHandler) AddGrefMapping(queue uint32, list []netif.GrefEntry) netif.CtrlStatus {
	switch {
	case uint64(queue) >= uint64(len(g.tables)):
		return netif.CtrlInvalidParameter
	case len(list) == 0:
		return netif.CtrlSuccess
	}
	p, err := g.source.Prepare(g.ctx, list)
	var now []netif.GrefEntry
	if err == nil {
		now, err = g.conn.AddGrants(int(queue), p)
	}
	if err != nil {
		g.log.Debug("static grants refused", zap.Uint32("queue", queue), zap.Error(err))
		if p != nil {
			g.logUnmap(p.Unmap())
		}
		return netif.CtrlInvalidParameter
	}
	g.lists[queue] = now
	return netif.CtrlSuccess
}

// DelGrefMapping implements [ctrlring.GrefHandler].
func (g *grefHandler) DelGrefMapping(queue uint32, list []netif.GrefEntry) (uint32, netif.CtrlStatus) {
	switch {
	case uint64(queue) >= uint64(len(g.tables)):
		return 0, netif.CtrlInvalidParameter
	case len(list) == 0:
		return 0, netif.CtrlSuccess
	}
	r, now, err := g.conn.RemoveGrants(int(queue), list)
	if err != nil {
		g.log.Debug("static grants not removed", zap.Uint32("queue", queue), zap.Error(err))
		return 0, netif.CtrlInvalidParameter
	}
	g.lists[queue] = now
	n, err := r.Unmap()
	g.logUnmap(err)
	return uint32(n), netif.CtrlSuccess
}

// logUnmap logs a failure to unmap pages.
func (g *grefHandler) logUnmap(err error) {
	if err != nil {
		g.log.Warn("unmap static grants failed", zap.Error(err))
	}
}

// restore maps the pages that a predecessor had mapped, as far as the guest still grants
// them. Data in the other pages is copied from now on.
func (g *grefHandler) restore(lists [][]netif.GrefEntry) {
	for i, t := range g.tables {
		if i >= len(lists) || len(lists[i]) == 0 {
			continue
		}
		p, err := g.source.Restore(g.ctx, lists[i])
		if err != nil {
			g.log.Warn("static grants not restored", zap.Int("queue", i), zap.Error(err))
		}
		if err := t.Commit(p); err != nil {
			g.log.Warn("static grants not restored", zap.Int("queue", i), zap.Error(err))
			g.logUnmap(p.Unmap())
		}
		g.lists[i] = t.Snapshot()
	}
}

// close unmaps all pages. Precondition: no worker uses the tables any more.
func (g *grefHandler) close() error {
	var errs []error
	for _, t := range g.tables {
		errs = append(errs, t.Close())
	}
	return errors.Join(errs...)
}
