// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"errors"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/netbackd/netbackd/internal/ctrlserver"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// nodes is what the backend directory says.
type nodes struct {
	present    bool
	state      xenbus.State // Unknown if what stands there makes no sense
	behind     xenbus.State // where the vif is while state is Reconfigured; Unknown if that is not said
	front      string
	online     bool
	hotplug    string
	hasHotplug bool
	scriptErr  string // what the hotplug script says when it has failed
	rate       string
	mac        string
	bridge     string
	script     string
	mtu        string
	maxQueues  string // as published, perhaps by a predecessor
	slotRing   string // the same
	streamRing string // the same
	control    string // what control ring to offer
	claimed    bool   // see ClaimedKey
}

// plugged is whether nothing is left to do on the host's side. Where there is
// no hotplug-status nobody will say so.
func (n *nodes) plugged() bool { return !n.hasHotplug || n.hotplug == "connected" }

// readNodes reads the backend directory. A directory without a state is one
// that has been removed.
func readNodes(r reader, path string) (n nodes, err error) {
	if err := n.readState(r, path); err != nil || !n.present {
		return n, err
	}
	return n, n.readRest(r, path)
}

// readState reads the state, and whether there is one.
func (n *nodes) readState(r reader, path string) error {
	k := keyReader{r: r, dir: path}
	state, ok := k.get("state")
	if n.present = ok; k.err != nil || !ok {
		return k.err
	}
	var err error
	if n.state, err = xenbus.ParseState(state); err != nil {
		n.state = xenbus.Unknown
	}
	return nil
}

// readRest reads all but the state.
func (n *nodes) readRest(r reader, path string) error {
	k := keyReader{r: r, dir: path}
	text := func(key string) (v string) { v, _ = k.get(key); return v }
	if n.state == xenbus.Reconfigured {
		n.behind, _ = xenbus.ParseState(text(behindKey))
	}
	n.front = text("frontend")
	n.online = text("online") != "0"
	n.hotplug, n.hasHotplug = k.get("hotplug-status")
	n.scriptErr = ""
	if n.hotplug == "error" {
		n.scriptErr = text("hotplug-error")
	}
	n.rate = text("rate")
	n.mac = text("mac")
	n.bridge = text("bridge")
	n.script = text("script")
	n.mtu = text("mtu")
	n.maxQueues = text("multi-queue-max-queues")
	n.slotRing = text("feature-ctrl-ring")
	n.streamRing = text("feature-control-ring")
	n.control = text(controlKey)
	n.claimed = text(ClaimedKey) == "1"
	return k.err
}

// wrote takes note of what the backend itself has published.
func (n *nodes) wrote(list []published) {
	for _, p := range list {
		switch p.key {
		case "multi-queue-max-queues":
			n.maxQueues = p.value
		case "feature-ctrl-ring":
			n.slotRing = p.value
		case "feature-control-ring":
			n.streamRing = p.value
		}
	}
}

// offer is what the frontend names to connect to, or why that makes no sense.
type offer struct {
	rings *frontend
	err   error

	// read: it was read, for so many queues and these control rings.
	read      bool
	maxQueues int
	control   ctrlserver.Protocols
}

// observe reads what decides: what may have changed since it was read. What cannot be
// read stays to be read.
func (v *Vif) observe() error {
	n := v.nodes
	if err := n.readState(v.cfg.Store, v.cfg.Path); err != nil {
		return err
	}
	if !n.present {
		return errDirGone
	}
	if n.state == xenbus.Initialising && v.shown != xenbus.Initialising {
		v.unread |= unreadAll // the directory may be a new one
	}
	if n.state != v.shown {
		// The toolstack writes online with the state. The event may be on its way.
		v.unread |= unreadNodes
	}
	if v.unread&unreadNodes != 0 {
		if err := n.readRest(v.cfg.Store, v.cfg.Path); err != nil {
			return err
		}
		if n.front != v.nodes.front {
			v.unread |= unreadFront
		}
	}
	switch {
	case v.own == xenbus.Unknown:
		v.takeOver(n)
	case n.state == xenbus.Initialising && v.shown != xenbus.Initialising:
		// Only a toolstack writes that: it has removed the device and made
		// it again, faster than we looked.
		v.startOver(&n)
	}
	if n.state == xenbus.Closing && v.shown != xenbus.Closing && (v.own == xenbus.InitWait || v.own == xenbus.Connected) && n.online {
		v.log.Error("somebody wrote Closing into the vif's state, as the kernel's xen-netback does when it is loaded while others serve; see `netbackd check`")
	}
	v.nodes, v.shown = n, n.state
	if err := v.readFront(); err != nil {
		return err
	}
	v.unread = 0
	if v.tap != nil {
		v.followTap()
	}
	v.noticeDetach()
	return nil
}

// readFront reads the frontend's directory. Of the guest's doing only what the
// guest can do by itself follows: a state that cannot be read, or is none, is
// not an error of ours, or it would keep the toolstack from removing the vif.
func (v *Vif) readFront() error {
	front, rings := v.front, v.offer.rings
	defer func() {
		v.fresh = v.fresh || v.front != front || v.offer.rings != rings && !v.offer.rings.same(rings)
	}()
	if v.unread&unreadDomain != 0 {
		var err error
		if v.alive, err = v.domainLives(); err != nil {
			return err
		}
	}
	if dir := v.nodes.front; !v.alive || dir == "" || v.hidden {
		v.front, v.guestMTU, v.offer = xenbus.Unknown, "", offer{}
		return nil
	}
	if err := v.checkFront(); err != nil {
		v.front, v.guestMTU, v.offer = xenbus.Unknown, "", offer{}
		v.fail(err)
		return nil
	}
	// Until now no watch would have told of changes.
	blind := v.frontWatch.w == nil || v.front == xenbus.Reconfiguring && v.keyWatch.w == nil
	if err := v.watch(); err != nil {
		return err
	}
	guest := guestNodes{v.cfg.Store}
	if v.unread&unreadNodes != 0 {
		v.guestMTU, _ = guest.Read(v.nodes.front + "/mtu") // the script may have written it
	}
	if blind || v.unread&unreadFront != 0 {
		if err := v.readFrontState(guest); err != nil {
			return err
		}
	}
	if err := v.watchKey(); err != nil {
		return err
	}
	return v.readOffer()
}

// readFrontState reads the frontend's state. What the frontend offers is to be read anew
// then, whatever the state is: it may have been another one in between.
func (v *Vif) readFrontState(guest guestNodes) error {
	before := v.front
	v.front, v.offer = xenbus.Unknown, offer{}
	v.spoke, v.wrote = v.spoke || v.wrote, false
	s, err := guest.Read(v.nodes.front + "/state")
	switch {
	case errors.Is(err, xenstore.ErrNotExist):
		// A toolstack takes the whole directory. A guest that takes its state
		// away and brings it back must not make TAPs come and go; nor must one
		// that hides its directory, so that one stays gone.
		_, err := guest.Read(v.nodes.front)
		switch {
		case errors.Is(err, xenstore.ErrClosed):
			return err
		case !errors.Is(err, xenstore.ErrNotExist):
			v.front = xenbus.Closed
		default:
			v.hidden = before != xenbus.Unknown && errors.Is(err, xenstore.ErrPermission)
		}
		return nil
	case errors.Is(err, xenstore.ErrClosed):
		return err
	case err == nil:
		v.front, err = xenbus.ParseState(tidy(s))
		if err == nil && v.front == xenbus.Unknown {
			// That it is gone a guest says by being gone: else it, too, could
			// make TAPs come and go.
			err = &xenbus.KeyError{Key: "state", Value: s, Want: "a state that a frontend of a vif goes to"}
		}
	}
	if err != nil {
		v.fail(frontError(err))
		v.front = xenbus.Closed
		return nil
	}
	return nil
}

// readOffer reads what the frontend names to connect to, if it says that it is there and
// this was not read before.
func (v *Vif) readOffer() error {
	if v.front != xenbus.Connected && v.front != xenbus.Reconfiguring {
		v.offer = offer{}
		return nil
	}
	o := offer{read: true, maxQueues: v.maxQueues(), control: v.nodes.offered()}
	if was := v.offer; was.read && was.maxQueues == o.maxQueues && was.control == o.control {
		return nil
	}
	o.rings, o.err = readFrontend(v.cfg.Store, v.nodes.front, o.maxQueues, o.control)
	if errors.Is(o.err, xenstore.ErrClosed) {
		return o.err
	}
	v.offer = o
	return nil
}

// checkFront checks that the frontend's directory is one of the frontend's domain:
// what another domain writes is none of its words.
func (v *Vif) checkFront() error {
	home := xenstore.DomainPath(v.cfg.Domid)
	if dir := v.nodes.front; xenstore.CheckPath(dir) != nil || !strings.HasPrefix(dir, home+"/") {
		return &xenbus.KeyError{Key: "frontend", Value: dir, Want: "a directory below " + home}
	}
	return nil
}

// maxQueues is how many queues the frontend may have. One that has connected was
// offered them by a predecessor, which may have had other settings. A TAP made by a
// predecessor that offered one queue cannot have more.
func (v *Vif) maxQueues() int {
	n := v.cfg.MaxQueues
	if v.own == xenbus.Connected || v.own == xenbus.InitWait && (v.front == xenbus.Connected || v.front == xenbus.Reconfiguring) {
		n = max(n, v.nodes.offeredQueues())
	}
	if v.tap != nil {
		n = min(n, v.tap.MaxQueues())
	}
	return n
}

// offeredQueues is how many queues the frontend was offered; 0 if it was not.
func (n *nodes) offeredQueues() int {
	q, _ := parseUint("", n.maxQueues, 1, tap.MaxQueues)
	return int(q)
}

// domainLives asks whether the frontend's domain is still there. Its directory
// may be for a while after it is not. A driver domain may not ask; there the
// directory goes first.
func (v *Vif) domainLives() (bool, error) {
	alive, err := v.cfg.Store.IsIntroduced(v.cfg.Domid)
	if errors.Is(err, xenstore.ErrPermission) {
		return true, nil
	}
	return alive, err
}

// noticeDetach starts the frontend's grace when the toolstack wants the device
// gone: it takes online away and writes Closing into our node, both at once.
func (v *Vif) noticeDetach() {
	switch {
	case v.nodes.online:
		v.detachAt = time.Time{}
	case (v.nodes.state == xenbus.Closing || v.own == xenbus.Closing) && v.detachAt.IsZero():
		v.detachAt = time.Now().Add(v.cfg.Grace)
		v.log.Info("the toolstack detaches the vif", zap.Stringer("frontend", v.front))
	}
}

// situation is what was observed, as the state machine sees it.
func (v *Vif) situation() situation {
	s := situation{
		own: v.own, front: v.front,
		online:    v.nodes.online,
		detach:    !v.detachAt.IsZero(),
		connected: v.link != nil,
		plugged:   v.nodes.plugged(),
		live:      v.live,
		bare:      v.own == xenbus.InitWait && v.tap == nil,
		claimed:   v.claimed,
		node:      v.nodes.state,
	}
	s.unsaid = v.front == xenbus.Reconfiguring && s.own == xenbus.Connected && s.node != xenbus.Reconfigured && !s.detach && !v.reconf.over()
	s.forced = s.detach && !time.Now().Before(v.detachAt)
	s.stale = s.connected && v.offer.rings != nil && v.isStale()
	if v.tried != nil && !v.tried.same(v.attempt()) || v.reason != "" && v.barredRenewed() {
		v.tried, v.reason = nil, ""
	}
	s.quarantined = v.reason != ""
	s.refused = v.tried != nil && !s.quarantined
	return s
}

// isStale reports whether the frontend is Connected to other rings than those that
// are mapped. All that it names may be the same.
func (v *Vif) isStale() bool {
	if !v.offer.rings.sameRings(v.link.front) || v.link.renewed() {
		return true
	}
	return v.front == xenbus.Connected && v.spoke && v.cutOff()
}

// watch follows the frontend's nodes that may change: single nodes, never a
// directory the guest could fill, and the multicast request only while it
// matters. A driver domain may run out of watches. Then the vif looks less
// often, but what the toolstack does it still hears of.
func (v *Vif) watch() error {
	err := v.frontWatch.follow(v, v.nodes.front+"/state")
	if err == nil && v.link != nil {
		err = v.mcastWatch.follow(v, v.nodes.front+"/"+mcastKey)
	}
	if err != nil && !errors.Is(err, xenstore.ErrClosed) {
		v.fail(err)
		v.wakeIn(retryAfter)
		return nil
	}
	return err
}

func (v *Vif) unwatch() {
	v.frontWatch.close(v)
	v.mcastWatch.close(v)
	v.keyWatch.close(v)
}

// watch is a watch of at most one path.
type watch struct {
	w    *xenstore.Watch
	path string
}

// follow watches path and nothing else.
func (w *watch) follow(v *Vif, path string) error {
	if w.w != nil && w.path == path {
		return nil
	}
	w.close(v)
	x, err := v.cfg.Store.Watch(path)
	if err != nil {
		return err
	}
	*w = watch{x, path}
	return nil
}

func (w *watch) events() <-chan xenstore.Event {
	if w.w == nil {
		return nil
	}
	return w.w.C()
}

// heard is called after an event, with ok false if the channel was closed: the
// watch has gone with the connection to xenstore.
func (w *watch) heard(ok bool) {
	if !ok {
		*w = watch{}
	}
}

func (w *watch) close(v *Vif) {
	if w.w != nil {
		v.ask(1, func() { _ = w.w.Close() })
	}
	*w = watch{}
}
