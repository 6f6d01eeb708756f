// SPDX-License-Identifier: Apache-2.0

package netengine

import (
	"errors"
	"fmt"

	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/procs"
	"github.com/netbackd/netbackd/internal/steer"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/xen"
)

// Prepare implements [Link].
func (l *link) Prepare(r *Rings) (Found, error) {
	defer procs.CloseFiles(r.Journals) // a mapping stays
	l.Close(Drop)                      // what a panic has left
	c := &connection{rings: *r, queues: make([]dataplane.QueueConfig, len(r.Queues))}
	l.conn = c
	for i := range c.queues {
		if err := l.openQueue(c, i); err != nil {
			return Found{}, fmt.Errorf("queue %d: %w", i, err)
		}
	}
	if err := l.identify(c); err != nil {
		return Found{}, err
	}
	return Found{Stamp: c.stamp, Known: c.known, Served: c.served}, nil
}

// openQueue maps the rings of queue i, binds its channels and maps its journal.
func (l *link) openQueue(c *connection, i int) error {
	k, q := &c.rings.Queues[i], &c.queues[i]
	grants := l.host.Grants()
	page := func(what string, ref xen.Gref) ([]byte, error) {
		m, err := grants.Map(l.cfg.Domid, []xen.Gref{ref}, gntdev.ReadWrite)
		if err != nil {
			return nil, fmt.Errorf("map %s ring: %w", what, err)
		}
		c.mappings = append(c.mappings, m)
		return m.Bytes(), nil
	}
	var err error
	if q.TxPage, err = page("tx", k.TxGref); err != nil {
		return err
	}
	if q.RxPage, err = page("rx", k.RxGref); err != nil {
		return err
	}
	ev, err := l.host.OpenEvents(l.cfg.Domid)
	if err != nil {
		return err
	}
	c.events = append(c.events, ev)
	bind := func(remote evtchn.Port) (evtchn.Port, error) {
		p, err := ev.BindInterdomain(l.cfg.Domid, remote)
		if err == nil {
			c.ports++
		}
		return p, err
	}
	if q.TxPort, err = bind(k.TxPort); err != nil {
		return err
	}
	q.RxPort = q.TxPort
	if k.RxPort != k.TxPort {
		if q.RxPort, err = bind(k.RxPort); err != nil {
			return err
		}
	}
	q.Grants, q.Events = grants, ev
	if len(c.rings.Journals) == 0 {
		return nil
	}
	j, err := dataplane.MapJournal(c.rings.Journals[i])
	if err != nil {
		return err
	}
	c.journals = append(c.journals, j)
	q.Journal = j
	return nil
}

// Start implements [Link].
func (l *link) Start(s *Serving) error {
	c := l.conn
	for i := range c.queues {
		c.queues[i].Tap, c.queues[i].Stalled = s.Taps[i], s.Stalled[i]
	}
	// A guest sends its multicast list once. If it continues with rings that were served
	// before and the list is lost, the vif passes all multicast packets.
	known := l.mcast.Keep(c.queues[0].Journal)
	l.mcast.SetFilter(s.Mcast && (known || !c.served))
	cfg := l.dataplaneConfig(s)
	if s.Control != nil {
		if err := l.openControl(c, s.Control, &cfg); err != nil {
			return err
		}
	}
	// From here on a successor can continue this connection.
	if err := c.writeStamps(); err != nil {
		return err
	}
	var err error
	l.cfg.Turn.Aside(func() { c.data, err = l.pool.Connect(cfg, c.queues) })
	if err != nil {
		c.data = nil
		return err
	}
	if c.control != nil {
		c.control.Start(c.data)
	}
	return nil
}

// dataplaneConfig returns the configuration of the data path, except for the control
// ring's part.
func (l *link) dataplaneConfig(s *Serving) dataplane.Config {
	return dataplane.Config{
		Domid:       l.cfg.Domid,
		Name:        l.cfg.Name,
		Guest:       s.Guest,
		SG:          s.SG,
		XDPHeadroom: s.Headroom,
		RxNotify:    s.RxNotify,
		VnetHdr:     s.VnetHdr,
		Coalesce:    s.Coalesce,
		Paused:      s.Paused,
		Limiter:     &l.limiter,
		Weight:      l.weight,
		Mcast:       &l.mcast,
		Drain:       s.Drain,
		Stall:       s.Stall,
		Notice:      l.conn.rings.Notice,
	}
}

// openControl opens the frontend's control ring. It sets the tables of static grants in
// the queues, and the hash of packets in cfg.
func (l *link) openControl(c *connection, s *Control, cfg *dataplane.Config) error {
	mapper, err := l.host.OpenMapper()
	if err != nil {
		return fmt.Errorf("control ring: %w", err)
	}
	events, err := l.host.OpenEvents(l.cfg.Domid)
	if err != nil {
		return fmt.Errorf("control ring: %w", errors.Join(err, mapper.Close()))
	}
	steering := s.Steering
	if steering == nil && s.NoBPF == nil {
		steering = steer.NewKernel(s.SetSteering)
	}
	control, err := ctrlserver.Open(ctrlserver.Config{
		Domid:      l.cfg.Domid,
		Connection: ctrlserver.Connection{Stamp: c.stamp, Queues: c.rings.Queues, Control: *c.rings.Control},
		Offered:    s.Offered,
		Known:      c.known, Served: c.served,
		StaticGrants: ctrlserver.StaticGrants{PerQueue: s.StaticGrants, Budget: l.cfg.GrantBudget},
		Steering:     steering, NoBPF: s.NoBPF,
		Records: s.Records, Guest: l.cfg.Guest, Log: l.cfg.Log,
	}, mapper, events)
	if err != nil {
		return err
	}
	c.control = control
	if steering != nil && len(c.queues) > 1 && !control.Steers() {
		// The guest's settings, not the TAP's, are those that a predecessor recorded.
		if err := s.SetSteering(-1); err != nil {
			return err
		}
	}
	for i := range c.queues {
		c.queues[i].Static = control.Table(i)
	}
	cfg.OneWorker = len(c.queues) > 1 && s.NoBPF != nil
	cfg.Hash = control.PacketHash()
	return nil
}

// Close implements [Link]. It closes the connection in a safe order: first the users of the
// pages (control ring and data path), then the channels, then the mappings. Only then may
// the guest learn that its pages are free.
func (l *link) Close(how Ending) (sum [dataplane.NumCounters]uint64) {
	c := l.conn
	if c == nil {
		return sum
	}
	l.conn = nil // first: the calls below may panic
	if how == Forget {
		c.clearStamps()
	}
	if c.control != nil {
		l.cfg.Turn.Aside(c.control.Stop)
	}
	if c.data != nil {
		l.cfg.Turn.Aside(c.data.Close)
	}
	sum = c.counters()
	if c.control != nil {
		l.warn("close control ring failed", c.control.Close())
	}
	l.mcast.Keep(nil)
	for _, e := range c.events {
		l.warn("close event channels failed", e.Close())
	}
	for _, m := range c.mappings {
		l.warn("unmap ring failed", m.Unmap())
	}
	for _, j := range c.journals {
		l.warn("close journal failed", j.Close())
	}
	if how != Leave {
		l.mcast.Clear()
	}
	return sum
}
