// SPDX-License-Identifier: Apache-2.0

package vhost

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/lab/foreign"
	"github.com/netbackd/netbackd/internal/lab/foreign/vmagent"
	"github.com/netbackd/netbackd/internal/lab/traffic"
	"github.com/netbackd/netbackd/pkg/vhostuser"
)

// boot starts a guest.
func (b *bed) boot(q foreign.QEMU) *foreign.Guest {
	b.Helper()
	q.Dir, q.CIDR = b.dir, guestCIDR
	if q.Name == "" {
		q.Name = "guest"
	}
	q.Initrd = b.path("initrd")
	if _, err := os.Stat(q.Initrd); err != nil {
		b.ok(b.programs.WriteInitrd(q.Initrd, filepath.Join(os.Getenv(envPrograms), "agent")))
	}
	g, err := b.programs.StartQEMU(b.ctx, q)
	b.missing(err)
	b.ends(g.Process)
	b.Cleanup(g.Close)
	return g
}

// up waits until a guest has booted.
func (b *bed) up(g *foreign.Guest) vmagent.State {
	b.Helper()
	s, err := g.Up(b.ctx)
	b.ok(err)
	return s
}

// serveTCP receives streams of guests at an address of the host and returns the server's address.
func (b *bed) serveTCP(ip string) string {
	b.Helper()
	s, err := traffic.ListenTCP(ip + ":0")
	b.ok(err)
	ctx, cancel := context.WithCancel(b.ctx)
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	b.Cleanup(func() { cancel(); <-done })
	return net.JoinHostPort(ip, fmt.Sprint(s.Addr().(*net.TCPAddr).Port))
}

// tcpToGuest sends a stream of which the guest checks every byte.
func (b *bed) tcpToGuest(bytes int64) traffic.TCPResult {
	b.Helper()
	c, err := traffic.DialTCP(b.ctx, fmt.Sprintf("%s:%d", guestIP, vmagent.Port))
	b.ok(err)
	r, err := traffic.SendTCP(b.ctx, c, traffic.TCPSend{Bytes: bytes, Seed: 1})
	b.ok(err)
	return r
}

// tcpToHost has the guest send a stream of which the host checks every byte.
func (b *bed) tcpToHost(g *foreign.Guest, addr string, bytes int64) traffic.TCPResult {
	b.Helper()
	a, err := g.Do(b.ctx, vmagent.Request{Do: "tcp", Addr: addr, TCP: traffic.TCPSend{Bytes: bytes, Seed: 2}})
	b.ok(err)
	return a.TCP
}

// pings has both sides ping each other.
func (b *bed) pings(g *foreign.Guest, n int) {
	b.Helper()
	o := traffic.PingOptions{Count: n, Size: 1200, Timeout: 10 * time.Second}
	a, err := g.Do(b.ctx, vmagent.Request{Do: "ping", Addr: hostIP, Ping: o})
	b.ok(err)
	if a.Ping.Received != n || a.Ping.Corrupt > 0 {
		b.Errorf("pings of the guest: %+v", a.Ping)
	}
}

// The judge is checked with a network that is not netbackd's.
func TestGuestOnQEMUsTap(t *testing.T) {
	b := newBed(t).all()
	b.makeTap()
	g := b.boot(foreign.QEMU{Program: foreign.NewQEMU, Netdev: "tap,vhost=off,script=no,downscript=no,ifname=" + b.tap})
	b.up(g)
	b.pings(g, 5)
	b.tcpBothWays(g, 32<<20)
}

// large reports whether most bytes of a direction came in packets that are longer than the
// interface's MTU allows: the sender's kernel left the segmentation to the other side.
func large(bytes, packets uint64) bool { return packets > 0 && bytes/packets > 3000 }

// tcpBothWays sends a stream in each direction and checks that large packets carried it.
func (b *bed) tcpBothWays(g *foreign.Guest, bytes int64) {
	b.Helper()
	before, err := g.State(b.ctx)
	b.ok(err)
	b.tcpToGuest(bytes)
	b.tcpToHost(g, b.serveTCP(hostIP), bytes)
	after, err := g.State(b.ctx)
	b.ok(err)
	if !large(after.RxBytes-before.RxBytes, after.RxPackets-before.RxPackets) {
		b.Errorf("the guest got no large packets: %+v, then %+v", before, after)
	}
	if !large(after.TxBytes-before.TxBytes, after.TxPackets-before.TxPackets) {
		b.Errorf("the guest sent no large packets: %+v, then %+v", before, after)
	}
}

func TestQEMU(t *testing.T) {
	for _, c := range []struct {
		name, program string
		core          bool
		queues, mtu   int
		device        string
		xen           string
		has           uint64
		transcript    string
	}{
		{name: "old", program: foreign.OldQEMU, core: true, transcript: "qemu-7.2"},
		{name: "old, packed", program: foreign.OldQEMU, device: ",packed=on", has: featurePacked},
		{name: "old, two pairs", program: foreign.OldQEMU, queues: 2, has: featureMQ, transcript: "qemu-7.2-two-pairs"},
		{name: "new, packed, two pairs", program: foreign.NewQEMU, core: true, device: ",packed=on", queues: 2, has: featurePacked | featureMQ, transcript: "qemu-10.0-two-pairs"},
		{name: "new, MTU", program: foreign.NewQEMU, core: true, device: ",host_mtu=1400", mtu: 1400, has: featureMTU, transcript: "qemu-10.0-mtu"},
		{name: "new, no mergeable buffers", program: foreign.NewQEMU, device: ",mrg_rxbuf=off"},
		{name: "new, Xen's memory offered", program: foreign.NewQEMU, core: true, xen: "foreign"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t)
			if !c.core {
				b.all()
			}
			if c.xen != "" {
				b.xen = c.xen
			}
			queues := max(c.queues, 1)
			s := b.serve(queues, false)
			g := b.boot(foreign.QEMU{Program: c.program, Socket: b.path("front"), Queues: queues, Device: c.device})
			state := b.up(g)
			if mtu := max(c.mtu, 1500*(1-min(c.mtu, 1))); state.MTU != mtu || state.Queues != queues {
				t.Errorf("the guest has MTU %d and %d pairs, want %d and %d", state.MTU, state.Queues, mtu, queues)
			}
			b.pings(g, 10)
			b.tcpBothWays(g, 8<<20)
			lines := s.transcript(0)
			if f := accepted(lines); f&c.has != c.has {
				t.Errorf("QEMU accepted %#x, want %#x among them", f, c.has)
			}
			if c.xen != "" {
				b.acksXen(lines)
			}
			if c.transcript != "" {
				b.compare(c.transcript, b.version(c.program), untilStarted(lines))
			}
		})
	}
}

// acksXen checks that a front end accepted VHOST_USER_PROTOCOL_F_XEN_MMAP, and yet sent
// regions without the fields for Xen: 8 and 32 bytes.
func (b *bed) acksXen(lines []string) {
	b.Helper()
	acked, narrow := false, false
	for _, l := range lines {
		if v, ok := strings.CutPrefix(l, "front SET_PROTOCOL_FEATURES 0x"); ok {
			n, err := strconv.ParseUint(v, 16, 64)
			b.ok(err)
			acked = acked || n&vhostuser.ProtocolXenMmap != 0
		}
		narrow = narrow || strings.HasPrefix(l, "front ADD_MEM_REG") && strings.Contains(l, "bytes=40")
	}
	if !acked || !narrow {
		b.Errorf("accepted Xen's memory: %v; sent narrow regions: %v", acked, narrow)
	}
}

// streams sends TCP in both directions at a rate, runs f meanwhile, and waits for the end of
// the streams, of which every byte is checked.
func (b *bed) streams(g *foreign.Guest, bytes, rate int64, f func()) {
	b.Helper()
	addr := b.serveTCP(hostIP)
	c, err := traffic.DialTCP(b.ctx, fmt.Sprintf("%s:%d", guestIP, vmagent.Port))
	b.ok(err)
	done := make(chan error, 2)
	go func() {
		_, err := traffic.SendTCP(b.ctx, c, traffic.TCPSend{Bytes: bytes, Rate: rate, Seed: 3})
		done <- err
	}()
	go func() {
		_, err := g.Do(b.ctx, vmagent.Request{Do: "tcp", Addr: addr, TCP: traffic.TCPSend{Bytes: bytes, Rate: rate, Seed: 4}})
		done <- err
	}()
	f()
	for range 2 {
		b.ok(<-done)
	}
}

// A back end that is killed and started again continues with the same rings: TCP in both
// directions notices a pause. QEMU cannot do that with packed rings: it learns the position in
// a ring from the back end, and without one it begins at the start again.
func TestQEMUKilledBackEnd(t *testing.T) {
	for _, c := range []struct {
		name, program string
		core, listen  bool
		transcript    string
	}{
		{name: "old", program: foreign.OldQEMU, transcript: "qemu-7.2-again"},
		{name: "new", program: foreign.NewQEMU, core: true, transcript: "qemu-10.0-again"},
		{name: "new, QEMU listens", program: foreign.NewQEMU, listen: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t)
			if !c.core {
				b.all()
			}
			s := b.serve(1, c.listen)
			g := b.boot(foreign.QEMU{Program: c.program, Socket: b.path("front"), Listen: c.listen})
			b.up(g)
			b.pings(g, 2)
			b.streams(g, 12<<20, 3<<20, func() {
				for range 2 {
					b.moves(1 << 20)
					s.restart()
				}
			})
			b.pings(g, 5)
			if c.transcript != "" {
				b.compare(c.transcript, b.version(c.program), s.transcript(1))
			}
		})
	}
}

// moves waits until the TAP has received a number of bytes more.
func (b *bed) moves(bytes uint64) {
	b.Helper()
	var begin uint64
	first := true
	b.await("bytes on "+b.tap, func() bool {
		link, err := netlink.LinkByName(b.tap)
		b.ok(err)
		n := link.Attrs().Statistics.RxBytes
		if first {
			begin, first = n, false
		}
		return n >= begin+bytes
	})
}

func TestQEMUReboot(t *testing.T) {
	b := newBed(t)
	s := b.serve(1, false)
	g := b.boot(foreign.QEMU{Program: foreign.NewQEMU, Socket: b.path("front")})
	before := b.up(g)
	b.pings(g, 2)
	_, err := g.Do(b.ctx, vmagent.Request{Do: "reboot"})
	b.ok(err)
	if after := b.up(g); after.Boot == before.Boot {
		t.Error("the guest has not booted again")
	}
	b.pings(g, 5)
	b.tcpBothWays(g, 4<<20)
	if n := len(s.recorder.Transcripts()); n != 1 {
		t.Errorf("%d connections, want 1: QEMU keeps it when the guest reboots", n)
	}
}

// A guest moves to a file, and from there to another QEMU, under TCP: each page that netbackd
// writes while the memory is saved has to be in the log. A page that is not would show as
// wrong bytes of a stream.
func TestQEMUMigration(t *testing.T) {
	for _, c := range []struct {
		name, device string
		core         bool
	}{{"split", "", true}, {"packed", ",packed=on", false}} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t)
			if !c.core {
				b.all()
			}
			s := b.serve(1, false)
			q := foreign.QEMU{Program: foreign.NewQEMU, Socket: b.path("front"), Device: c.device}
			from := b.boot(q)
			state := b.up(from)
			b.pings(from, 2)
			conn, err := traffic.DialTCP(b.ctx, fmt.Sprintf("%s:%d", guestIP, vmagent.Port))
			b.ok(err)
			done := make(chan error, 1)
			go func() {
				_, err := traffic.SendTCP(b.ctx, conn, traffic.TCPSend{Bytes: 48 << 20, Rate: 6 << 20, Seed: 5})
				done <- err
			}()
			b.migrate(from, b.path("state"))
			lines := s.transcript(0)
			log := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "front SET_LOG_BASE") })
			if log < 0 {
				t.Fatal("QEMU sent no log")
			}
			b.compare("qemu-10.0-migration-"+c.name, b.version(foreign.NewQEMU), lines[log:])
			from.Close()
			q.Name, q.Incoming = "again", b.path("state")
			to := b.boot(q)
			b.ok(<-done)
			after, err := to.State(b.ctx)
			b.ok(err)
			if after.Boot != state.Boot {
				t.Error("the guest has booted again")
			}
			b.pings(to, 5)
			b.tcpBothWays(to, 8<<20)
		})
	}
}

// migrate saves a guest to a file and waits until it is stopped there.
func (b *bed) migrate(g *foreign.Guest, file string) {
	b.Helper()
	_, err := g.Monitor(b.ctx, "migrate", map[string]string{"uri": "exec:cat >" + file})
	b.ok(err)
	b.await("migration", func() bool {
		answer, err := g.Monitor(b.ctx, "query-migrate", nil)
		b.ok(err)
		var m struct{ Status string }
		b.ok(json.Unmarshal(answer, &m))
		if m.Status == "failed" {
			b.Fatalf("migration: %s", answer)
		}
		return m.Status == "completed"
	})
}
