// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/pkg/ctrlring"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/staticgrant"
)

// grefHandler carries out what a frontend wants of static grants. Mapping is
// done here, in the control ring's goroutine; the queue's worker only puts in and
// takes out what is mapped.
type grefHandler struct {
	ctx    context.Context // ends with the connection
	log    *zap.Logger
	source staticgrant.Source
	tables []*staticgrant.Table // one per queue; its worker's once conn is there
	lists  [][]netif.GrefEntry  // what is in them
	conn   asideConn
}

var _ ctrlring.GrefHandler = (*grefHandler)(nil)

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
		g.log.Debug("static grants refused", zap.Uint32("queue", queue), errField(err))
		if p != nil {
			g.warn(p.Unmap())
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
		g.log.Debug("static grants not removed", zap.Uint32("queue", queue), errField(err))
		return 0, netif.CtrlInvalidParameter
	}
	g.lists[queue] = now
	n, err := r.Unmap()
	g.warn(err)
	return uint32(n), netif.CtrlSuccess
}

func (g *grefHandler) warn(err error) {
	if err != nil {
		g.log.Warn("unmap static grants", errField(err))
	}
}

// restore maps what a predecessor had mapped, as far as the guest still grants
// it. What is lost is copied from now on, like all that is no static grant.
func (g *grefHandler) restore(lists [][]netif.GrefEntry) {
	for i, t := range g.tables {
		if i >= len(lists) || len(lists[i]) == 0 {
			continue
		}
		p, err := g.source.Restore(g.ctx, lists[i])
		if err != nil {
			g.log.Warn("static grants", zap.Int("queue", i), errField(err))
		}
		if err := t.Commit(p); err != nil {
			g.log.Warn("static grants", zap.Int("queue", i), errField(err))
			g.warn(p.Unmap())
		}
		g.lists[i] = t.Snapshot()
	}
}

// close unmaps everything. No worker uses the tables any more.
func (g *grefHandler) close() {
	for _, t := range g.tables {
		g.warn(t.Close())
	}
}
