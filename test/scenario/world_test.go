// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/traffic"
	"github.com/netbackd/netbackd/internal/vif"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

const (
	bridge   = "xenbr0"
	hostIP   = "10.98.0.1"
	hostIP6  = "fd98::1"
	tcpPort  = ":5001"
	udpPort  = ":5002"
	patience = 60 * time.Second // for a whole scenario's waits, on a busy machine
)

// world is a host with a bridge, and servers on the host's address.
type world struct {
	*lab.Lab
	t      *testing.T
	ctx    context.Context
	guests int
	vhosts []*vhost
	tcp    *traffic.TCPServer
	udp    *traffic.UDPServer
}

// newWorld makes a host. daemon are more arguments for `netbackd run`.
func newWorld(t *testing.T, daemon ...string) *world {
	t.Helper()
	netns.NeedTUN(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*patience)
	t.Cleanup(cancel)
	dir, err := os.MkdirTemp("", "nbw") // a short path: socket addresses are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	t.Cleanup(removeLinks)
	l, err := lab.New(ctx, lab.Options{Exe: exe, Dir: dir, Daemon: append([]string{"--max-queues=8"}, daemon...)})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Lab: l, t: t, ctx: ctx}
	t.Cleanup(w.close)
	w.must(l.Bridge(bridge, hostIP+"/24", hostIP6+"/64"))
	w.serve()
	return w
}

// close ends the world. It checks that the daemon ends without an error.
func (w *world) close() {
	log := w.Daemon()
	if err := w.Lab.Close(); err != nil {
		w.t.Error(err)
	}
	if said := log.Log(); strings.Contains(said, "internal error") || strings.Contains(said, "DATA RACE") {
		w.t.Errorf("the daemon failed inside")
	}
	for _, d := range w.vhosts {
		said := d.Log()
		if strings.Contains(said, "internal error") || strings.Contains(said, "DATA RACE") || strings.Contains(said, "panic:") {
			w.t.Errorf("%s failed inside", d.Name)
		}
		if w.t.Failed() {
			w.t.Logf("%s said:\n%s", d.Name, said)
		}
	}
	if w.t.Failed() {
		w.t.Logf("netbackd said:\n%s", log.Log())
		w.t.Logf("the embedded Xen said:\n%s", w.Xen().Log())
	}
}

// removeLinks removes the interfaces that a daemon leaves for its successor.
func removeLinks() {
	links, err := netlink.LinkList()
	if err != nil {
		return
	}
	for _, l := range links {
		switch l.Type() {
		case "tun", "tuntap", "bridge", "dummy", "vxlan":
			_ = netlink.LinkDel(l)
		}
	}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// serve opens the host's servers for TCP and UDP.
func (w *world) serve() {
	var err error
	w.tcp, err = traffic.ListenTCP(tcpPort)
	w.must(err)
	w.udp, err = traffic.ListenUDP(udpPort)
	w.must(err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- w.tcp.Serve(ctx) }()
	go func() { done <- w.udp.Serve(ctx) }()
	w.t.Cleanup(func() { stop(); <-done; <-done })
}

// guestIP returns the address of the i-th guest, counted from 0.
func guestIP(i int) string  { return fmt.Sprintf("10.98.0.%d", 10+i) }
func guestIP6(i int) string { return fmt.Sprintf("fd98::%d", 10+i) }

// testGuest is a guest of a world.
type testGuest struct {
	*lab.Guest
	w       *world
	ip, ip6 string
}

// option changes how a guest is made.
type option func(*lab.GuestConfig)

func queues(n int) option { return func(c *lab.GuestConfig) { c.Front.Front.Queues = n } }

func front(f func(*netfront.Config)) option {
	return func(c *lab.GuestConfig) { f(&c.Front.Front) }
}

func features(f func(*netfront.Features)) option {
	return func(c *lab.GuestConfig) { f(&c.Front.Front.Features) }
}

func vifKeys(f func(*lab.VifConfig)) option { return func(c *lab.GuestConfig) { f(&c.Vif) } }

// config returns the default configuration of guest i, changed by options: a Linux guest
// with one queue and strict checks of the backend.
func config(i int, opts ...option) lab.GuestConfig {
	c := lab.GuestConfig{
		Name: fmt.Sprintf("g%d", i),
		Vif:  lab.VifConfig{MAC: fmt.Sprintf("00:16:3e:00:00:%02x", 1+i), Bridge: bridge},
		Front: guest.VifConfig{
			Addrs: []string{guestIP(i) + "/24", guestIP6(i) + "/64"},
			Front: netfront.Config{Queues: 1, SplitEvents: true, Strict: true, IDSalt: 0x5a00, Features: netfront.AllFeatures()},
		},
	}
	for _, o := range opts {
		o(&c)
	}
	return c
}

// guest starts a guest, waits until it is connected, and opens its servers.
func (w *world) guest(opts ...option) *testGuest {
	w.t.Helper()
	i := w.guests
	w.guests++
	g, err := w.StartGuest(w.ctx, config(i, opts...))
	w.must(err)
	return w.connected(g, i)
}

func (w *world) connected(g *lab.Guest, i int) *testGuest {
	w.t.Helper()
	tg := &testGuest{Guest: g, w: w, ip: guestIP(i), ip6: guestIP6(i)}
	tg.waitState(xenbus.Connected)
	tg.waitLink()
	_, err := g.TCPServe(w.ctx, guest.ServeArgs{Addr: tcpPort})
	w.must(err)
	_, err = g.UDPServe(w.ctx, guest.ServeArgs{Addr: udpPort})
	w.must(err)
	return tg
}

// waitState waits until the backend is in one of the states.
func (g *testGuest) waitState(states ...xenbus.State) {
	g.w.t.Helper()
	ctx, cancel := context.WithTimeout(g.w.ctx, patience)
	defer cancel()
	g.w.must(g.w.BackState(ctx, g.Domid, g.Devid, states...))
}

// waitLink waits until the host's kernel has processed the carrier of the vif and of the
// bridge. Before that they drop packets.
func (g *testGuest) waitLink() {
	g.w.t.Helper()
	for what, name := range map[string]string{g.VifName(): g.status().Interface, "the bridge, if this is its first port": bridge} {
		g.w.wait("the carrier of "+what, func() bool {
			l, err := netlink.LinkByName(name)
			return err == nil && l.Attrs().OperState == netlink.OperUp
		})
	}
}

// status asks the daemon for the status of the guest's vif.
func (g *testGuest) status() *vif.Status {
	g.w.t.Helper()
	s, err := g.w.Vif(g.w.ctx, g.VifName())
	g.w.must(err)
	return s
}

// waitStatus waits until the daemon's status of the vif satisfies ok.
func (g *testGuest) waitStatus(what string, ok func(*vif.Status) bool) *vif.Status {
	g.w.t.Helper()
	var last *vif.Status
	g.w.wait(what, func() bool {
		s, err := g.w.Vif(g.w.ctx, g.VifName())
		if err != nil {
			return false
		}
		last = s
		return ok(s)
	})
	return last
}

// waitCounter waits until a counter of the vif has reached n.
func (g *testGuest) waitCounter(c dataplane.Counter, n uint64) {
	g.w.t.Helper()
	g.waitStatus(fmt.Sprintf("%v to reach %d", c, n), func(s *vif.Status) bool { return s.Counters[c.String()] >= n })
}

// counter returns a counter of the vif.
func (g *testGuest) counter(c dataplane.Counter) uint64 {
	g.w.t.Helper()
	return g.status().Counters[c.String()]
}

// wait calls ok until it returns true, for conditions without a notification.
func (w *world) wait(what string, ok func() bool) {
	w.t.Helper()
	w.waitEvery(5*time.Millisecond, what, ok)
}

// waitEvery is like wait, with a longer pause for an expensive question.
func (w *world) waitEvery(pause time.Duration, what string, ok func() bool) {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			w.t.Fatalf("waited in vain for %s", what)
		}
		<-tick.C
	}
}

// tcpToHost sends a stream from the guest to the host; every byte is checked.
func (g *testGuest) tcpToHost(n int64) traffic.TCPResult {
	g.w.t.Helper()
	return g.tcpTo(hostIP, n)
}

func (g *testGuest) tcpTo(ip string, n int64) traffic.TCPResult {
	g.w.t.Helper()
	r, err := g.TCPSend(g.w.ctx, guest.TCPSendArgs{Addr: join(ip, tcpPort), TCPSend: traffic.TCPSend{Bytes: n, Seed: 7}})
	g.w.must(err)
	g.w.whole(r, n)
	return r
}

// tcpToGuest sends a stream from the host to the guest.
func (g *testGuest) tcpToGuest(ip string, n int64) traffic.TCPResult {
	g.w.t.Helper()
	c, err := traffic.DialTCP(g.w.ctx, join(ip, tcpPort))
	g.w.must(err)
	r, err := traffic.SendTCP(g.w.ctx, c, traffic.TCPSend{Bytes: n, Seed: 9})
	g.w.must(err)
	g.w.whole(r, n)
	return r
}

func join(ip, port string) string {
	if strings.Contains(ip, ":") {
		return "[" + ip + "]" + port
	}
	return ip + port
}

func (w *world) whole(r traffic.TCPResult, n int64) {
	w.t.Helper()
	if r.Bytes != n || r.Wrong != 0 {
		w.t.Fatalf("stream of %d bytes: %+v", n, r)
	}
}

// pings pings the host from the guest. No packet may be lost.
func (g *testGuest) pings(n int) {
	g.w.t.Helper()
	r, err := g.Ping(g.w.ctx, guest.PingArgs{Addr: hostIP, PingOptions: traffic.PingOptions{Count: n, Interval: time.Millisecond}})
	g.w.must(err)
	if r.Received != n || r.Corrupt != 0 {
		g.w.t.Fatalf("ping: %d of %d came back, %d corrupt", r.Received, n, r.Corrupt)
	}
}

// innocent checks that the guest has counted no violation by its backend.
func (g *testGuest) innocent() {
	g.w.t.Helper()
	s, err := g.Stats(g.w.ctx, "")
	g.w.must(err)
	for _, v := range s.Violations {
		g.w.t.Errorf("%s accuses the backend: %s", g.Name, v)
	}
}

// undisturbed runs f while another guest sends, and checks that the other guest lost
// nothing.
func (w *world) undisturbed(f func()) {
	w.t.Helper()
	g := w.guest()
	ctx, stop := context.WithCancel(w.ctx)
	defer stop()
	type outcome struct {
		n   int
		err error
	}
	ended := make(chan outcome, 1)
	go func() {
		n := 0
		for ctx.Err() == nil {
			r, err := g.TCPSend(w.ctx, guest.TCPSendArgs{Addr: hostIP + tcpPort, TCPSend: traffic.TCPSend{Bytes: 1 << 20, Seed: 3}})
			if err != nil || r.Wrong != 0 || r.Bytes != 1<<20 {
				ended <- outcome{n, fmt.Errorf("bystander's stream %d: %+v: %w", n, r, err)}
				return
			}
			n++
		}
		ended <- outcome{n, nil}
	}()
	f()
	stop()
	o := <-ended
	w.must(o.err)
	if o.n == 0 {
		w.t.Error("the bystander got no stream through meanwhile")
	}
	g.pings(5)
	g.innocent()
}
