// SPDX-License-Identifier: Apache-2.0

package vhost

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/lab/foreign"
	"github.com/netbackd/netbackd/internal/lab/foreign/vmagent"
	"github.com/netbackd/netbackd/internal/lab/traffic"
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
	b.ok(err)
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

// serveTCP receives streams of guests and returns the server's address.
func (b *bed) serveTCP() string {
	b.Helper()
	s, err := traffic.ListenTCP(hostIP + ":0")
	b.ok(err)
	ctx, cancel := context.WithCancel(b.ctx)
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	b.Cleanup(func() { cancel(); <-done })
	return net.JoinHostPort(hostIP, fmt.Sprint(s.Addr().(*net.TCPAddr).Port))
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

func TestGuestOnQEMUsTap(t *testing.T) {
	b := newBed(t).all()
	b.makeTap()
	began := time.Now()
	g := b.boot(foreign.QEMU{Program: foreign.NewQEMU, Netdev: "tap,vhost=off,script=no,downscript=no,ifname=" + b.tap})
	t.Logf("%+v", b.up(g))
	t.Log("boot", time.Since(began))
	b.pings(g, 5)
	t.Log("pings", time.Since(began))
	addr := b.serveTCP()
	t.Logf("%+v", b.tcpToGuest(32<<20))
	t.Logf("%+v", b.tcpToHost(g, addr, 32<<20))
	s, err := g.State(b.ctx)
	b.ok(err)
	t.Logf("%+v", s)
}

// large reports whether most bytes of a direction came in packets that are longer than the
// interface's MTU allows: the sender's kernel left the segmentation to the other side.
func large(bytes, packets uint64) bool { return packets > 0 && bytes/packets > 3000 }

func TestQEMU(t *testing.T) {
	for _, program := range []string{foreign.OldQEMU, foreign.NewQEMU} {
		t.Run(program, func(t *testing.T) {
			b := newBed(t)
			s := b.serve(1, false)
			g := b.boot(foreign.QEMU{Program: program, Socket: b.path("front")})
			before := b.up(g)
			b.pings(g, 20)
			addr := b.serveTCP()
			b.tcpToGuest(16 << 20)
			b.tcpToHost(g, addr, 16<<20)
			after, err := g.State(b.ctx)
			b.ok(err)
			if !large(after.RxBytes-before.RxBytes, after.RxPackets-before.RxPackets) {
				t.Errorf("the guest got no large packets: %+v, then %+v", before, after)
			}
			if !large(after.TxBytes-before.TxBytes, after.TxPackets-before.TxPackets) {
				t.Errorf("the guest sent no large packets: %+v, then %+v", before, after)
			}
			t.Log(strings.Join(s.transcript(0), "\n"))
		})
	}
}
