// SPDX-License-Identifier: Apache-2.0

package fair

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/hostile"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/traffic"
	"github.com/netbackd/netbackd/internal/lab/xensim/simclient"
	"github.com/netbackd/netbackd/pkg/xen"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

const (
	bridge  = "xenbr0"
	hostIP  = "10.98.0.1"
	tcpPort = ":5001"
)

const (
	envExe    = "FAIR_EXE"    // program netbackd-lab that is measured; empty: that of this tree
	envDaemon = "FAIR_DAEMON" // more arguments for netbackd run, with spaces
)

// host is a host with innocent guests and hostile ones.
type host struct {
	*lab.Lab
	tb     testing.TB
	ctx    context.Context
	exe    string
	guests int
}

// newHost starts netbackd on an embedded Xen, with a bridge. daemon are more arguments for
// netbackd run.
func newHost(tb testing.TB, daemon ...string) *host {
	tb.Helper()
	netns.NeedTUN(tb)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	tb.Cleanup(cancel)
	// As on a host, the run directory is on a tmpfs, if there is one. The path is short:
	// socket addresses are.
	dir, err := os.MkdirTemp("/dev/shm", "nbf")
	if err != nil {
		dir, err = os.MkdirTemp("", "nbf")
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	h := &host{tb: tb, ctx: ctx, exe: program(tb, "netbackd-lab", envExe)}
	tb.Cleanup(removeLinks)
	h.Lab, err = lab.New(ctx, lab.Options{Exe: h.exe, Dir: dir, Daemon: slices.Concat([]string{"--max-queues=8"}, daemon, strings.Fields(os.Getenv(envDaemon)))})
	h.must(err)
	tb.Cleanup(h.close)
	h.must(h.Bridge(bridge, hostIP+"/16"))
	h.serve()
	return h
}

// programs has what program has built, by name, until the tests end.
var programs = map[string]string{}

// program returns the path of a program of the lab: that of the environment variable, or else
// one without the race detector that it builds.
func program(tb testing.TB, name, env string) string {
	tb.Helper()
	if exe := os.Getenv(env); exe != "" {
		return exe
	}
	if programs[name] == "" {
		dir, err := os.MkdirTemp("", "fair")
		if err != nil {
			tb.Fatal(err)
		}
		programs[name] = filepath.Join(dir, name)
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", programs[name], "github.com/netbackd/netbackd/cmd/"+name)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if said, err := build.CombinedOutput(); err != nil {
			tb.Fatalf("build %s: %v\n%s", name, err, said)
		}
	}
	return programs[name]
}

// removePrograms removes what program has built.
func removePrograms() {
	for _, exe := range programs {
		_ = os.RemoveAll(filepath.Dir(exe))
	}
}

func (h *host) must(err error) {
	h.tb.Helper()
	if err != nil {
		h.tb.Fatal(err)
	}
}

func (h *host) close() {
	daemon := h.Daemon()
	if err := h.Lab.Close(); err != nil {
		h.tb.Error(err)
	}
	if h.tb.Failed() {
		h.tb.Logf("netbackd said:\n%.20000s", daemon.Log())
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
		case "tun", "tuntap", "bridge":
			_ = netlink.LinkDel(l)
		}
	}
}

// serve opens the host's server for TCP.
func (h *host) serve() {
	s, err := traffic.ListenTCP(tcpPort)
	h.must(err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	h.tb.Cleanup(func() { stop(); <-done })
}

// config returns the configuration of innocent guest i.
func config(i int) lab.GuestConfig {
	return lab.GuestConfig{
		Name: fmt.Sprintf("g%d", i),
		Vif:  lab.VifConfig{MAC: mac(i), Bridge: bridge},
		Front: guest.VifConfig{
			Addrs: []string{fmt.Sprintf("10.98.0.%d/16", 10+i)},
			Front: netfront.Config{Queues: 1, SplitEvents: true, Features: netfront.AllFeatures()},
		},
	}
}

// mac returns the Ethernet address of guest i.
func mac(i int) string { return fmt.Sprintf("00:16:3e:00:%02x:%02x", i>>8, i&0xff) }

// broadcast is the Ethernet address of all ports.
const broadcast = "ff:ff:ff:ff:ff:ff"

// nowhere is the Ethernet address of no port.
const nowhere = "02:00:00:00:00:99"

// guest starts an innocent guest.
func (h *host) guest(edit func(*lab.GuestConfig)) *lab.Guest {
	h.tb.Helper()
	h.guests++
	cfg := config(h.guests)
	if edit != nil {
		edit(&cfg)
	}
	g, err := h.StartGuest(h.ctx, cfg)
	h.must(err)
	h.forwards(g.Domid, 0)
	return g
}

// forwards waits until a vif's port of the bridge forwards packets.
func (h *host) forwards(domid xen.Domid, devid int) {
	h.tb.Helper()
	for _, name := range []string{ifname(domid, devid), bridge} {
		h.wait(name+" to be up", func() bool {
			l, err := netlink.LinkByName(name)
			return err == nil && l.Attrs().OperState == netlink.OperUp
		})
	}
}

// ifname returns the name of a vif's interface.
func ifname(domid xen.Domid, devid int) string {
	return xenbus.VifID{Domid: domid, Devid: devid}.String()
}

// wait calls ok until it returns true.
func (h *host) wait(what string, ok func() bool) {
	h.tb.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			h.tb.Fatalf("waited in vain for %s", what)
		}
		<-tick.C
	}
}

// crew is a process of hostile guests.
type crew struct {
	*hostile.Client
	h    *host
	vifs []hostile.Vif
	macs []string
}

// recruit starts a process without guests.
func (h *host) recruit() *crew {
	h.tb.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envHostile+"=1", "GOMAXPROCS=2")
	cmd.Stderr = os.Stderr
	c, err := hostile.Start(cmd)
	h.must(err)
	h.tb.Cleanup(func() {
		if err := c.Close(); err != nil {
			h.tb.Error(err)
		}
	})
	return &crew{Client: c, h: h}
}

// crew makes n guests with so many vifs each, and queues of each vif. The vifs are on the
// bridge.
func (h *host) crew(n, vifs, queues int, buffers bool) *crew {
	h.tb.Helper()
	c := h.recruit()
	for range n {
		domid, err := h.CreateDomain(h.ctx, "bad", simclient.DomainConfig{GntallocLimit: 8192, MaxEventChannels: 4095})
		h.must(err)
		for devid := range vifs {
			h.guests++
			v := config(h.guests).Vif
			v.Devid = devid
			h.must(h.Attach(h.ctx, domid, v))
			c.vifs, c.macs = append(c.vifs, hostile.Vif{Domid: domid, Devid: devid}), append(c.macs, v.MAC)
		}
	}
	c.join(hostile.JoinArgs{Xen: h.XenDir(), Vifs: c.vifs, Queues: queues, Buffers: buffers})
	for _, v := range c.vifs {
		h.forwards(v.Domid, v.Devid)
	}
	return c
}

// join connects the guests of the process.
func (c *crew) join(a hostile.JoinArgs) {
	c.h.tb.Helper()
	ctx, cancel := context.WithTimeout(c.h.ctx, 30*time.Second)
	defer cancel()
	c.h.must(c.Join(ctx, a))
}

// load begins a load and returns a function that ends it.
func (c *crew) load(a hostile.LoadArgs) (end func() hostile.Strength) {
	c.h.tb.Helper()
	c.h.must(c.Begin(c.h.ctx, a))
	return func() hostile.Strength {
		c.h.tb.Helper()
		s, err := c.End(c.h.ctx)
		c.h.must(err)
		return s
	}
}

// counter returns the sum of a counter over the crew's vifs.
func (c *crew) counter(name string) (n uint64) {
	c.h.tb.Helper()
	vifs, err := c.h.Control().Vifs(c.h.ctx)
	c.h.must(err)
	for i := range vifs {
		for _, v := range c.vifs {
			if vifs[i].Name == ifname(v.Domid, v.Devid) {
				n += vifs[i].Counters[name]
			}
		}
	}
	return n
}

// bridgeMAC returns the Ethernet address of the host on the bridge, which has a port: before it
// has one its address is another.
func (h *host) bridgeMAC() string {
	h.tb.Helper()
	l, err := netlink.LinkByName(bridge)
	h.must(err)
	return l.Attrs().HardwareAddr.String()
}

// bridgeFloods sets whether the bridge gives the present vifs packets to addresses that it does not know
// (bridge link set dev vif1.0 flood off).
func (h *host) bridgeFloods(on bool) {
	h.tb.Helper()
	links, err := netlink.LinkList()
	h.must(err)
	for _, l := range links {
		if l.Attrs().MasterIndex != 0 {
			h.must(netlink.LinkSetFlood(l, on))
		}
	}
}

// stream sends a stream from a guest to the host for a time, at a rate in bytes per second
// or as fast as it can, and returns its speed in bits per second.
func (h *host) stream(g *lab.Guest, d time.Duration, rate int64) float64 {
	h.tb.Helper()
	ctx, cancel := context.WithTimeout(h.ctx, d+30*time.Second)
	defer cancel()
	r, err := g.TCPSend(ctx, guest.TCPSendArgs{Addr: hostIP + tcpPort, TCPSend: traffic.TCPSend{Duration: d, Seed: 7, Rate: rate}})
	if errors.Is(err, context.DeadlineExceeded) {
		return 0
	}
	h.must(err)
	return r.Rate()
}

// pings returns the times of n pings from a guest to the host. A lost one counts as its
// timeout.
func (h *host) pings(g *lab.Guest, n int) []time.Duration {
	h.tb.Helper()
	const timeout = time.Second
	r, err := g.Ping(h.ctx, guest.PingArgs{Addr: hostIP, PingOptions: traffic.PingOptions{Count: n, Interval: time.Millisecond, Timeout: timeout}})
	h.must(err)
	rtt := r.RTT
	for len(rtt) < r.Sent {
		rtt = append(rtt, timeout)
	}
	return rtt
}

// show runs netbackd show of a vif or device, and returns how long it takes.
func (h *host) show(name string) time.Duration {
	h.tb.Helper()
	begun := time.Now()
	if out, err := exec.CommandContext(h.ctx, h.exe, "show", name, "--run-dir", h.RunDir()).CombinedOutput(); err != nil {
		h.tb.Fatalf("netbackd show: %v\n%s", err, out)
	}
	return time.Since(begun)
}

// reconnect has a guest reconnect, and returns how long it takes.
func (h *host) reconnect(g *lab.Guest) time.Duration {
	h.tb.Helper()
	begun := time.Now()
	_, err := g.Reconnect(h.ctx, guest.ConnectArgs{})
	h.must(err)
	return time.Since(begun)
}

// detach detaches a guest's vif and returns how long that takes. It then gives the guest
// another one.
func (h *host) detach(g *lab.Guest, i int) time.Duration {
	h.tb.Helper()
	took, err := h.Detach(h.ctx, g.Domid, g.Devid)
	h.must(err)
	cfg := config(i)
	h.must(g.Client.Detach(h.ctx, "")) // of the card
	h.must(h.Attach(h.ctx, g.Domid, cfg.Vif))
	cfg.Front.Front.Dir = fmt.Sprintf("device/vif/%d", g.Devid)
	_, err = g.Client.Attach(h.ctx, cfg.Front)
	h.must(err)
	return took
}
