// SPDX-License-Identifier: Apache-2.0

package toolstack

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenstore"
)

// vifLog is the vif of the recorded session below.
var vifLog = Vif{MAC: "00:16:3e:00:00:01", Bridge: "xenbr0", Script: "vif-log"}

// The store while libxl 4.17 waits for the backend of the first guest's first
// vif, as `xenstore-ls -fp` showed it on a real host.
const recorded = `
/libxl/1/device/vif = "" (n0)
/libxl/1/device/vif/0 = "" (n0)
/libxl/1/device/vif/0/backend = "/local/domain/0/backend/vif/1/0" (n0)
/libxl/1/device/vif/0/bridge = "xenbr0" (n0)
/libxl/1/device/vif/0/frontend = "/local/domain/1/device/vif/0" (n0)
/libxl/1/device/vif/0/frontend-id = "1" (n0)
/libxl/1/device/vif/0/handle = "0" (n0)
/libxl/1/device/vif/0/hotplug-status = "" (n0)
/libxl/1/device/vif/0/mac = "00:16:3e:00:00:01" (n0)
/libxl/1/device/vif/0/online = "1" (n0)
/libxl/1/device/vif/0/script = "/etc/xen/scripts/vif-log" (n0)
/libxl/1/device/vif/0/state = "1" (n0)
/libxl/1/device/vif/0/type = "vif" (n0)
/local/domain/0/backend/vif = "" (n0)
/local/domain/0/backend/vif/1 = "" (n0)
/local/domain/0/backend/vif/1/0 = "" (n0,r1)
/local/domain/0/backend/vif/1/0/bridge = "xenbr0" (n0,r1)
/local/domain/0/backend/vif/1/0/frontend = "/local/domain/1/device/vif/0" (n0,r1)
/local/domain/0/backend/vif/1/0/frontend-id = "1" (n0,r1)
/local/domain/0/backend/vif/1/0/handle = "0" (n0,r1)
/local/domain/0/backend/vif/1/0/hotplug-status = "" (n0,r1)
/local/domain/0/backend/vif/1/0/mac = "00:16:3e:00:00:01" (n0,r1)
/local/domain/0/backend/vif/1/0/online = "1" (n0,r1)
/local/domain/0/backend/vif/1/0/script = "/etc/xen/scripts/vif-log" (n0,r1)
/local/domain/0/backend/vif/1/0/state = "1" (n0,r1)
/local/domain/0/backend/vif/1/0/type = "vif" (n0,r1)
/local/domain/1/device/vif = "" (n0,r1)
/local/domain/1/device/vif/0 = "" (n1,r0)
/local/domain/1/device/vif/0/backend = "/local/domain/0/backend/vif/1/0" (n1,r0)
/local/domain/1/device/vif/0/backend-id = "0" (n1,r0)
/local/domain/1/device/vif/0/handle = "0" (n1,r0)
/local/domain/1/device/vif/0/mac = "00:16:3e:00:00:01" (n1,r0)
/local/domain/1/device/vif/0/mtu = "1500" (n0,r1)
/local/domain/1/device/vif/0/state = "1" (n1,r0)
/local/domain/1/device/vif/0/trusted = "1" (n1,r0)
`

func TestNodesAreThoseOfLibxl(t *testing.T) {
	l := newLab(t)
	l.timeouts.Init = short
	w, err := l.xs.Watch(t.Context(), "/local/domain/0/backend")
	if err != nil {
		t.Fatal(err)
	}
	<-w.C() // the watch is set
	domid := l.guest()
	if _, _, err := l.AttachVif(context.Background(), domid, vifLog); !errors.Is(err, ErrTimeout) {
		t.Fatalf("attach without a backend: %v, want ErrTimeout", err)
	}
	if diff := cmp.Diff(strings.TrimSpace(recorded), strings.Join(l.tree(), "\n")); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
	l.wantCalls()

	// The order of a backend's events.
	w.Close()
	var got []string
	w, _ = l.xs.Watch(t.Context(), "/local/domain/0/backend")
	<-w.C()
	d := newVif(domid, 1, 0)
	v := vifLog.withDefaults()
	v.Devid = 1
	back, front, readOnly := v.nodes(domid)
	if err := l.add(t.Context(), d, back, front, readOnly, nil); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"", "/frontend", "/frontend-id", "/online", "/state", "/script", "/mac", "/bridge", "/handle", "/type", "/hotplug-status"} {
		got = append(got, strings.TrimPrefix((<-w.C()).Path, d.backendPath()))
		if got[len(got)-1] != want {
			t.Fatalf("events for %q, want %q now", got, want)
		}
	}
	w.Close()
}

func TestAllOptionsOfAVif(t *testing.T) {
	l := newLab(t)
	domid := l.guest()
	l.backend(domid, 3, true)
	_, _, err := l.AttachVif(context.Background(), domid, Vif{Devid: 3, MAC: "00:16:3e:01:02:03", Script: "/root/own", Name: "web",
		IP: "192.0.2.1", GatewayDev: "eth0", Rate: "12500,50000", VLAN: "10", MTU: 9000, Untrusted: true})
	if err != nil {
		t.Fatal(err)
	}
	d := newVif(domid, 3, 0)
	for key, want := range map[string]string{"vifname": "web", "ip": "192.0.2.1", "gatewaydev": "eth0", "rate": "12500,50000",
		"vlan": "10", "mtu": "9000", "bridge": "xenbr0", "script": "/root/own", "handle": "3"} {
		l.wantNode(d.backendPath()+"/"+key, want)
	}
	l.wantNode(d.frontendPath()+"/trusted", "0")
	l.wantNode(d.frontendPath()+"/mtu", "9000")
	l.wantCalls("/root/own online type_if=vif " + d.String() + " in state 2")
}

func TestEditedNodesAreNeverSeenOtherwise(t *testing.T) {
	l := newLab(t)
	domid := l.guest()
	l.backend(domid, 0, true)
	v := vifLog
	v.Edit = func(tx *xenstore.Tx, back, front string) error {
		return errors.Join(tx.Write(t.Context(), back+"/rate", "x"), tx.Remove(t.Context(), front+"/mac"))
	}
	if _, _, err := l.AttachVif(context.Background(), domid, v); err != nil {
		t.Fatal(err)
	}
	d := newVif(domid, 0, 0)
	l.wantNode(d.backendPath()+"/rate", "x")
	if there, err := l.xs.Exists(t.Context(), d.frontendPath()+"/mac"); there || err != nil {
		t.Errorf("mac exists: %v, %v", there, err)
	}
	v.Devid, v.Edit = 1, func(*xenstore.Tx, string, string) error { return unix.EPERM }
	if _, _, err := l.AttachVif(context.Background(), domid, v); !errors.Is(err, unix.EPERM) {
		t.Errorf("attach: %v, want what Edit returns", err)
	}
	if got := l.devids(t.Context(), domid, classVif); len(got) != 1 {
		t.Errorf("vifs %v, want the first only", got)
	}
}

func TestScriptSeesWhatLibxlPasses(t *testing.T) {
	l := newLab(t)
	c := Call{Action: Online, Class: classVif, Path: "/etc/xen/scripts/vif-log", Domid: 2, Devid: 0, Backend: newVif(2, 0, 0).backendPath(), Store: l.xs}
	want := []string{
		"script=/etc/xen/scripts/vif-log",
		"XENBUS_TYPE=vif",
		"XENBUS_PATH=backend/vif/2/0",
		"XENBUS_BASE_PATH=backend",
		"netdev=",
		"vif=vif2.0",
	}
	if diff := cmp.Diff(want, c.Env(t.Context())); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
}

func TestAttachAndDetach(t *testing.T) {
	l := newLab(t)
	domid := l.guest()
	l.backend(domid, 0, true)
	devid, w, err := l.AttachVif(context.Background(), domid, vifLog)
	if err != nil || devid != 0 {
		t.Fatalf("attach: vif %d, %v", devid, err)
	}
	if w.State <= 0 || w.Script <= 0 {
		t.Errorf("waits %+v", w)
	}
	d := newVif(domid, 0, 0)
	l.wantNode(d.backendPath()+"/hotplug-status", "connected")
	l.wantCalls("/etc/xen/scripts/vif-log online type_if=vif vif1.0 in state 2")
	if _, _, err := l.AttachVif(context.Background(), domid, vifLog); !errors.Is(err, ErrExists) {
		t.Errorf("attach again: %v, want ErrExists", err)
	}
	l.backend(domid, 1, true)
	next := vifLog
	next.Devid = NextDevid
	if devid, _, err := l.AttachVif(context.Background(), domid, next); devid != 1 || err != nil {
		t.Errorf("attach of the next one: vif %d, %v; want 1", devid, err)
	}
	l.wantCalls("/etc/xen/scripts/vif-log online type_if=vif vif1.1 in state 2")

	for devid := range 2 {
		w, err := l.DetachVif(context.Background(), domid, devid)
		if err != nil || w.State <= 0 || w.Forced != 0 {
			t.Errorf("detach: %+v, %v", w, err)
		}
		l.wantCalls(fmt.Sprintf("/etc/xen/scripts/vif-log offline type_if=vif vif1.%d in state 6", devid))
	}
	l.wantNoDeviceNodes()
	if _, err := l.DetachVif(context.Background(), domid, 0); !errors.Is(err, ErrNoDevice) {
		t.Errorf("detach again: %v, want ErrNoDevice", err)
	}
}

func TestAttachFailsAndLeavesTheNodes(t *testing.T) {
	for _, tc := range []struct {
		name  string
		setup func(*lab, xen.Domid)
		want  error
		calls int
	}{
		{"no backend", func(l *lab, _ xen.Domid) { l.timeouts.Init = short }, ErrTimeout, 0},
		{"script exits 1", func(l *lab, domid xen.Domid) {
			l.backend(domid, 0, true)
			l.script = func(context.Context) error { return unix.EPERM }
		}, unix.EPERM, 1},
		{"script takes too long", func(l *lab, domid xen.Domid) {
			l.backend(domid, 0, true)
			l.timeouts.Script = 1
			l.script = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		}, ErrTimeout, 1},
		{"backend skips state 2", func(l *lab, domid xen.Domid) {
			l.timeouts.Init = short
			l.onState(domid, "1", func(tx *xenstore.Tx, path string) error { return tx.Write(t.Context(), path+"/state", "4") })
		}, ErrTimeout, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t)
			domid := l.guest()
			tc.setup(l, domid)
			_, _, err := l.AttachVif(context.Background(), domid, vifLog)
			if !errors.Is(err, tc.want) || tc.calls > 0 != errors.Is(err, ErrScript) {
				t.Errorf("attach: %v, want %v", err, tc.want)
			}
			if len(l.calls) != tc.calls {
				t.Errorf("script calls %q, want %d", l.calls, tc.calls)
			}
			if len(l.tree()) == 0 {
				t.Error("the nodes are gone; xl leaves them")
			}
			l.script = nil
			l.timeouts.Destroy = short
			_, _ = l.DetachVif(context.Background(), domid, 0)
			l.wantNoDeviceNodes()
		})
	}
}

// onState calls f once, when the first vif of a domain is in a state.
func (l *lab) onState(domid xen.Domid, state string, f func(tx *xenstore.Tx, path string) error) {
	l.t.Helper()
	path := newVif(domid, 0, 0).backendPath()
	l.onChange(path+"/state", func() bool {
		done := false
		err := l.xs.Transaction(l.t.Context(), func(tx *xenstore.Tx) error {
			s, err := tx.Read(l.t.Context(), path+"/state")
			if done = err == nil && s == state; !done {
				return nil
			}
			return f(tx, path)
		})
		return !done || err != nil
	})
}

func TestBackendsDirectoryVanishesDuringAttach(t *testing.T) {
	l := newLab(t)
	domid := l.guest()
	l.onState(domid, "1", func(tx *xenstore.Tx, path string) error { return tx.Remove(t.Context(), path) })
	if _, _, err := l.AttachVif(context.Background(), domid, vifLog); !errors.Is(err, ErrRemoved) {
		t.Errorf("attach: %v, want ErrRemoved", err)
	}
	if _, err := l.DetachVif(context.Background(), domid, 0); err != nil {
		t.Errorf("detach of what has no backend: %v", err)
	}
	l.wantCalls()
	l.wantNoDeviceNodes()
}

func TestDetachOfABackendThatDoesNotClose(t *testing.T) {
	l := newLab(t)
	l.timeouts.Destroy = short
	domid := l.guest()
	l.backend(domid, 0, false)
	if _, _, err := l.AttachVif(context.Background(), domid, vifLog); err != nil {
		t.Fatal(err)
	}
	l.calls = nil
	frontend := newVif(domid, 0, 0).frontendPath()
	watch, err := l.xs.Watch(t.Context(), frontend+"/state")
	if err != nil {
		t.Fatal(err)
	}
	<-watch.C()
	start := time.Now()
	w, err := l.DetachVif(context.Background(), domid, 0)
	if !errors.Is(err, ErrTimeout) {
		t.Errorf("detach: %v, want ErrTimeout", err)
	}
	if w.State < short || w.Forced < short || time.Since(start) < 2*short {
		t.Errorf("waited %+v, want twice %v", w, short)
	}
	<-watch.C() // removed for the second try
	watch.Close()
	l.wantCalls() // no offline for a backend that never closed
	l.wantNoDeviceNodes()
}

func TestDetachOfAClosedBackendWritesOnlineOnly(t *testing.T) {
	l := newLab(t)
	domid := l.guest()
	l.backend(domid, 0, true)
	if _, _, err := l.AttachVif(context.Background(), domid, vifLog); err != nil {
		t.Fatal(err)
	}
	state := newVif(domid, 0, 0).backendPath() + "/state"
	l.write(state, "6")
	w, err := l.xs.Watch(t.Context(), state)
	if err != nil {
		t.Fatal(err)
	}
	<-w.C()
	if _, err := l.DetachVif(context.Background(), domid, 0); err != nil {
		t.Errorf("detach: %v", err)
	}
	<-w.C() // its removal
	select {
	case e := <-w.C():
		t.Errorf("state was written, too: %+v", e)
	default:
	}
	w.Close()
}

func TestCreateAndDestroy(t *testing.T) {
	l := newLab(t)
	for devid := 1; devid <= 3; devid++ {
		l.backend(1, devid, true)
	}
	domid, waits, err := l.Create(context.Background(), Config{Name: "web01", Domain: simclient.DomainConfig{Pages: 64},
		Vifs: []Vif{{Devid: NextDevid}, {Devid: 1}, {Devid: NextDevid}}})
	if err != nil || domid != 1 || len(waits) != 3 {
		t.Fatalf("create: domain %d, %v, %v", domid, waits, err)
	}
	i, err := l.ctl.Domain(domid)
	if err != nil || !i.Paused || i.Name != "web01" {
		t.Errorf("domain %+v, %v; want it paused", i, err)
	}
	if err := l.Unpause(domid); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]int{1, 2, 3}, l.devids(t.Context(), domid, classVif)); diff != "" {
		t.Errorf("vifs (-want +got):\n%s", diff)
	}
	guest, err := simclient.Dial(l.path, domid)
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close()
	l.calls = nil
	waits, err = l.Destroy(context.Background(), domid)
	if err != nil || len(waits) != 3 {
		t.Errorf("destroy: %v, %v", waits, err)
	}
	<-guest.Done()
	if len(l.calls) != 3 || !strings.Contains(l.calls[0], "offline") {
		t.Errorf("script calls %q, want offline for each", l.calls)
	}
	l.wantGone(domid)
	l.wantNoDeviceNodes()
	if _, err := l.Destroy(context.Background(), domid); !errors.Is(err, unix.ESRCH) {
		t.Errorf("destroy again: %v, want ESRCH", err)
	}
}

func TestCreateWithoutABackend(t *testing.T) {
	l := newLab(t)
	l.timeouts.Init, l.timeouts.Destroy = short, short
	start := time.Now()
	_, _, err := l.Create(context.Background(), Config{Name: "web01", Domain: simclient.DomainConfig{Pages: 16}, Vifs: []Vif{vifLog}})
	if !errors.Is(err, ErrTimeout) {
		t.Errorf("create: %v, want ErrTimeout", err)
	}
	if took := time.Since(start); took < 2*short {
		t.Errorf("took %v, want %v for the backend to come up and as much for it to go", took, short)
	}
	l.wantCalls()
	l.wantGone(1)
	l.wantNoDeviceNodes()
}

func TestCreateWithAScriptThatFails(t *testing.T) {
	l := newLab(t)
	l.backend(1, 0, true)
	l.script = func(context.Context) error { return unix.EPERM }
	_, _, err := l.Create(context.Background(), Config{Name: "web01", Domain: simclient.DomainConfig{Pages: 16}, Vifs: []Vif{vifLog}})
	if !errors.Is(err, ErrScript) {
		t.Errorf("create: %v, want ErrScript", err)
	}
	l.wantCalls("/etc/xen/scripts/vif-log online type_if=vif vif1.0 in state 2",
		"/etc/xen/scripts/vif-log offline type_if=vif vif1.0 in state 6")
	l.wantGone(1)
	l.wantNoDeviceNodes()
}

func TestDestroyOfABackendThatDoesNotClose(t *testing.T) {
	l := newLab(t)
	l.timeouts.Destroy = short
	l.backend(1, 0, false)
	domid, _, err := l.Create(context.Background(), Config{Domain: simclient.DomainConfig{Pages: 16}, Vifs: []Vif{vifLog}})
	if err != nil {
		t.Fatal(err)
	}
	l.calls = nil
	waits, err := l.Destroy(context.Background(), domid)
	if err != nil || waits[0].State < short || waits[0].Forced != 0 {
		t.Errorf("destroy: %+v, %v; want one wait of %v and no error", waits, err, short)
	}
	l.wantCalls()
	l.wantGone(domid)
	l.wantNoDeviceNodes()
}

// TestDestroyTakesTheFrontendFirst: the frontend's directory is gone before the backend is
// told to close.
func TestDestroyTakesTheFrontendFirst(t *testing.T) {
	l := newLab(t)
	l.backend(1, 0, false)
	domid, _, err := l.Create(context.Background(), Config{Domain: simclient.DomainConfig{Pages: 16}, Vifs: []Vif{vifLog}})
	if err != nil {
		t.Fatal(err)
	}
	frontend := newVif(domid, 0, 0).frontendPath()
	l.onState(domid, "5", func(tx *xenstore.Tx, path string) error {
		if there, err := tx.Exists(t.Context(), frontend); err != nil || there {
			t.Errorf("frontend exists: %v, %v", there, err)
		}
		return tx.Write(t.Context(), path+"/state", "6")
	})
	if _, err := l.Destroy(context.Background(), domid); err != nil {
		t.Error(err)
	}
	l.wantGone(domid)
}

func TestGuestsRightsInItsHome(t *testing.T) {
	l := newLab(t)
	l.backend(1, 0, true)
	domid, _, err := l.Create(context.Background(), Config{Domain: simclient.DomainConfig{Pages: 16}, Vifs: []Vif{vifLog}})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := simclient.Dial(l.path, domid)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	xs, err := conn.Xenstore()
	if err != nil {
		t.Fatal(err)
	}
	defer xs.Close()
	be := newVif(domid, 0, 0).backendPath()
	for _, tc := range []struct {
		path string
		may  bool
	}{
		{"device/vif/0/state", true},
		{"device/vif/0/tx-ring-ref", true},
		{"data/ip", true},
		{"control/shutdown", true},
		{"device/vif/0/mtu", false},
		{"device/vif/1/state", false},
		{"name", false},
		{be + "/state", false},
		{be + "/mine", false},
	} {
		if err := xs.Write(t.Context(), tc.path, "1"); (err == nil) != tc.may || err != nil && !errors.Is(err, xenstore.ErrPermission) {
			t.Errorf("write to %s: %v, allowed %v", tc.path, err, tc.may)
		}
	}
	if got, err := xs.Read(t.Context(), be+"/mac"); err != nil || got != vifLog.MAC {
		t.Errorf("read of the backend's mac: %q, %v", got, err)
	}
	if got, err := xs.Read(t.Context(), "domid"); err != nil || got != "1" {
		t.Errorf("read of domid: %q, %v", got, err)
	}
	if _, err := xs.Read(t.Context(), libxlPath(domid)+"/type"); !errors.Is(err, xenstore.ErrPermission) {
		t.Errorf("read of libxl's own node: %v, want that it may not", err)
	}
}

func TestCancelledWait(t *testing.T) {
	l := newLab(t)
	domid := l.guest()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := l.AttachVif(ctx, domid, vifLog); !errors.Is(err, context.Canceled) {
		t.Errorf("attach: %v, want Canceled", err)
	}
}

func TestAtoi(t *testing.T) {
	for s, want := range map[string]int{"": 0, "4": 4, "12": 12, " 6": 6, "6x": 6, "x6": 0, "-1": 0} {
		if got := atoi(s); got != want {
			t.Errorf("atoi(%q) = %d, want %d", s, got, want)
		}
	}
	if got := atoi("99999999999999999999"); got <= 0 {
		t.Errorf("a number too large is %d", got)
	}
}
