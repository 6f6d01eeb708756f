// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/offload"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// Grants maps and copies guests' pages. *gntdev.Device is one.
type Grants interface {
	dataplane.Copier
	Map(domid xen.Domid, refs []gntdev.Ref, prot gntdev.Prot) (*gntdev.Mapping, error)
}

// Events is a handle for event channels. *evtchn.Device is one.
type Events = ctrlserver.Events

// Mapper is an open handle for mapping guests' pages. *gntdev.Device is one.
type Mapper = ctrlserver.Mapper

// Host opens what a connection needs of Xen.
type Host interface {
	// Grants is the handle that all rings are mapped and all packets copied by.
	Grants() Grants
	// OpenMapper opens another. The kernel looks through all that is mapped by a
	// handle, under a lock, to map or unmap a page: what a guest may have mapped
	// by the hundred is not to slow down others.
	OpenMapper() (Mapper, error)
	// OpenEvents opens a handle that can bind channels of one domain only.
	OpenEvents(domid xen.Domid) (Events, error)
}

// link is everything a connection holds: rings, channels, journals, and the data
// path that uses them.
type link struct {
	front    *frontend
	stamp    netif.Stamp // the connection's; see identity.go
	known    bool        // a predecessor served it, and what was kept of it is here
	served   bool        // its rings were served before, by any back end
	news     news
	stalled  []bool // what news said of each queue
	dark     bool   // the guest takes nothing, so the TAP has no carrier
	conn     *dataplane.Conn
	mappings []*gntdev.Mapping // one ring page each
	events   []Events
	ports    int // bound
	journals []*dataplane.Journal
	control  *ctrlserver.Server // nil: the frontend has no control ring
}

// connect connects to the rings that the frontend names.
func (v *Vif) connect() error {
	if v.offer.err != nil {
		return v.giveUp(v.offer.err)
	}
	if err := v.makeTap(); err != nil {
		return err
	}
	l := newLink(v.offer.rings)
	if err := v.open(l); err != nil {
		return v.notOpened(l, err)
	}
	v.link = l
	v.since, v.busySince = time.Now(), time.Time{}
	v.saveRecord()
	return v.settled()
}

// notOpened decides what follows from an error of open.
func (v *Vif) notOpened(l *link, err error) error {
	gone, bound := errors.Is(err, tap.ErrGone), v.maybeBound(err)
	if v.own == xenbus.Connected && (gone || bound || ofHost(err)) {
		// The frontend's rings are to be served on: what the journals record
		// and what waits in the TAP's queues is needed then.
		l.release(v)
	} else {
		v.discard(l)
	}
	switch {
	case gone:
		return errAgain
	case bound:
		return v.await(err)
	}
	return v.hostFails(err)
}

// maybeBound reports whether a failure may be due to a predecessor that still has
// the guest's event channels: Xen lets one port be bound once.
func (v *Vif) maybeBound(err error) bool {
	var e *evtchn.Error
	taken := v.own == xenbus.Connected && errors.As(err, &e) && e.Op == "bind" && errors.Is(err, unix.EINVAL)
	return taken && (v.busySince.IsZero() || time.Since(v.busySince) <= busyFor)
}

func newLink(f *frontend) *link {
	n := len(f.queues)
	return &link{front: f, stalled: make([]bool, n), news: news{stalled: make([]bool, n)}}
}

// open maps the frontend's rings, binds its channels and starts the data path.
// What it has opened when it fails is left to the caller.
func (v *Vif) open(l *link) error {
	f := &l.front.features
	queues := make([]dataplane.QueueConfig, len(l.front.queues))
	for i := range queues {
		if err := v.openQueue(l, i, &queues[i]); err != nil {
			return fmt.Errorf("queue %d: %w", i, err)
		}
	}
	if err := v.identify(l, queues); err != nil {
		return err
	}
	if !l.known {
		// What waits there was sent to the driver before.
		if err := v.tap.Rest(); err != nil {
			return err
		}
	}
	use := v.tap.Use
	if v.spares {
		use = v.tap.SetQueues // which closes those that are not needed
	}
	if err := use(len(queues)); err != nil {
		return err
	}
	for i := range queues {
		queues[i].Tap = v.tap.Queue(i)
	}
	v.spares = false
	v.keepQueues()
	if err := v.setOffload(f); err != nil {
		return err
	}
	if err := v.limitMTU(f.sg); err != nil {
		return err
	}
	// A guest sends its list once. If it goes on with rings that were served
	// before and the list is lost, all multicast passes rather than none.
	known := v.mcast.Keep(queues[0].Journal)
	v.mcast.SetFilter(f.mcast && (known || !l.served))
	cfg := dataplane.Config{
		Domid: v.cfg.Domid,
		Guest: offload.Guest{
			CsumIPv4: f.csumIPv4,
			CsumIPv6: f.csumIPv6,
			GSOTCPv4: f.gsoTCPv4,
			GSOTCPv6: f.gsoTCPv6,
		},
		SG:          f.sg,
		XDPHeadroom: l.front.headroom,
		RxNotify:    f.rxNotify,
		VnetHdr:     v.offload(),
		Limiter:     &v.limiter,
		Mcast:       &v.mcast,
		Drain:       v.cfg.Drain,
		Stall:       v.cfg.Stall,
		Notice:      v.noticeOf(l),
	}
	if err := v.openControl(l, queues, &cfg); err != nil {
		return err
	}
	v.inheritStall(l, queues)
	// From here on the connection is one that a successor goes on with.
	if err := l.mark(queues); err != nil {
		return err
	}
	var conn *dataplane.Conn
	var err error
	v.turn.Aside(func() { conn, err = v.cfg.Pool.Connect(cfg, queues) })
	if err != nil {
		return err
	}
	l.conn = conn
	if l.control != nil {
		l.control.Start(conn)
	}
	return nil
}

// openQueue opens what queue i needs.
func (v *Vif) openQueue(l *link, i int, q *dataplane.QueueConfig) error {
	k := &l.front.queues[i]
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
	if q.TxPage, err = page("tx", k.txGref); err != nil {
		return err
	}
	if q.RxPage, err = page("rx", k.rxGref); err != nil {
		return err
	}
	ev, err := v.cfg.Host.OpenEvents(v.cfg.Domid)
	if err != nil {
		return err
	}
	l.events = append(l.events, ev)
	bind := func(remote evtchn.Port) (evtchn.Port, error) {
		p, err := ev.BindInterdomain(v.cfg.Domid, remote)
		if err == nil {
			l.ports++
		}
		return p, err
	}
	if q.TxPort, err = bind(k.txPort); err != nil {
		return err
	}
	q.RxPort = q.TxPort
	if k.rxPort != k.txPort {
		if q.RxPort, err = bind(k.rxPort); err != nil {
			return err
		}
	}
	q.Grants, q.Events = grants, ev
	if v.cfg.RunDir == "" {
		return nil
	}
	path := v.journalPath(i)
	j, err := dataplane.OpenJournal(path)
	if err != nil {
		return err
	}
	l.journals = append(l.journals, j)
	q.Journal = j
	return nil
}

// setOffload tells the TAP what the guest takes. The kernel has one switch for
// the checksums of both IP versions; what the guest does not take of it the data
// path completes.
func (v *Vif) setOffload(f *features) error {
	if !v.offload() {
		return nil
	}
	csum := f.csumIPv4 || f.csumIPv6
	return v.tap.SetOffload(tap.Offload{
		Csum: csum,
		TSO4: csum && f.gsoTCPv4,
		TSO6: csum && f.gsoTCPv6,
	})
}

// disconnect ends the connection: no packet passes any more, no page of the
// guest is mapped, and what only this connection knew is forgotten.
func (v *Vif) disconnect() {
	if v.link == nil {
		return
	}
	l := v.link
	v.link, v.live, v.since = nil, false, time.Time{} // first: it may panic
	v.setCarrier(false)
	v.discard(l)
	v.saveRecord()
	v.mcastWatch.close(v)
	v.keyWatch.close(v)
	v.log.Info("disconnected")
}

// discard releases a link for good: nothing that was of this connection reaches
// another, neither what the host sent nor what the guest asked for.
func (v *Vif) discard(l *link) {
	// A guest that was quarantined may be let go on with the rings it has, and
	// does not know then that anything was forgotten.
	forget := v.reason == ""
	if forget {
		l.unmark()
	}
	l.release(v)
	v.mcast.Clear()
	if forget {
		v.removeJournals()
	}
	v.clearSteering(l.front)
	// The queues stay open for the next connection. Were they closed, a guest that comes
	// and goes would have them made, and the keeper told of them, each time.
	if err := v.tap.Rest(); err != nil && !errors.Is(err, tap.ErrGone) {
		v.log.Warn("tap queues", errField(err))
	}
	v.keepQueues()
}

// release gives up what the link holds, in the order in which it is safe: first
// whoever touches the pages, then the channels, then the pages. The guest may
// only learn that it has its pages back when this has returned.
func (l *link) release(v *Vif) {
	if l.control != nil {
		v.turn.Aside(l.control.Stop)
	}
	if l.conn != nil {
		v.turn.Aside(l.conn.Close)
		v.keepTotals(l.conn)
	}
	if l.control != nil {
		v.closeControl(l)
	}
	v.mcast.Keep(nil)
	for _, e := range l.events {
		if err := e.Close(); err != nil {
			v.log.Warn("close event channels", errField(err))
		}
	}
	for _, m := range l.mappings {
		if err := m.Unmap(); err != nil {
			v.log.Warn("unmap ring", errField(err))
		}
	}
	for _, j := range l.journals {
		if err := j.Close(); err != nil {
			v.log.Warn("close journal", errField(err))
		}
	}
	l.conn, l.events, l.mappings, l.journals, l.ports = nil, nil, nil, nil, 0
}
