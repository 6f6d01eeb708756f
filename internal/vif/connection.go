// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/gntdev"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// Grants maps and copies guests' pages. *gntdev.Device implements it.
type Grants interface {
	dataplane.Copier
	Map(domid xen.Domid, refs []xen.Gref, prot gntdev.Prot) (*gntdev.Mapping, error)
}

// Events is a handle for event channels. *evtchn.Device implements it.
type Events = ctrlserver.Events

// Mapper is an open handle for mapping guests' pages. *gntdev.Device implements it.
type Mapper = ctrlserver.Mapper

// Host opens the Xen devices for a connection.
type Host interface {
	// Grants returns the handle that maps all rings and copies all packets.
	Grants() Grants
	// OpenMapper opens another handle. To map or unmap a page, the kernel searches all
	// mappings of the handle, under a lock. So the static grants of a vif, of which a
	// guest may have hundreds, use a handle of their own and slow down no other guest.
	OpenMapper() (Mapper, error)
	// OpenEvents opens a handle that can bind channels of one domain only.
	OpenEvents(domid xen.Domid) (Events, error)
}

// connection holds the resources of a connected vif: rings, channels, journals, and the
// data path that uses them.
type connection struct {
	frontend *frontend
	stamp    netif.Stamp // see identity.go
	known    bool        // a predecessor served this connection, and its recorded settings are in force
	served   bool        // a back end has served these rings before
	since    time.Time   // when it was made

	carrier carrier
	stalled []bool // by queue, as of the last notices
	notices notices
	xdp     bool // an XDP program is attached to the TAP, so that packets are not merged

	data     *dataplane.Conn
	mappings []*gntdev.Mapping // one ring page each
	events   []Events          // one per queue
	ports    int               // bound event channels
	journals []*dataplane.Journal
	control  *ctrlserver.Server // nil: the frontend has no control ring
}

// carrier is the state of the TAP's carrier while a vif is connected.
type carrier uint8

const (
	carrierWaiting carrier = iota // not set yet: the hotplug script has not ended
	carrierOn                     // packets pass
	carrierOff                    // the guest posts no rx slots on one or more queues
)

// carrierFor returns the carrier of a vif that packets may pass.
func carrierFor(stalled []bool) carrier {
	// A guest that posted no rx slots for a predecessor may still post none.
	if slices.Contains(stalled, true) {
		return carrierOff
	}
	return carrierOn
}

func newConnection(f *frontend) *connection {
	n := len(f.queues)
	return &connection{frontend: f, stalled: make([]bool, n), notices: notices{stalled: make([]bool, n)}}
}

// connect connects to the rings that the frontend names.
func (v *Vif) connect(ctx context.Context) error {
	if v.guest.offer.err != nil {
		return v.giveUp(ctx, v.guest.offer.err)
	}
	if err := v.ensureTap(ctx); err != nil {
		return err
	}
	c := newConnection(v.guest.offer.frontend)
	if err := v.open(c); err != nil {
		return v.openFailed(ctx, c, err)
	}
	c.since = time.Now()
	v.conn, v.busySince = c, time.Time{}
	v.saveRecord()
	return v.clearClaim(ctx)
}

// openFailed closes the connection after an error of open, and returns the error that
// makes the vif retry, wait or give up.
func (v *Vif) openFailed(ctx context.Context, c *connection, err error) error {
	gone, bound := errors.Is(err, tap.ErrGone), v.boundByPredecessor(err)
	if v.own == xenbus.Connected && (gone || bound || isHostError(err)) {
		// The next attempt continues with the frontend's rings, the journals and the
		// packets in the TAP's queues.
		c.close(v)
	} else {
		v.discard(c)
	}
	switch {
	case gone:
		return errAgain
	case bound:
		return v.waitWhileBusy(err)
	}
	return v.retryOrGiveUp(ctx, err)
}

// boundByPredecessor reports whether a predecessor that still has the guest's event
// channels may be the cause of a failure: Xen binds each port only once.
func (v *Vif) boundByPredecessor(err error) bool {
	var e *evtchn.Error
	taken := v.own == xenbus.Connected && errors.As(err, &e) && e.Op == "bind" && errors.Is(err, unix.EINVAL)
	return taken && (v.busySince.IsZero() || time.Since(v.busySince) <= busyFor)
}

// open maps the frontend's rings, binds its channels and starts the data path. If it
// fails, the caller has to close c.
func (v *Vif) open(c *connection) error {
	queues := make([]dataplane.QueueConfig, len(c.frontend.queues))
	for i := range queues {
		if err := v.openQueue(c, i, &queues[i]); err != nil {
			return fmt.Errorf("queue %d: %w", i, err)
		}
	}
	if err := v.identify(c, queues); err != nil {
		return err
	}
	if err := v.openTapQueues(c, queues); err != nil {
		return err
	}
	// A guest sends its multicast list once. If it continues with rings that were served
	// before and the list is lost, the vif passes all multicast packets.
	known := v.mcast.Keep(queues[0].Journal)
	v.mcast.SetFilter(c.frontend.features.mcast && (known || !c.served))
	cfg := v.dataplaneConfig(c)
	if err := v.openControl(c, queues, &cfg); err != nil {
		return err
	}
	v.adoptStall(c, queues)
	// From here on a successor can continue this connection.
	if err := c.writeStamps(queues); err != nil {
		return err
	}
	var err error
	v.work.Turn().Aside(func() { c.data, err = v.cfg.Pool.Connect(cfg, queues) })
	if err != nil {
		c.data = nil
		return err
	}
	if c.control != nil {
		c.control.Start(c.data)
	}
	return nil
}

// openTapQueues assigns a TAP queue to each queue, and configures the TAP for the
// frontend.
func (v *Vif) openTapQueues(c *connection, queues []dataplane.QueueConfig) error {
	if !c.known {
		// The packets in the queues were sent to the earlier driver: drop them.
		if err := v.tap.Rest(); err != nil {
			return err
		}
	}
	use := v.tap.Use
	if v.spareQueues {
		use = v.tap.SetQueues // also closes the unused ones
	}
	if err := use(len(queues)); err != nil {
		return err
	}
	for i := range queues {
		queues[i].Tap = v.tap.Queue(i)
	}
	v.spareQueues = false
	v.storeQueues()
	f := &c.frontend.features
	if err := v.setOffload(f); err != nil {
		return err
	}
	return v.limitMTU(f.sg)
}

// dataplaneConfig returns the configuration of the data path, except for the control
// ring's part.
func (v *Vif) dataplaneConfig(c *connection) dataplane.Config {
	f := &c.frontend.features
	if v.cfg.Coalesce {
		info, err := v.tap.Info() // if it fails, a later look may not
		c.xdp = err == nil && info.XDP
	}
	return dataplane.Config{
		Domid:       v.cfg.ID.Domid,
		Guest:       f.guest,
		SG:          f.sg,
		XDPHeadroom: c.frontend.headroom,
		RxNotify:    f.rxNotify,
		VnetHdr:     v.offload(),
		Coalesce:    dataplane.CoalesceIf(v.cfg.Coalesce, tap.TakesUSO()),
		Paused:      c.xdp,
		Limiter:     &v.limiter,
		Mcast:       &v.mcast,
		Drain:       v.cfg.Drain,
		Stall:       v.cfg.Stall,
		Notice:      v.noticeHandler(c),
	}
}

// openQueue maps the rings of queue i, binds its channels and opens its journal.
func (v *Vif) openQueue(c *connection, i int, q *dataplane.QueueConfig) error {
	k := &c.frontend.queues[i]
	grants := v.cfg.Host.Grants()
	page := func(what string, ref xen.Gref) ([]byte, error) {
		m, err := grants.Map(v.cfg.ID.Domid, []xen.Gref{ref}, gntdev.ReadWrite)
		if err != nil {
			return nil, fmt.Errorf("map %s ring: %w", what, err)
		}
		c.mappings = append(c.mappings, m)
		return m.Bytes(), nil
	}
	var err error
	if q.TxPage, err = page("tx", k.txGref); err != nil {
		return err
	}
	if q.RxPage, err = page("rx", k.rxGref); err != nil {
		return err
	}
	ev, err := v.cfg.Host.OpenEvents(v.cfg.ID.Domid)
	if err != nil {
		return err
	}
	c.events = append(c.events, ev)
	bind := func(remote evtchn.Port) (evtchn.Port, error) {
		p, err := ev.BindInterdomain(v.cfg.ID.Domid, remote)
		if err == nil {
			c.ports++
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
	j, err := dataplane.OpenJournal(v.journalPath(i))
	if err != nil {
		return err
	}
	c.journals = append(c.journals, j)
	q.Journal = j
	return nil
}

// disconnect ends the connection. It stops the data path, unmaps all pages of the guest,
// and drops the state of the connection.
func (v *Vif) disconnect() {
	c := v.conn
	if c == nil {
		return
	}
	v.conn = nil // first: the calls below may panic
	v.setCarrier(false)
	v.discard(c)
	v.saveRecord()
	v.mcastWatch.Close(v.work)
	v.headroomWatch.Close(v.work)
	v.log.Info("disconnected")
}

// discard closes a connection that will not continue. Neither the host's packets nor the
// guest's settings pass on to the next connection.
func (v *Vif) discard(c *connection) {
	// A quarantined guest may be allowed to continue with its rings. It could not know
	// that the stamps and journals were removed, so these stay.
	forget := v.block.phase() != blockQuarantined
	if forget {
		c.clearStamps()
	}
	c.close(v)
	v.mcast.Clear()
	if forget {
		v.removeJournals()
	}
	v.clearSteering(c.frontend)
	// The queues stay open for the next connection. Otherwise a guest that reconnects all
	// the time would cause new queues and messages to the keeper each time.
	if err := v.tap.Rest(); err != nil && !errors.Is(err, tap.ErrGone) {
		v.log.Warn("TAP queues not put to rest", zap.Error(err))
	}
	v.storeQueues()
}

// close closes the connection in a safe order: first the users of the pages (control ring
// and data path), then the channels, then the mappings. Only then may the guest learn that
// its pages are free.
func (c *connection) close(v *Vif) {
	warn := func(what string, err error) {
		if err != nil {
			v.log.Warn(what, zap.Error(err))
		}
	}
	if c.control != nil {
		v.work.Turn().Aside(c.control.Stop)
	}
	if c.data != nil {
		v.work.Turn().Aside(c.data.Close)
		v.addTotals(c.data)
	}
	if c.control != nil {
		warn("close control ring failed", c.control.Close())
	}
	v.mcast.Keep(nil)
	for _, e := range c.events {
		warn("close event channels failed", e.Close())
	}
	for _, m := range c.mappings {
		warn("unmap ring failed", m.Unmap())
	}
	for _, j := range c.journals {
		warn("close journal failed", j.Close())
	}
	c.data, c.control, c.events, c.mappings, c.journals, c.ports = nil, nil, nil, nil, nil, 0
}
