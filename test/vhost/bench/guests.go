// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/netbackd/netbackd/internal/lab/bench"
	"github.com/netbackd/netbackd/internal/lab/foreign"
	"github.com/netbackd/netbackd/internal/lab/foreign/vmagent"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/traffic"
)

// stream is how long a stream of TCP is measured.
const stream = time.Second

// guest is a peer with a guest under QEMU.
type guest struct {
	*peer
	machine *foreign.Guest
	dial    string // where the guest's server is, for the host
	serve   string // where the host's server is, for the guest
}

// guests measures TCP between the host and a guest of QEMU.
func (b *bed) guests() error {
	if err := b.programs.WriteInitrd(b.path("initrd"), b.agent); err != nil {
		return err
	}
	guests := map[*peer]*guest{}
	for _, start := range []func() (*guest, error){b.guestOfNetbackd, b.guestOfPasst, b.guestOfTap} {
		g, err := start()
		if errors.Is(err, foreign.ErrMissing) {
			b.note("left out: %v", err)
			continue
		}
		if err != nil {
			return err
		}
		guests[g.peer] = g
	}
	server, err := traffic.ListenTCP(fmt.Sprintf(":%d", hostPort))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(b.ctx)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(ctx) // without it no bytes are counted, which is an error
	}()
	defer func() { cancel(); <-served }()

	out, outCPU, err := b.rounds("TCP, guest to host, per KiB", func(p *peer) (sample, error) { return b.stream(guests[p], true) })
	if err != nil {
		return err
	}
	in, inCPU, err := b.rounds("TCP, host to guest, per KiB", func(p *peer) (sample, error) { return b.stream(guests[p], false) })
	if err != nil {
		return err
	}
	qemu, pass := len(b.peers)-1, 1
	against := func(r bench.Result, i int) float64 { return r.Figures[i].Median / r.Figures[0].Median }
	for _, d := range []struct {
		id, what  string
		wall, cpu bench.Result
	}{{"G", "from", out, outCPU}, {"H", "to", in, inCPU}} {
		b.report.AtLeast(d.id+"1", "TCP "+d.what+" a guest of QEMU, against QEMU's own tap", against(d.wall, qemu), 0.95, d.wall.Void)
		text := fmt.Sprintf("TCP %s the guest, per second and per CPU second of QEMU and the back end: netbackd %.0f and %.0f Mbit, QEMU's tap %.0f and %.0f",
			d.what, mbit(d.wall.Figures[0].Median), mbit(d.cpu.Figures[0].Median), mbit(d.wall.Figures[qemu].Median), mbit(d.cpu.Figures[qemu].Median))
		if qemu > pass {
			b.report.AtLeast(d.id+"2", "TCP "+d.what+" a guest of QEMU, against passt", against(d.wall, pass), 1, d.wall.Void)
			text += fmt.Sprintf(", passt %.0f and %.0f", mbit(d.wall.Figures[pass].Median), mbit(d.cpu.Figures[pass].Median))
		}
		b.note("%s", text)
	}
	return nil
}

// cost returns what QEMU and the back end have used: a part of the work moves from one to the
// other with the back end.
func (g *guest) cost() (foreign.Usage, error) {
	u, err := foreign.UsageOf(g.front.PID())
	if err != nil || g.back == nil {
		return u, err
	}
	back, err := foreign.UsageOf(g.back.PID())
	u.CPU += back.CPU
	return u, err
}

// mbit converts nanoseconds per KiB.
func mbit(ns float64) float64 { return 8 * 1024 / ns * 1000 }

// hostPort is the host's server.
const hostPort = 7001

// stream measures one stream of TCP, of which the receiver checks each byte.
func (b *bed) stream(g *guest, out bool) (s sample, err error) {
	time.Sleep(settle)
	before, err := g.cost()
	if err != nil {
		return s, err
	}
	began := time.Now()
	var r traffic.TCPResult
	if out {
		var a vmagent.Answer
		a, err = g.machine.Do(b.ctx, vmagent.Request{Do: "tcp", Addr: g.serve, TCP: traffic.TCPSend{Duration: stream}})
		r = a.TCP
	} else {
		var c net.Conn
		if c, err = traffic.DialTCP(b.ctx, g.dial); err == nil {
			r, err = traffic.SendTCP(b.ctx, c, traffic.TCPSend{Duration: stream})
		}
	}
	if err != nil {
		return s, err
	}
	took := time.Since(began)
	after, err := g.cost()
	return sample{uint64(r.Bytes >> 10), took, after.Sub(before)}, err
}

// boot starts a guest of a peer. network is the third byte of its addresses.
func (b *bed) boot(p *peer, network int, q foreign.QEMU) (*guest, error) {
	q.Program, q.Name, q.Dir, q.Initrd = foreign.NewQEMU, p.name, b.dir, b.path("initrd")
	q.CIDR = fmt.Sprintf("10.77.%d.2/24", network)
	ctx, cancel := context.WithTimeout(b.ctx, time.Minute)
	defer cancel()
	m, err := b.programs.StartQEMU(ctx, q)
	if err != nil {
		return nil, err
	}
	p.front, p.close = m.Process, m.Close
	if _, err := m.Up(ctx); err != nil {
		m.Close()
		return nil, err
	}
	b.add(p)
	return &guest{
		peer: p, machine: m,
		dial:  fmt.Sprintf("10.77.%d.2:%d", network, vmagent.Port),
		serve: fmt.Sprintf("10.77.%d.1:%d", network, hostPort),
	}, nil
}

func (b *bed) guestOfNetbackd() (*guest, error) {
	back, err := b.startNetbackd("gnb", false)
	if err != nil {
		return nil, err
	}
	p := &peer{name: "netbackd", tap: "gnb", back: back}
	if err := netns.AddAddr(p.tap, "10.77.0.1/24"); err != nil {
		return nil, err
	}
	return b.boot(p, 0, foreign.QEMU{Socket: b.path("gnb")})
}

func (b *bed) guestOfTap() (*guest, error) {
	p := &peer{name: "QEMU tap", tap: "gqt"}
	link := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: p.tap}, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR}
	if err := errors.Join(netlink.LinkAdd(link), netns.AddAddr(p.tap, "10.77.1.1/24"), netns.Up(p.tap)); err != nil {
		return nil, err
	}
	return b.boot(p, 1, foreign.QEMU{Netdev: "tap,vhost=off,script=no,downscript=no,ifname=" + p.tap})
}

func (b *bed) guestOfPasst() (*guest, error) {
	ctx, cancel := context.WithTimeout(b.ctx, 20*time.Second)
	defer cancel()
	back, err := b.programs.StartPasst(ctx, b.path("gpa"), "10.77.2.2", "10.77.2.1", vmagent.Port)
	if err != nil {
		return nil, err
	}
	g, err := b.boot(&peer{name: "passt", back: back}, 2, foreign.QEMU{Socket: b.path("gpa")})
	if err == nil {
		g.dial = fmt.Sprintf("127.0.0.1:%d", vmagent.Port)
	}
	return g, err
}
