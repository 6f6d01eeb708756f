// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/netbackd/netbackd/pkg/dataplane"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/offload"
	"github.com/netbackd/netbackd/pkg/tap"
)

// Grants maps and copies guests' pages. *gntdev.Device is one.
type Grants interface {
	dataplane.Copier
	Map(domid uint16, refs []gntdev.Ref, prot gntdev.Prot) (*gntdev.Mapping, error)
}

// Events is a handle for event channels. *evtchn.Device is one.
type Events interface {
	dataplane.Events
	BindInterdomain(domid uint16, remote evtchn.Port) (evtchn.Port, error)
	Close() error
}

// Host opens what a connection needs of Xen.
type Host interface {
	Grants() Grants
	// OpenEvents opens a handle that can bind channels of one domain only.
	OpenEvents(domid uint16) (Events, error)
}

// link is everything a connection holds: rings, channels, journals, and the data
// path that uses them.
type link struct {
	front    *Frontend
	conn     *dataplane.Conn
	mappings []*gntdev.Mapping
	events   []Events
	journals []*dataplane.Journal
	paths    []string // of the journals
}

// connect maps the frontend's rings, binds its channels and starts the data
// path. On failure nothing of it is left.
func (v *Vif) connect(f *Frontend) (l *link, err error) {
	l = &link{front: f}
	defer func() {
		if err != nil {
			l.release(v)
			l = nil
		}
	}()
	if err := v.tap.SetQueues(len(f.Queues)); err != nil {
		return l, err
	}
	if err := v.setOffload(&f.Features); err != nil {
		return l, err
	}
	if !f.Features.SG {
		if info, err := v.tap.Info(); err == nil && info.MTU > defaultMTU {
			if err := v.tap.SetMTU(defaultMTU); err != nil {
				return l, err
			}
		}
	}
	queues := make([]dataplane.QueueConfig, len(f.Queues))
	for i := range f.Queues {
		if err := v.openQueue(l, i, &queues[i]); err != nil {
			return l, fmt.Errorf("queue %d: %w", i, err)
		}
	}
	v.mcast.SetFilter(f.Features.Mcast)
	l.conn, err = v.cfg.Pool.Connect(dataplane.Config{
		Domid: v.cfg.Domid,
		Guest: offload.Guest{
			CsumIPv4: f.Features.CsumIPv4,
			CsumIPv6: f.Features.CsumIPv6,
			GSOTCPv4: f.Features.GSOTCPv4,
			GSOTCPv6: f.Features.GSOTCPv6,
		},
		SG:       f.Features.SG,
		RxNotify: f.Features.RxNotify,
		VnetHdr:  v.cfg.Offload,
		Limiter:  &v.limiter,
		Mcast:    &v.mcast,
		Drain:    v.cfg.Drain,
		Stall:    v.cfg.Stall,
		Notice:   v.noticeOf(l),
	}, queues)
	return l, err
}

// openQueue opens what queue i needs.
func (v *Vif) openQueue(l *link, i int, q *dataplane.QueueConfig) error {
	k := &l.front.Queues[i]
	grants := v.cfg.Host.Grants()
	page := func(what string, ref gntdev.Ref) ([]byte, error) {
		m, err := grants.Map(v.cfg.Domid, []gntdev.Ref{ref}, gntdev.ReadWrite)
		if err != nil {
			return nil, fmt.Errorf("map %s ring: %w", what, err)
		}
		l.mappings = append(l.mappings, m)
		return m.Bytes(), nil
	}
	var err error
	if q.TxPage, err = page("tx", k.TxGref); err != nil {
		return err
	}
	if q.RxPage, err = page("rx", k.RxGref); err != nil {
		return err
	}
	ev, err := v.cfg.Host.OpenEvents(v.cfg.Domid)
	if err != nil {
		return err
	}
	l.events = append(l.events, ev)
	if q.TxPort, err = ev.BindInterdomain(v.cfg.Domid, k.TxPort); err != nil {
		return err
	}
	q.RxPort = q.TxPort
	if k.RxPort != k.TxPort {
		if q.RxPort, err = ev.BindInterdomain(v.cfg.Domid, k.RxPort); err != nil {
			return err
		}
	}
	q.Grants, q.Events, q.Tap = grants, ev, v.tap.Queue(i)
	if v.cfg.RunDir == "" {
		return nil
	}
	path := v.journalPath(i)
	j, err := dataplane.OpenJournal(path, k.TxGref, k.RxGref)
	if err != nil {
		return err
	}
	l.journals = append(l.journals, j)
	l.paths = append(l.paths, path)
	q.Journal = j
	return nil
}

func (v *Vif) journalPath(queue int) string {
	return filepath.Join(v.cfg.RunDir, fmt.Sprintf("ring-%d.%d-%d", v.cfg.Domid, v.cfg.Devid, queue))
}

// setOffload tells the TAP what the guest takes. The kernel has one switch for
// the checksums of both IP versions; what the guest does not take of it the data
// path completes.
func (v *Vif) setOffload(f *FrontFeatures) error {
	if !v.cfg.Offload {
		return nil
	}
	csum := f.CsumIPv4 || f.CsumIPv6
	return v.tap.SetOffload(tap.Offload{
		Csum: csum,
		TSO4: csum && f.GSOTCPv4,
		TSO6: csum && f.GSOTCPv6,
	})
}

// release gives up what the link holds, in the order in which it is safe: first
// whoever touches the pages, then the channels, then the pages. The guest may
// only learn that it has its pages back when this has returned.
func (l *link) release(v *Vif) {
	if l.conn != nil {
		l.conn.Close()
		v.keepTotals(l.conn)
	}
	for _, e := range l.events {
		_ = e.Close()
	}
	for _, m := range l.mappings {
		if err := m.Unmap(); err != nil {
			v.log.Warn("unmap ring", errField(err))
		}
	}
	for _, j := range l.journals {
		_ = j.Close()
	}
	l.conn, l.events, l.mappings, l.journals = nil, nil, nil, nil
}

// forget removes the journals: the connection is over for good, not handed to
// a successor.
func (l *link) forget() {
	for _, p := range l.paths {
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			continue
		}
	}
	l.paths = nil
}
