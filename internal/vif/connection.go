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
	"github.com/netbackd/netbackd/internal/netengine"
	"github.com/netbackd/netbackd/internal/procs"
	"github.com/netbackd/netbackd/pkg/evtchn"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// connection is the vif's part of a connection. The link has the other part: rings,
// channels, journals, and the data path that uses them.
type connection struct {
	netengine.Found
	frontend *frontend
	since    time.Time // when it was made

	carrier carrier
	stalled []bool // by queue, as of the last notices
	notices notices
	xdp     bool // an XDP program is attached to the TAP, so that packets are not merged
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
	v.conn, v.busySince, v.noProcess, v.resuming = c, time.Time{}, time.Time{}, false
	v.saveRecord()
	return v.clearClaim(ctx)
}

// openFailed closes the connection after an error of open, and returns the error that
// makes the vif retry, wait or give up.
func (v *Vif) openFailed(ctx context.Context, c *connection, err error) error {
	gone, bound, dead := errors.Is(err, tap.ErrGone), v.boundByPredecessor(err), errors.Is(err, netengine.ErrDied)
	if errors.Is(err, netengine.ErrFault) {
		v.quarantine(ctx, err)
		v.discard(c)
		return errAgain
	}
	if v.served() && (gone || bound || dead || isHostError(err)) {
		// The next attempt continues with the frontend's rings, the journals and the
		// packets in the TAP's queues.
		v.closeLink(netengine.Leave)
	} else {
		v.discard(c)
	}
	switch {
	case gone:
		return errAgain
	case bound:
		return v.waitWhileBusy(err)
	case dead:
		return v.awaitProcess(ctx, err)
	}
	return v.retryOrGiveUp(ctx, err)
}

// served reports whether the frontend's rings may have been served before, by a daemon or a
// packet process that has ended.
func (v *Vif) served() bool { return v.own == xenbus.Connected || v.resuming }

// boundByPredecessor reports whether a predecessor that still has the guest's event
// channels may be the cause of a failure: Xen binds each port only once.
func (v *Vif) boundByPredecessor(err error) bool {
	var e *evtchn.Error
	taken := v.served() && errors.As(err, &e) && e.Op == "bind" && errors.Is(err, unix.EINVAL)
	return taken && (v.busySince.IsZero() || time.Since(v.busySince) <= busyFor)
}

// open has the link map the frontend's rings and bind its channels, sets up the TAP, and
// starts the service. If it fails, the caller has to close the connection.
func (v *Vif) open(c *connection) error {
	rings, err := v.rings(c)
	if err != nil {
		return err
	}
	if c.Found, err = v.link.Prepare(rings); err != nil {
		return err
	}
	if !c.Known {
		v.removeControl()
	}
	s := &netengine.Serving{Stalled: make([]bool, len(c.frontend.queues))}
	if err := v.openTapQueues(c, s); err != nil {
		return err
	}
	v.configure(c, s)
	v.adoptStall(c, s.Stalled)
	return v.link.Start(s)
}

// rings names the frontend's rings for the link, and opens their journals.
func (v *Vif) rings(c *connection) (*netengine.Rings, error) {
	f := c.frontend
	r := &netengine.Rings{Queues: f.rings(), Notice: v.noticeHandler(c), Died: v.deathHandler(c), Group: v.nodes.group}
	if f.ctrl.there {
		r.Control = &ctrlserver.ControlRing{Gref: f.ctrl.gref, Port: f.ctrl.port}
	}
	if v.cfg.RunDir == "" {
		return r, nil
	}
	for i := range f.queues {
		fd, err := dataplane.OpenJournalFile(v.journalPath(i))
		if err != nil {
			procs.CloseFiles(r.Journals)
			return nil, fmt.Errorf("queue %d: %w", i, err)
		}
		r.Journals = append(r.Journals, fd)
	}
	return r, nil
}

// openTapQueues assigns a TAP queue to each queue, and configures the TAP for the
// frontend.
func (v *Vif) openTapQueues(c *connection, s *netengine.Serving) error {
	if !c.Known {
		// The packets in the queues were sent to the earlier driver: drop them.
		if err := v.tap.Rest(); err != nil {
			return err
		}
	}
	use := v.tap.Use
	if v.spareQueues {
		use = v.tap.SetQueues // also closes the unused ones
	}
	if err := use(len(c.frontend.queues)); err != nil {
		return err
	}
	for i := range c.frontend.queues {
		s.Taps = append(s.Taps, v.tap.Queue(i))
	}
	v.spareQueues = false
	v.storeQueues()
	if !c.Known || !c.frontend.ctrl.there || v.cfg.NoBPF != nil {
		if err := v.dropSteering(); err != nil {
			return err
		}
	}
	f := &c.frontend.features
	if err := v.setOffload(f); err != nil {
		return err
	}
	return v.limitMTU(f.sg)
}

// configure fills in the configuration of the service, except for the parts of the TAP's
// queues.
func (v *Vif) configure(c *connection, s *netengine.Serving) {
	f := &c.frontend.features
	if v.cfg.Coalesce {
		info, err := v.tap.Info() // if it fails, a later look may not
		c.xdp = err == nil && info.XDP
	}
	s.Guest, s.SG, s.RxNotify, s.Mcast = f.guest, f.sg, f.rxNotify, f.mcast
	s.VnetHdr, s.Headroom = v.offload(), c.frontend.headroom
	s.Coalesce, s.Paused = dataplane.CoalesceIf(v.cfg.Coalesce, tap.TakesUSO()), c.xdp
	s.Drain, s.Stall = v.cfg.Drain, v.cfg.Stall
	s.Control = v.controlConfig(c.frontend)
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
		v.closeLink(netengine.Forget)
		v.removeJournals()
	} else {
		v.closeLink(netengine.Drop)
	}
	v.clearSteering(c.frontend)
	// The queues stay open for the next connection. Otherwise a guest that reconnects all
	// the time would cause new queues and messages to the keeper each time.
	if err := v.tap.Rest(); err != nil && !errors.Is(err, tap.ErrGone) {
		v.log.Warn("TAP queues not put to rest", zap.Error(err))
	}
	v.storeQueues()
}

// closeLink ends the link's connection and keeps its counters.
func (v *Vif) closeLink(how netengine.Ending) {
	n := v.link.Close(how)
	netengine.AddCounters(&v.totals, &n)
}
