// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab/confinetest"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/traffic"
	"github.com/netbackd/netbackd/internal/lab/vhostfront"
	"github.com/netbackd/netbackd/internal/vhostnet"
)

// killed kills the process and starts another one, to which the front end connects.
func (g *virtGuest) killed() {
	g.w.t.Helper()
	g.d.Kill()
	g.w.must(g.d.Restart(g.w.ctx))
	g.w.wait("the front end to reconnect", func() bool {
		i, err := g.VirtInfo(g.w.ctx, "")
		g.w.must(err)
		return i.Connected && i.Sessions > g.virt.Sessions && i.Error == ""
	})
	g.virt.Sessions++
}

// TestVhostKilledUnderTCP: the process is killed again and again while streams run. Each byte
// arrives, each chain is used once and in order, and no packet reaches the guest twice.
func TestVhostKilledUnderTCP(t *testing.T) {
	for _, tc := range []struct {
		name  string
		front vhostfront.Config
	}{
		{"split", vhostfront.Config{}},
		{"split, back end connects", vhostfront.Config{Server: true, InOrder: true}},
		{"split, inflight region", vhostfront.Config{Inflight: true, NoEventIdx: true}},
		{"packed, inflight region", vhostfront.Config{Packed: true, Inflight: true, Server: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			args := []string{"--queues", "1"}
			if tc.front.Server {
				args = append(args, "--connect")
			}
			w, d, g := vhostTest(t, args, fronted(func(c *vhostfront.Config) {
				tc.front.Socket, tc.front.Strict = c.Socket, true
				*c = tc.front
			}))
			stop := g.streaming(2 << 20)
			flood := g.numbered()
			for range 3 {
				before := g.stats().Total.RxPackets
				w.wait("packets to move", func() bool { return g.stats().Total.RxPackets > before+200 })
				g.killed()
			}
			flood()
			if n := stop(); n < 2 {
				t.Errorf("%d streams got through", n)
			}
			g.innocent()
			g.pings(3)
			if s := d.status(); s.Sessions != 1 {
				t.Errorf("%d sessions with the last process", s.Sessions)
			}
			if l, err := netlink.LinkByName(d.status().Interface); err != nil || l.Attrs().MasterIndex == 0 {
				t.Errorf("the TAP is not in its bridge: %v", err)
			}
		})
	}
}

// numbered sends numbered packets to the guest until the returned function is called, which
// checks that none reached it twice or changed.
func (g *virtGuest) numbered() (stop func()) {
	end, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		var failed error
		for {
			select {
			case <-end:
				ended <- failed
				return
			default:
			}
			c, err := traffic.DialUDP(g.w.ctx, g.ip+udpPort, "")
			if err == nil {
				_, err = traffic.SendUDP(g.w.ctx, c, traffic.UDPSend{Count: 400, Size: 200, Rate: 4000, NoReport: true})
			}
			failed = errors.Join(failed, err)
		}
	}()
	return func() {
		g.w.t.Helper()
		close(end)
		g.w.must(<-ended)
		for id := range 4 { // the guest's servers
			list, err := g.UDPResults(g.w.ctx, guest.Server{ID: id})
			if err != nil {
				continue
			}
			got := uint64(0)
			for _, r := range list {
				got += r.Received
				if r.Duplicated != 0 || r.Corrupt != 0 || r.Reordered != 0 {
					g.w.t.Errorf("packets to the guest: %+v", r)
				}
			}
			if got == 0 {
				g.w.t.Error("no numbered packet reached the guest")
			}
		}
	}
}

// TestVhostFrontEndKilled: a front end that is killed under traffic costs its own device a
// moment. The next one is served, and nothing of the first is kept.
func TestVhostFrontEndKilled(t *testing.T) {
	for name, server := range map[string]bool{"front end connects": false, "front end listens": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			args := []string{"--queues", "2"}
			if server {
				args = append(args, "--connect")
			}
			d := w.vhost("web", args...)
			_, files := d.held()
			other := w.vhost("db").guest()
			whole := other.streaming(1 << 20)
			for range 2 {
				g := d.guestAs(9, fronted(func(c *vhostfront.Config) { c.Pairs, c.Server = 2, server }))
				flood := g.flooded()
				w.wait("packets to move", func() bool { return g.stats().Total.RxPackets > 200 })
				w.must(g.Kill())
				flood()
				d.waitStatus("the device to wait", func(s *vhostnet.Status) bool { return s.State == vhostnet.Waiting })
				d.released(files)
			}
			g := d.guestAs(9, fronted(func(c *vhostfront.Config) { c.Server = server }))
			g.pings(3)
			g.tcpToHost(1 << 20)
			g.innocent()
			if n := whole(); n < 2 {
				t.Errorf("%d streams of another device got through", n)
			}
			other.innocent()
		})
	}
}

// TestVhostReconnects: a front end that closes its connection and opens another one continues
// with the same rings.
func TestVhostReconnects(t *testing.T) {
	w, d, g := vhostTest(t, nil)
	stop := g.streaming(1 << 20)
	for range 5 {
		g.op(guest.VirtArgs{Op: "reconnect"})
		before := g.stats().Total
		w.wait("the streams to go on", func() bool {
			now := g.stats().Total
			return now.RxPackets > before.RxPackets+20 && now.TxDone > before.TxDone+20
		})
	}
	for range 3 { // by the host's administrator
		n := d.status().Sessions
		w.must(d.Reset(w.ctx))
		d.waitStatus("another session", func(s *vhostnet.Status) bool { return s.Sessions > n && s.State == vhostnet.Connected })
	}
	if n := stop(); n < 2 {
		t.Errorf("%d streams got through", n)
	}
	g.innocent()
}

// TestVhostEndsFast: SIGTERM ends the process at once, with a front end that is in the middle
// of a stream, and removes its TAP and its socket. A process whose socket or TAP cannot be had ends
// with an error.
func TestVhostEndsFast(t *testing.T) {
	w, d, g := vhostTest(t, nil)
	tapName := d.status().Interface
	stop := g.flooded()
	begin := time.Now()
	d.Signal(syscall.SIGTERM)
	<-d.Done()
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("it took %v to end", took)
	}
	stop()
	w.must(d.Stop()) // its exit code
	if _, err := netlink.LinkByName(tapName); err == nil {
		t.Errorf("%s is left", tapName)
	}
	if _, err := os.Stat(d.Socket); err == nil {
		t.Error("the socket is left")
	}
	for _, args := range [][]string{
		{"--socket-path", "/nonexistent/dir/sock", "--bridge", bridge},
		{"--socket-path", d.Socket, "--bridge", "nobridge"},
		{"--socket-path", d.Socket, "--tap", "lo"},
		{"--fd", "0", "--tap", "tap9"},
	} {
		s := command(w.ctx, installed, append([]string{"vhost-user", "--run-dir", t.TempDir()}, args...)...)
		if s.code == 0 || strings.Count(strings.TrimSpace(s.err), "\n") > 3 {
			t.Errorf("%v: exit code %d, it said %q", args, s.code, s.err)
		}
	}
}

// TestVhostConfined: a process that serves a front end has no right but that to change
// interfaces, and no files but those of its work.
func TestVhostConfined(t *testing.T) {
	_, d, g := vhostTest(t, nil)
	g.tcpToHost(1 << 20)
	err := confinetest.CheckRights(d.PID(), unix.CAP_NET_ADMIN)
	if strings.Contains(d.Log(), "capabilities kept") { // the program under test has cgo
		err = confinetest.CheckFilter(d.PID())
	}
	if err != nil {
		t.Error(err)
	}
	const memory, mine = `/memfd:.*`, `/proc/\d+/task/\d+/(schedstat|stat)`
	const tests = `/dev/null|pipe:\[\d+\]` // how the test knows of the end of the process
	if err := confinetest.CheckFiles(d.PID(), `socket:\[\d+\]`, `anon_inode:\[io_uring\]`, `/dev/net/tun`, memory, mine, `.*\.lock`, tests); err != nil {
		t.Error(err)
	}
}

// TestVhostLists: the commands show devices of vhost-user beside vifs.
func TestVhostLists(t *testing.T) {
	w := newWorld(t)
	d := w.vhost("web", "--queues", "2")
	pv := w.guest()
	if got := row(t, fine(t, w.ask("list")), "web")["STATE"]; got != "waiting" {
		t.Errorf("without a front end it is %q", got)
	}
	g := d.guest(fronted(func(c *vhostfront.Config) { c.Pairs, c.Packed = 2, true }))
	g.tcpToHost(1 << 20)
	list := fine(t, w.ask("list"))
	r := row(t, list, "web")
	if r["STATE"] != "connected" || r["QUEUES"] != "2" || !strings.Contains(r["FEATURES"], "packed") || r["TX PKTS"] == "0" {
		t.Errorf("the list has %v", r)
	}
	if row(t, list, pv.VifName())["STATE"] != "connected" {
		t.Errorf("the vif is not in\n%s", list)
	}
	if out := fine(t, w.ask("list", "--json")); !strings.Contains(out, `"kind": "vhost-user"`) || !strings.Contains(out, `"`+pv.VifName()+`"`) {
		t.Errorf("as JSON it is\n%s", out)
	}
	show := fine(t, w.ask("show", "web"))
	for _, want := range []string{"vhost-user", "connected", "ring_packed", "256 packed", "tx_packets", d.Socket} {
		if !strings.Contains(show, want) {
			t.Errorf("show has no %q:\n%s", want, show)
		}
	}
	if s := d.status(); s.Kind != vhostnet.Kind || !slices.Contains(s.Features, "ring_packed") || s.Frontend == 0 {
		t.Errorf("status %+v", s)
	}
	fine(t, w.ask("reset", "web"))
	d.waitStatus("another session", func(s *vhostnet.Status) bool { return s.Sessions == 2 && s.State == vhostnet.Connected })
	g.waitUp()
	g.pings(3)
	g.innocent()
	if out := fine(t, command(w.ctx, installed, "vhost-user", "--print-capabilities")); !strings.Contains(out, `"type": "net"`) {
		t.Errorf("the capabilities are %q", out)
	}
	w.must(d.Stop())
	if out := fine(t, w.ask("list")); strings.Contains(out, "web ") {
		t.Errorf("a process that has ended is in\n%s", out)
	}
}
