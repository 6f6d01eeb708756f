// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netbackd/netbackd/internal/lab"
	"github.com/netbackd/netbackd/internal/lab/bench"
	"github.com/netbackd/netbackd/internal/lab/foreign"
	"github.com/netbackd/netbackd/internal/lab/netns"
)

// bed is what the measurements share.
type bed struct {
	options
	ctx      context.Context
	programs foreign.Programs
	dir      string
	report   *bench.Report
	peers    []*peer
}

// peer is a back end with a front end of its own. Only one peer runs at a time; the
// processes of the others are stopped.
type peer struct {
	name  string
	tap   string
	back  *lab.Process // whose processor time counts; nil: not known
	front *lab.Process
	close func()
}

// The processors of back ends and of front ends that poll.
const (
	frontCPU = 0
	backCPU  = 1
)

// priority is that of all processes that are measured, as package foreign starts others.
const priority = 10

// settle is how long a peer runs before it is measured.
const settle = 300 * time.Millisecond

// sample is one run of a peer.
type sample struct {
	packets uint64
	wall    time.Duration
	used    foreign.Usage
}

// close ends all peers.
func (b *bed) close() {
	for _, p := range b.peers {
		for _, q := range []*lab.Process{p.front, p.back} {
			if q != nil {
				q.Signal(unix.SIGCONT)
				q.Kill()
			}
		}
		if p.close != nil {
			p.close()
		}
		if p.tap != "" {
			_ = netns.Delete(p.tap)
			_ = os.Remove(b.path(p.tap)) // the socket of a back end that was killed
		}
	}
	b.peers = nil
}

// signal sends a signal to the processes of a peer.
func (p *peer) signal(s unix.Signal) {
	for _, q := range []*lab.Process{p.back, p.front} {
		if q != nil {
			q.Signal(s)
		}
	}
}

// add adds a peer, stopped.
func (b *bed) add(p *peer) {
	p.signal(unix.SIGSTOP)
	b.peers = append(b.peers, p)
}

// usage of the back end of a peer.
func (p *peer) usage() (foreign.Usage, error) {
	if p.back == nil {
		return foreign.Usage{}, nil
	}
	return foreign.UsageOf(p.back.PID())
}

// rounds measures each peer several times, in turn, and adds the results to the report: the
// time per packet, and the processor time per packet. A void measurement is repeated, and
// that with the least spread counts.
func (b *bed) rounds(what string, run func(*peer) (sample, error)) (wall, cpu bench.Result, err error) {
	for try := 1; try <= maxTries; try++ {
		walls, cpus, err := b.try(run)
		if err != nil {
			return wall, cpu, err
		}
		b.keep(&wall, what+", time", try, walls)
		b.keep(&cpu, what+", processor time", try, cpus)
		if !wall.Void && !cpu.Void {
			break
		}
	}
	b.report.Results = append(b.report.Results, wall, cpu)
	return wall, cpu, nil
}

// try measures each peer several times and returns nanoseconds per packet.
func (b *bed) try(run func(*peer) (sample, error)) (walls, cpus [][]float64, err error) {
	walls, cpus = make([][]float64, len(b.peers)), make([][]float64, len(b.peers))
	for round := range b.options.rounds {
		for k := range b.peers {
			i := (round + k) % len(b.peers)
			p := b.peers[i]
			s, err := p.measure(run)
			if err != nil {
				return nil, nil, fmt.Errorf("%s: %w", p.name, err)
			}
			walls[i] = append(walls[i], float64(s.wall)/float64(s.packets))
			cpus[i] = append(cpus[i], float64(s.used.CPU)/float64(s.packets))
		}
	}
	return walls, cpus, nil
}

// measure runs a peer once. A front end that gets no processor for the whole time, as on a
// machine that does other work, moves nothing: then it runs again.
func (p *peer) measure(run func(*peer) (sample, error)) (s sample, err error) {
	p.signal(unix.SIGCONT)
	defer p.signal(unix.SIGSTOP)
	for range maxTries {
		if s, err = run(p); err != nil || s.packets > 0 {
			return s, err
		}
	}
	return s, fmt.Errorf("no packet moved in %d runs", maxTries)
}

// keep replaces a result by that of a try if it has less spread.
func (b *bed) keep(best *bench.Result, name string, try int, took [][]float64) {
	names := make([]string, len(b.peers))
	for i, p := range b.peers {
		names[i] = p.name
	}
	r := bench.Result{Name: name, Rounds: b.options.rounds, Figures: bench.Figures(names, took)}
	for _, f := range r.Figures {
		r.Spread = max(r.Spread, f.Spread())
	}
	r.Void = r.Spread > maxSpread
	if try == 1 || r.Spread < best.Spread {
		*best = r
	}
	best.Tries = try
}

// maxTries bounds the tries of a measurement.
const maxTries = 3

// maxSpread is the widest interval of a median, relative to it, that is not void. It is
// wide: the machine does other work, and goals are ratios.
const maxSpread = 0.5

// startNetbackd starts netbackd, on the back ends' processor if it is pinned.
func (b *bed) startNetbackd(tap string, pinned bool) (*lab.Process, error) {
	args := []string{"vhost-user", "--socket-path", b.path(tap), "--tap", tap, "--queues", "1",
		"--run-dir", b.dir, "--xen=off"}
	return b.startBack("netbackd", tap, pinned, b.netbackd, args...)
}

// startBack starts a program that makes a TAP and a socket, both of the TAP's name.
func (b *bed) startBack(name, tap string, pinned bool, exe string, args ...string) (*lab.Process, error) {
	if pinned {
		exe, args = "taskset", append([]string{"-c", strconv.Itoa(backCPU), exe}, args...)
	}
	p, err := lab.Start(name, "nice", append([]string{"-n", strconv.Itoa(priority), exe}, args...)...)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(b.ctx, 20*time.Second)
	defer cancel()
	if err := p.WaitLog(ctx, "ready"); err != nil {
		p.Kill()
		return nil, err
	}
	return p, netns.Up(tap)
}

// startTestpmd starts a front end that polls on its own processor.
func (b *bed) startTestpmd(tap, mode string, args ...string) (*lab.Process, error) {
	return b.programs.StartTestpmd(b.ctx, foreign.Testpmd{
		Name: "fe" + tap, Devices: []string{foreign.VirtioUser(b.path(tap), 1, "")}, Mode: mode, CPU: frontCPU, Args: args,
	})
}

// addTestpmd adds netbackd and DPDK's vhost with a TAP, each with testpmd as a front end.
func (b *bed) addTestpmd(mode string, args ...string) error {
	back, err := b.startNetbackd("bnb", true)
	if err != nil {
		return err
	}
	n := &peer{name: "netbackd", tap: "bnb", back: back}
	b.add(n)
	n.signal(unix.SIGCONT)
	if n.front, err = b.startTestpmd("bnb", mode, args...); err != nil {
		return err
	}
	n.signal(unix.SIGSTOP)
	back, err = b.programs.StartDPDKBackend(b.ctx, "be", b.path("bdp"), "bdp", backCPU)
	if err != nil {
		return err
	}
	if err := netns.Up("bdp"); err != nil {
		return err
	}
	d := &peer{name: "DPDK vhost + TAP", back: back}
	b.add(d)
	d.signal(unix.SIGCONT)
	if d.front, err = b.startTestpmd("bdp", mode, args...); err != nil {
		return err
	}
	d.signal(unix.SIGSTOP)
	d.tap, n.tap = "bdp", "bnb"
	return nil
}

// tapPackets returns the frames that the host has received from a TAP and sent to it.
func tapPackets(tap string) (received, sent uint64, err error) {
	link, err := netlink.LinkByName(tap)
	if err != nil {
		return 0, 0, err
	}
	s := link.Attrs().Statistics
	return s.RxPackets, s.TxPackets, nil
}

// perSecond converts nanoseconds per packet, for the reader.
func perSecond(ns float64) string { return fmt.Sprintf("%.0f k/s", 1e6/ns) }
