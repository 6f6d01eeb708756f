// SPDX-License-Identifier: Apache-2.0

package vif

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/netengine"
	"github.com/netbackd/netbackd/pkg/netif"
	"github.com/netbackd/netbackd/pkg/tap"
	"github.com/netbackd/netbackd/pkg/xenbus"
	"github.com/netbackd/netbackd/pkg/xenstore"
	"github.com/netbackd/netbackd/pkg/xentest"
)

// TestConnectFails: when a connection fails, the guest sees Closing and Closed, the
// error node has the reason, nothing is left of it, nothing is tried twice, and the
// next attempt is not affected.
func TestConnectFails(t *testing.T) {
	for _, tt := range []struct {
		name  string
		keys  []string // wrong keys
		spoil func(w *world)
		mend  func(w *world)
		error string // part of it
		maps  int    // calls it may take
	}{
		{name: "tx gref not granted", keys: []string{"queue-0/tx-ring-ref", "4095"}, error: "22 queue 0: map tx ring: gntdev: map: domid 7 gref 4095 (#0): GNTST_bad_gntref: invalid argument", maps: 1},
		{name: "rx gref not granted", keys: []string{"queue-1/rx-ring-ref", "4095"}, error: "22 queue 1: map rx ring: gntdev: map: domid 7 gref 4095", maps: 4},
		{name: "port not offered", keys: []string{"queue-1/event-channel-tx", "77"}, error: "22 queue 1: evtchn: bind: domid 7: port 77: invalid argument", maps: 4},
		{name: "second port not offered", keys: []string{"queue-1/event-channel-rx", "77"}, error: "port 77", maps: 4},
		{name: "tx gref missing", keys: []string{"queue-1/tx-ring-ref", "-"}, error: `2 frontend key "queue-1/tx-ring-ref" is missing, want a number from 0 to 4294967295`},
		{name: "channel missing", keys: []string{"queue-0/event-channel-tx", "-"}, error: `2 frontend key "queue-0/event-channel" is missing`},
		{name: "no queues", keys: []string{"multi-queue-num-queues", "0"}, error: `22 frontend key "multi-queue-num-queues" is "0", want a number from 1 to 8`},
		{name: "too many queues", keys: []string{"multi-queue-num-queues", "9"}, error: `is "9", want a number from 1 to 8`},
		{name: "very many queues", keys: []string{"multi-queue-num-queues", "4294967296"}, error: `is "4294967296", want a number from 1 to 8`},
		{name: "less than no queues", keys: []string{"multi-queue-num-queues", "-1"}, error: `is "-1", want a number from 1 to 8`},
		{name: "queues that are no number", keys: []string{"multi-queue-num-queues", "many"}, error: `is "many", want a number from 1 to 8`},
		{name: "page flipping", keys: []string{"request-rx-copy", "-"}, error: `2 frontend key "request-rx-copy" is missing, want 1: page flipping is not supported`},
		{name: "feature that is neither 0 nor 1", keys: []string{"feature-sg", "yes"}, error: `22 frontend key "feature-sg" is "yes", want 0 or 1`},
		{name: "ring out of bounds from the start", spoil: func(w *world) { w.tx[1].SetReqProd(netif.TxRingSize + 1) }, error: netif.ErrOverflow.Error(), maps: 4},
		{name: "no event channel device", spoil: func(w *world) { w.host.Intercept(failNth(xentest.OpOpenEvtchn, 2, unix.EMFILE)) },
			mend: func(w *world) { w.host.Intercept(nil) }, error: "24 queue 1: evtchn: open: too many open files", maps: 4},
		{name: "out of memory", spoil: func(w *world) { w.host.Intercept(failNth(xentest.OpMap, 3, unix.ENOMEM)) },
			mend: func(w *world) { w.host.Intercept(nil) }, error: "12 queue 1: map tx ring", maps: 3},
		{name: "journal cannot be written", spoil: func(w *world) { w.must(os.MkdirAll(filepath.Join(w.cfg.RunDir, "ring-7.0-1/x"), 0o700)) },
			mend: func(w *world) { w.must(os.RemoveAll(filepath.Join(w.cfg.RunDir, "ring-7.0-1"))) }, error: "21 queue 1: journal"},
		{name: "data plane is closed", spoil: (*world).closePool, mend: (*world).openPool, error: dataplane.ErrClosed.Error(), maps: 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.attach("hotplug-status", "connected")
			w.wantSteps("publish init-wait")
			w.rings(2, true, tt.keys...)
			if tt.spoil != nil {
				tt.spoil(w)
			}
			w.frontState(xenbus.Connected)
			w.wantSteps("connect closing closed")
			w.wantState("6")
			if got := w.get(errorKey); !strings.Contains(got, tt.error) {
				t.Errorf("error node is %q, want one with %q", got, tt.error)
			}
			w.wantHeld(nothing)
			if l := w.iface(ifname); l == nil || l.Queues > 1 {
				t.Errorf("%s is %+v", ifname, l)
			}
			if tt.mend != nil {
				tt.mend(w)
			}
			if got := w.journals(); got != "" {
				t.Errorf("journals left: %s", got)
			}
			// Nothing is tried again before something changes.
			for range 10 {
				w.frontState(xenbus.Connected)
				w.wantSteps("")
			}
			w.must(w.guest.Write(t.Context(), frontDir+"/unrelated", "1"))
			w.wantSteps("")
			if got := w.host.Counts().MapCalls; got != tt.maps {
				t.Errorf("%d calls to map, want %d", got, tt.maps)
			}
			// The guest reacts to Closed as netfront does, and comes back with
			// good rings.
			w.frontState(xenbus.Closed)
			w.wantSteps("")
			w.frontState(xenbus.Initialising)
			w.wantSteps("publish init-wait")
			w.rings(2, true)
			w.frontState(xenbus.Connected)
			w.wantSteps("connect plug connected")
			w.wantState("4")
			w.wantError("-")
		})
	}
}

// closePool gives the vif a data plane that is closed.
func (w *world) closePool() {
	p, err := dataplane.NewPool(dataplane.Options{Workers: 1, NoUring: true})
	w.must(err)
	p.Close()
	w.use(&netengine.Local{Pool: p, Host: w.host})
}

// openPool gives the vif the data plane of the world again.
func (w *world) openPool() { w.use(w.cfg.Engine) }

// use gives the vif, which has no connection, a link of another engine.
func (w *world) use(e netengine.Engine) {
	w.v.link = e.Open(netengine.LinkConfig{
		Domid: domid, Log: w.cfg.Log, Guest: w.v.cfg.Guest, Turn: w.v.work.Turn(), GrantBudget: w.cfg.GrantBudget,
	})
}

// TestBetterOfferWithoutReconnect: a frontend that corrects its keys while it is
// Connected is served. One that makes them worse is not tried.
func TestBetterOfferWithoutReconnect(t *testing.T) {
	w := newWorld(t)
	w.attach("hotplug-status", "connected")
	w.settle()
	w.rings(1, false, "event-channel", "77")
	w.frontState(xenbus.Connected)
	w.wantSteps("connect closing closed")
	w.must(w.guest.Write(t.Context(), frontDir+"/feature-sg", "banana"))
	w.wantSteps("publish init-wait connect closing closed") // something else, which is wrong as well
	w.wantSteps("")
	w.rings(1, false)
	w.wantSteps("publish init-wait connect plug connected")
	w.wantState("4")
}

// TestPublishFails: an error in creating the device is reported at once, and does not
// affect the next device.
func TestPublishFails(t *testing.T) {
	for _, tt := range []struct {
		name  string
		keys  []string
		spoil func(w *world)
		mend  func(w *world)
		error string
	}{
		{name: "bad mac", keys: []string{"mac", "00:16:3e"}, error: `22 key "mac" is "00:16:3e", want an address such as 00:16:3e:01:02:03`},
		{name: "multicast mac", keys: []string{"mac", "01:00:5e:00:00:01"}, error: `22 key "mac" is "01:00:5e:00:00:01", want an address that is not multicast`},
		{name: "bad mtu", keys: []string{"mtu", "65536"}, error: `22 key "mtu" is "65536", want a number from 68 to 65521`},
		{name: "name taken", error: "tap: create vif7.0: name is taken by another kind of device: a bridge",
			spoil: func(w *world) {
				_, err := netns.AddBridge(ifname)
				w.must(err)
			},
			mend: func(w *world) { w.must(netns.Delete(ifname)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			if tt.spoil != nil {
				tt.spoil(w)
			}
			w.attach(tt.keys...)
			w.wantSteps("publish closed")
			w.wantState("6")
			if got := w.get(errorKey); !strings.Contains(got, tt.error) {
				t.Errorf("error node is %q, want one with %q", got, tt.error)
			}
			if tt.mend != nil {
				tt.mend(w)
			}
			w.wantTap(0)
			if got := w.status().Waits; !strings.Contains(got, "reset") {
				t.Errorf("waits for %q", got)
			}
			for range 10 {
				w.wantSteps("")
			}
			// An administrator corrects it.
			w.must(w.tool.Write(t.Context(), backDir+"/mac", "00:16:3e:01:02:03"))
			w.must(w.tool.Write(t.Context(), backDir+"/mtu", "9000"))
			w.reset()
			w.wantSteps("publish init-wait")
			w.wantState("2")
			if l := w.iface(ifname); l == nil || l.MTU != 9000 {
				t.Errorf("interface %+v, want mtu 9000", l)
			}
			w.detach()
			w.wantSteps("closed unregister")
		})
	}
}

// TestStoreFails: a request that xenstored refuses for a while is repeated.
func TestStoreFails(t *testing.T) {
	w := newWorld(t)
	w.attach("hotplug-status", "connected")
	w.wantSteps("publish init-wait")
	broken := true
	w.v.cfg.Store = &failingStore{Store: w.v.cfg.Store, fail: &broken}
	w.rings(1, false)
	w.frontState(xenbus.Connected)
	if got, _ := w.look(); strings.Join(got, " ") != "connect plug connected" {
		t.Errorf("steps %v", got)
	}
	w.wantState("2")
	if w.v.alarm.At().IsZero() {
		t.Error("the alarm is not set")
	}
	broken = false
	w.wantSteps("connected")
	w.wantState("4")
}

// TestTapDeleted: the guest's rings are still served, and the vif waits for the hotplug
// script again.
func TestTapDeleted(t *testing.T) {
	w := newWorld(t)
	w.up(2)
	old := w.iface(ifname)
	<-w.v.mail.Poked // New's
	w.must(netlink.LinkDel(old))
	w.eventually("the data plane notices", func() bool { return len(w.v.mail.Poked) > 0 })
	w.wantSteps("connect")
	w.wantState("4")
	w.wantHeld("4 pages, 2 handles, 2 ports")
	if l := w.iface(ifname); l == nil || l.Index == old.Index || l.Queues != 2 {
		t.Errorf("interface %+v", l)
	}
	if got := w.get(backDir + "/hotplug-status"); got != "" {
		t.Errorf("hotplug-status is %q", got)
	}
	if s := w.status(); s.Carrier || s.Waits != "the hotplug script" || !strings.Contains(s.Error, "was deleted; run the script") {
		t.Errorf("status %+v", s)
	}
	w.plugIn()
	w.wantSteps("plug")
	w.wantError("-")
	w.must(netlink.LinkSetUp(w.iface(ifname)))
	if s := w.status(); !s.Carrier || s.Error != "" || s.Waits != "" {
		t.Errorf("status %+v", s)
	}
	w.detach()
	w.frontState(xenbus.Closed)
	w.wantSteps("disconnect closed unregister")
}

// TestFrontendGoesAndComesBack: the TAP is removed with the frontend. When the frontend is
// back, hotplug-status is cleared before InitWait is shown, each time, so that the value
// that the script writes after InitWait stays.
func TestFrontendGoesAndComesBack(t *testing.T) {
	w := newWorld(t)
	w.up(1)
	for range 3 {
		w.must(w.tool.Write(t.Context(), backDir+"/frontend", ""))
		w.wantSteps("disconnect closing closed unregister")
		w.wantTap(0)
		w.xs.commit = func(tx *xenstore.Tx) {
			state, err := tx.Read(t.Context(), backDir+"/state")
			w.must(err)
			hotplug, err := tx.Read(t.Context(), backDir+"/hotplug-status")
			w.must(err)
			if state == "2" && hotplug != "" {
				t.Errorf("shows InitWait while hotplug-status is %q", hotplug)
			}
		}
		w.must(w.tool.Write(t.Context(), backDir+"/frontend", frontDir))
		w.frontState(xenbus.Initialising)
		w.wantSteps("publish init-wait")
		w.wantState("2")
		w.xs.commit = nil
		w.plugIn()
		w.rings(1, false)
		w.frontState(xenbus.Connected)
		w.wantSteps("connect plug connected")
		w.wantState("4")
		w.wantError("-")
	}
}

// TestTapDeletedAndScriptIsQuick: if the script is done with the new TAP before the vif
// reconciles again, the vif does not wait for it a second time.
func TestTapDeletedAndScriptIsQuick(t *testing.T) {
	for name, away := range map[string]bool{"while connected": false, "while away": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.up(1)
			if away {
				w.v.suspend()
			}
			w.must(netns.Delete(ifname))
			if away {
				w.v = New(w.cfg)
			}
			w.xs.read = func() {
				if w.iface(ifname) != nil && w.get(backDir+"/hotplug-status") == "" {
					w.plugIn()
					w.xs.read = nil
				}
			}
			w.wantSteps("connect plug")
			w.wantState("4")
			if got := w.get(backDir + "/hotplug-status"); got != "connected" {
				t.Errorf("hotplug-status is %q", got)
			}
		})
	}
}

// TestTapDeletedBeforeConnect: the hotplug script needs the TAP before the guest does.
func TestTapDeletedBeforeConnect(t *testing.T) {
	w := newWorld(t)
	w.attach()
	w.wantSteps("publish init-wait")
	w.must(netns.Delete(ifname))
	w.wantSteps("publish")
	w.wantTap(testMaxQueues) // until the script is done
	w.plugIn()
	w.settle()
	w.wantTap(1)
	w.rings(1, false)
	w.frontState(xenbus.Connected)
	w.wantSteps("connect plug connected")
}

// TestTapDeletedWhileAway: the TAP of a predecessor was deleted.
func TestTapDeletedWhileAway(t *testing.T) {
	w := newWorld(t)
	w.up(1)
	w.v.suspend()
	w.must(netns.Delete(ifname))
	w.v = New(w.cfg)
	w.wantSteps("connect")
	w.wantState("4")
	if s := w.status(); s.Carrier || s.Waits != "the hotplug script" {
		t.Errorf("status %+v", s)
	}
	if got := w.get(backDir + "/hotplug-status"); got != "" {
		t.Errorf("hotplug-status is %q", got)
	}
	w.plugIn()
	w.wantSteps("plug")
}

// TestTapDeletedWhileAwayBeforeConnect: hotplug-status is cleared at once.
func TestTapDeletedWhileAwayBeforeConnect(t *testing.T) {
	w := newWorld(t)
	w.attach()
	w.settle()
	w.plugIn()
	w.v.suspend()
	w.must(netns.Delete(ifname))
	w.v = New(w.cfg)
	w.look()
	if got := w.get(backDir + "/hotplug-status"); got != "" {
		t.Errorf("hotplug-status is %q", got)
	}
	w.wantState("2")
	w.wantTap(testMaxQueues)
}

// TestTapHeld: a dying predecessor still has the TAP open for a moment. The guest is not
// affected.
func TestTapHeld(t *testing.T) {
	w := newWorld(t)
	w.up(2)
	index := w.iface(ifname).Index
	w.v.suspend()
	d, err := tap.Create(tap.Config{Name: ifname, VnetHdr: true, Persist: true})
	w.must(err)
	w.v = New(w.cfg)
	if got, _ := w.look(); strings.Join(got, " ") != "connect" {
		t.Errorf("steps %v", got)
	}
	w.wantState("4")
	w.wantError("-")
	if w.v.alarm.At().IsZero() || time.Until(w.v.alarm.At()) > busyPoll {
		t.Errorf("the alarm is set for %v", w.v.alarm.At())
	}
	w.v.busySince = w.v.busySince.Add(-2 * busyFor)
	w.look()
	w.wantState("4")
	if got := w.get(errorKey); !strings.Contains(got, "held by this process") {
		t.Errorf("error node is %q", got)
	}
	if w.v.alarm.At().IsZero() {
		t.Error("the alarm is not set")
	}
	w.must(d.CloseKeep())
	w.wantSteps("connect plug")
	w.wantError("-")
	if l := w.iface(ifname); l.Index != index || l.Queues != 2 {
		t.Errorf("interface %+v", l)
	}
}

// TestChannelsHeld: a dying predecessor still has the event channels bound for a moment.
// The guest is not affected.
func TestChannelsHeld(t *testing.T) {
	hold := func(w *world) (letGo func()) {
		e, err := w.host.OpenEvents(domid)
		w.must(err)
		_, err = e.BindInterdomain(domid, w.conns[1].txPort)
		w.must(err)
		return func() { w.must(e.Close()) }
	}
	t.Run("for a moment", func(t *testing.T) {
		w := newWorld(t)
		w.up(2)
		w.v.suspend()
		letGo := hold(w)
		w.v = New(w.cfg)
		for range 3 {
			if got, _ := w.look(); strings.Join(got, " ") != "connect" {
				t.Errorf("steps %v", got)
			}
		}
		w.wantState("4")
		w.wantError("-")
		letGo()
		w.wantSteps("connect plug")
		w.wantHeld("4 pages, 2 handles, 2 ports")
	})
	t.Run("for too long", func(t *testing.T) {
		w := newWorld(t)
		w.up(2)
		w.v.suspend()
		letGo := hold(w)
		w.v = New(w.cfg)
		w.look()
		w.v.busySince = w.v.busySince.Add(-2 * busyFor)
		w.wantSteps("connect closing closed")
		w.wantState("6")
		letGo()
	})
}

// TestHostFailsAnAdoption: a temporary shortage of the host delays a running guest, and
// does no other harm: its rings are served from their present indices.
func TestHostFailsAnAdoption(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(w *world) (mend func())
		error string // part of it
	}{
		{"no files left", func(w *world) func() {
			w.host.Intercept(failNth(xentest.OpOpenEvtchn, 2, unix.EMFILE))
			return func() { w.host.Intercept(nil) }
		}, "24 queue 1: evtchn: open: too many open files"},
		{"out of memory", func(w *world) func() {
			w.host.Intercept(failNth(xentest.OpMap, 3, unix.ENOMEM))
			return func() { w.host.Intercept(nil) }
		}, "12 queue 1: map tx ring"},
		{"out of event channels", func(w *world) func() {
			w.host.Intercept(failNth(xentest.OpBind, 2, unix.ENOSPC))
			return func() { w.host.Intercept(nil) }
		}, "28 queue 1: evtchn: bind"},
		{"TAPs of another kind", func(w *world) func() {
			w.v.cfg.Offload = false
			return func() { w.v.cfg.Offload = true }
		}, "name is taken by another kind of device"},
		{"the data plane is closed", func(w *world) func() {
			w.closePool()
			return w.openPool
		}, dataplane.ErrClosed.Error()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.up(2)
			before, journals := w.iface(ifname), w.journals()
			w.v.suspend()
			w.v = New(w.cfg)
			mend := tt.spoil(w)
			if got, _ := w.look(); strings.Join(got, " ") != "connect" {
				t.Errorf("steps %v", got)
			}
			w.wantState("4")
			w.wantHeld(nothing)
			if got := w.get(errorKey); !strings.Contains(got, tt.error) {
				t.Errorf("error node is %q, want one with %q", got, tt.error)
			}
			if got := w.journals(); got != journals {
				t.Errorf("journals %q, were %q", got, journals)
			}
			if w.v.alarm.At().IsZero() {
				t.Error("the alarm is not set")
			}
			mend()
			w.wantSteps("connect plug")
			w.wantState("4")
			w.wantError("-")
			if l := w.iface(ifname); l == nil || l.Index != before.Index || l.Queues != 2 {
				t.Errorf("interface %+v, want the one with index %d", l, before.Index)
			}
		})
	}
}

// TestJournalsOutlastBoundChannels: while a predecessor still has the channels of the
// second queue bound, the journal of the first queue is not lost.
func TestJournalsOutlastBoundChannels(t *testing.T) {
	w := newWorld(t)
	w.up(2)
	w.v.suspend()
	journals := w.journals()
	e, err := w.host.OpenEvents(domid)
	w.must(err)
	_, err = e.BindInterdomain(domid, w.conns[1].txPort)
	w.must(err)
	w.v = New(w.cfg)
	w.look()
	if got := w.journals(); got != journals || got == "" {
		t.Errorf("journals %q, were %q", got, journals)
	}
	w.must(e.Close())
	w.wantSteps("connect plug")
}
