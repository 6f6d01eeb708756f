// SPDX-License-Identifier: Apache-2.0

// Package demo shows netbackd at work on a machine without Xen: an embedded Xen,
// netbackd and guests on a bridge, whose kernels' TCP and UDP go through the
// same code that serves real guests.
//
// It contains the steps of the demonstration. Package lab sets up the host.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/guest"
	"github.com/netbackd/netbackd/internal/lab/netfront"
	"github.com/netbackd/netbackd/internal/lab/traffic"
	"github.com/netbackd/netbackd/pkg/xenbus"
)

// Options are the settings of the demo.
type Options struct {
	Exe    string    // the program netbackd-lab
	Out    io.Writer // for the texts of the demo
	Queues int       // of each guest
	// Stretch is the duration of each TCP stream.
	Stretch time.Duration
	// Daemon are more arguments for `netbackd run`.
	Daemon []string
}

// ErrLost is returned by Run when packets or bytes were lost.
var ErrLost = errors.New("something was lost")

const (
	bridge   = "xenbr0"
	hostAddr = "10.97.0.1"
	tcpPort  = "5001"
	udpPort  = "5002"

	pings     = 20
	udpCount  = 50000
	udpSize   = 64
	udpWindow = 128 // less than any queue on the way holds
	setupTime = 20 * time.Second
)

// show is one run of the demo.
type show struct {
	Options
	lab    *lab.Lab
	guests []*lab.Guest
	addrs  []string
	lost   []string // the failures, a line each
	begin  time.Time
	prices []price
}

// Run runs the demo and cleans up. The process must be in a private network
// (netns.Enter).
func Run(ctx context.Context, opts Options) (err error) {
	dir, err := os.MkdirTemp("", "netbackd-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s := &show{Options: opts, begin: time.Now()}
	defer func() {
		if s.lab != nil {
			err = errors.Join(err, s.lab.Close())
		}
	}()
	s.say("A host with an embedded Xen, netbackd and guests on bridge %s, all in a\nprivate network of this machine. The guests' packets come from real TCP stacks.\n", bridge)
	if err := s.setUp(ctx, dir); err != nil {
		return err
	}
	if err := s.traffic(ctx); err != nil {
		return err
	}
	return s.report(ctx)
}

func (s *show) say(format string, v ...any) { fmt.Fprintf(s.Out, format+"\n", v...) }

// step prints what is done, runs f and prints its result.
func (s *show) step(what string, f func() (string, error)) error {
	fmt.Fprintf(s.Out, "  %-28s ", what)
	came, err := f()
	if err != nil {
		fmt.Fprintln(s.Out, "FAILED")
		return fmt.Errorf("%s: %w", what, err)
	}
	fmt.Fprintln(s.Out, came)
	return nil
}

func (s *show) setUp(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, setupTime)
	defer cancel()
	err := s.step("embedded Xen and netbackd", func() (string, error) {
		begin := time.Now()
		l, err := lab.New(ctx, lab.Options{Exe: s.Exe, Dir: dir, Daemon: append([]string{fmt.Sprintf("--max-queues=%d", s.Queues)}, s.Daemon...)})
		s.lab = l
		if err != nil {
			return "", err
		}
		if err := l.Bridge(bridge, hostAddr+"/24"); err != nil {
			return "", err
		}
		d, err := l.Control().Daemon(ctx)
		return fmt.Sprintf("ready in %v, %d workers, io_uring %s", time.Since(begin).Round(time.Millisecond), d.Workers, d.Uring), err
	})
	if err != nil {
		return err
	}
	for i, name := range []string{"web", "db"} {
		err := s.step("guest "+name, func() (string, error) { return s.startGuest(ctx, i, name) })
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *show) startGuest(ctx context.Context, i int, name string) (string, error) {
	begin := time.Now()
	addr := fmt.Sprintf("10.97.0.%d", 10+i)
	g, err := s.lab.StartGuest(ctx, lab.GuestConfig{
		Name: name,
		Vif:  lab.VifConfig{MAC: fmt.Sprintf("00:16:3e:00:00:%02x", 1+i), Bridge: bridge},
		Front: guest.VifConfig{
			Addrs: []string{addr + "/24"},
			Front: netfront.Config{Queues: s.Queues, SplitEvents: true, Control: true},
		},
	})
	if err != nil {
		return "", err
	}
	s.guests = append(s.guests, g)
	s.addrs = append(s.addrs, addr)
	if err := s.lab.BackState(ctx, g.Domid, g.Devid, xenbus.Connected); err != nil {
		return "", err
	}
	if _, err := g.TCPServe(ctx, guest.ServeArgs{Addr: ":" + tcpPort}); err != nil {
		return "", err
	}
	if _, err := g.UDPServe(ctx, guest.ServeArgs{Addr: ":" + udpPort}); err != nil {
		return "", err
	}
	st, err := s.lab.Vif(ctx, g.VifName())
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("domain %d, %s connected in %v: %d queues, %s", g.Domid, st.Name,
		time.Since(begin).Round(time.Millisecond), len(st.Queues), strings.Join(st.Features, " ")), nil
}

func (s *show) traffic(ctx context.Context) (err error) {
	tcp, err := traffic.ListenTCP(hostAddr + ":" + tcpPort)
	if err != nil {
		return err
	}
	udp, err := traffic.ListenUDP(hostAddr + ":" + udpPort)
	if err != nil {
		return errors.Join(err, tcp.Close())
	}
	serve, stop := context.WithCancel(ctx)
	served := make(chan error, 2)
	go func() { served <- tcp.Serve(serve) }()
	go func() { served <- udp.Serve(serve) }()
	defer func() {
		stop()
		err = errors.Join(err, <-served, <-served)
	}()

	web, db := s.guests[0], s.guests[1]
	s.say("")
	steps := []func() error{
		func() error { return s.hostPing(ctx, "ping host -> web", s.addrs[0]) },
		func() error { return s.ping(ctx, "ping web -> db", web, s.addrs[1]) },
	}
	for _, step := range s.pricedSteps() {
		steps = append(steps, func() error {
			return s.priced(ctx, func() error { return step.run(ctx, step.name) })
		})
	}
	steps = append(steps,
		func() error { return s.tcp(ctx, "TCP web -> db", web, s.addrs[1]) },
		func() error { return s.tcp(ctx, "TCP db -> web", db, s.addrs[0]) },
		func() error { return s.udp(ctx, fmt.Sprintf("UDP %d B web -> db", udpSize), web, s.addrs[1]) },
		func() error { s.say("\nNow web uses its control ring:\n"); return nil },
		func() error { return s.steering(ctx) },
		func() error { return s.staticGrants(ctx) },
		func() error { return s.vhostUser(ctx) },
	)
	for _, f := range steps {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// pricedStep is traffic of the first guest that runs without and with static grants.
type pricedStep struct {
	name string
	run  func(ctx context.Context, name string) error
}

func (s *show) pricedSteps() []pricedStep {
	web := s.guests[0]
	return []pricedStep{
		{"TCP web -> host", func(ctx context.Context, name string) error { return s.tcp(ctx, name, web, hostAddr) }},
		{"TCP host -> web", func(ctx context.Context, name string) error { return s.hostTCP(ctx, name, s.addrs[0]) }},
		{fmt.Sprintf("UDP %d B web -> host", udpSize), func(ctx context.Context, name string) error { return s.udp(ctx, name, web, hostAddr) }},
	}
}

func (s *show) hostPing(ctx context.Context, what, to string) error {
	return s.step(what, func() (string, error) {
		addr, err := netip.ParseAddr(to)
		if err != nil {
			return "", err
		}
		p, err := traffic.DialPing(addr)
		if err != nil {
			return "", err
		}
		defer func() { _ = p.Close() }()
		r, err := p.Ping(ctx, pingOptions())
		return s.pinged(what, r), err
	})
}

func pingOptions() traffic.PingOptions {
	return traffic.PingOptions{Count: pings, Interval: 5 * time.Millisecond}
}

func (s *show) ping(ctx context.Context, what string, from *lab.Guest, to string) error {
	return s.step(what, func() (string, error) {
		r, err := from.Ping(ctx, guest.PingArgs{Addr: to, PingOptions: pingOptions()})
		return s.pinged(what, r), err
	})
}

func (s *show) pinged(what string, r traffic.PingResult) string {
	if r.Received != r.Sent || r.Corrupt != 0 {
		s.lose("%s: %d of %d came back, %d corrupt", what, r.Received, r.Sent, r.Corrupt)
	}
	return fmt.Sprintf("%d of %d came back, median %v", r.Received, r.Sent, r.Median().Round(time.Microsecond))
}

func (s *show) tcp(ctx context.Context, what string, from *lab.Guest, to string) error {
	return s.step(what, func() (string, error) {
		r, err := from.TCPSend(ctx, guest.TCPSendArgs{Addr: to + ":" + tcpPort, TCPSend: s.stream()})
		return s.streamed(what, r), err
	})
}

func (s *show) hostTCP(ctx context.Context, what, to string) error {
	return s.step(what, func() (string, error) {
		c, err := traffic.DialTCP(ctx, to+":"+tcpPort)
		if err != nil {
			return "", err
		}
		r, err := traffic.SendTCP(ctx, c, s.stream())
		return s.streamed(what, r), err
	})
}

func (s *show) stream() traffic.TCPSend { return traffic.TCPSend{Duration: s.Stretch, Seed: 1} }

func (s *show) streamed(what string, r traffic.TCPResult) string {
	if r.Wrong != 0 {
		s.lose("%s: %d bytes wrong, the first at %d", what, r.Wrong, r.First)
	}
	return fmt.Sprintf("%6.2f Gb/s, %d MB, every byte checked", r.Rate()/1e9, r.Bytes/1e6)
}

func (s *show) udp(ctx context.Context, what string, from *lab.Guest, to string) error {
	return s.step(what, func() (string, error) {
		r, err := from.UDPSend(ctx, guest.UDPSendArgs{
			Addr:    to + ":" + udpPort,
			UDPSend: traffic.UDPSend{Count: udpCount, Size: udpSize, Window: udpWindow},
		})
		if r.Lost != 0 || r.Corrupt != 0 || r.Duplicated != 0 {
			s.lose("%s: %d lost, %d corrupt, %d duplicated", what, r.Lost, r.Corrupt, r.Duplicated)
		}
		return fmt.Sprintf("%6.0f packets/s, %d of %d, %d out of order",
			float64(r.Received)/r.Duration.Seconds(), r.Received, r.Sent, r.Reordered), err
	})
}

// lose records something that must not have happened.
func (s *show) lose(format string, v ...any) { s.lost = append(s.lost, fmt.Sprintf(format, v...)) }
