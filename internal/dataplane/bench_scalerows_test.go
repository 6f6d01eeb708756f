// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/netbackd/netbackd/internal/lab/bench"
	"github.com/netbackd/netbackd/internal/lab/netns"
	"github.com/netbackd/netbackd/internal/lab/plot"
)

// benchScale as the value of envBench makes this binary measure how the cost of a packet
// depends on the number of vifs and queues of a worker; see test/bench-scale.
const benchScale = "scale"

// What is measured.
var (
	scaleVifs    = []int{1, 4, 16, 64, 256, 1000}
	scaleQueues  = []int{1, 2, 4, 8}
	scaleBatches = []int{64, 8}
)

// queueVifs is the number of vifs with several queues each.
const queueVifs = 4

// Names of rows.
func allOf(vifs int) string        { return fmt.Sprintf("%d vifs", vifs) }
func oneOf(vifs int) string        { return fmt.Sprintf("1 of %d vifs", vifs) }
func callsOf(vifs int) string      { return fmt.Sprintf("%d vifs, the calls alone", vifs) }
func queuesOf(queues int) string   { return fmt.Sprintf("%d queues each", queues) }
func queueCalls(queues int) string { return queuesOf(queues) + ", the calls alone" }
func vifGroup(batch int) string {
	return fmt.Sprintf("64 B to the host, %d at a time from each vif", batch)
}
func queueGroup(batch int) string {
	return fmt.Sprintf("%d vifs, 64 B to the host, %d at a time from each queue", queueVifs, batch)
}

func scaleMain(args []string) int {
	fl := flag.NewFlagSet("bench-scale", flag.ExitOnError)
	dir := fl.String("dir", "", "write figures and plots to this `directory` as well")
	rounds := fl.Int("rounds", 100, "rounds per group and try")
	_ = fl.Parse(args)
	r, err := measureScale(*rounds)
	if err == nil {
		err = r.Print(os.Stdout)
	}
	if err == nil && *dir != "" {
		err = writeScale(r, *dir)
	}
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench-scale:", err)
		return 1
	case r.Missed() > 0:
		return 1
	}
	return 0
}

// measureScale makes all measurements.
func measureScale(rounds int) (*bench.Report, error) {
	begun := time.Now()
	if err := netns.Available(); err != nil {
		return nil, err
	}
	if err := netns.CheckTUN(); err != nil {
		return nil, err
	}
	cpu, err := bench.Pin()
	if err != nil {
		return nil, err
	}
	rep := &bench.Report{
		Host: hostLine(cpu),
		Method: []string{
			"One thread: guests fill their rings and send events untimed, then the worker's own loop polls and serves until it would sleep. The time is the thread's processor time.",
			"The workers have 1 to 1000 connected vifs, each with a TAP and memory of its own. All guests of a worker together send from 64 MiB, so that the data of few is as cold as that of many.",
			"The calls alone: the same polls, event channel calls, copies and writes to the same TAPs, in the same order, without rings and checks. It is the room of a row.",
			"Event channels are stood in for by eventfds, grant copy by process_vm_readv.",
		},
	}
	l := bench.Limits{Rounds: rounds, Tries: 2, Spread: 0.1}
	if err := scaleOfVifs(rep, l); err != nil {
		return nil, err
	}
	if err := scaleOfQueues(rep, l); err != nil {
		return nil, err
	}
	rep.Seconds = time.Since(begun).Seconds()
	return rep, nil
}

// scalePackets is the least number of packets of a run.
const scalePackets = 2048

// addRun adds a row to a group.
func addRun(g *bench.Group, name string, l scaleLoad, run func(scaleLoad, int) (time.Duration, error)) {
	g.Packets = scalePackets
	g.Peers = append(g.Peers, bench.Peer{Name: name, Run: func() (time.Duration, error) { return run(l, scalePackets) }})
}

// scaleOfVifs measures workers with different numbers of vifs.
func scaleOfVifs(rep *bench.Report, lim bench.Limits) error {
	frame := benchFrames()[0].frame
	many := map[int]*multitude{}
	for _, n := range scaleVifs {
		m, err := newMultitude(fmt.Sprintf("v%d", n), n, 1)
		if err != nil {
			return err
		}
		defer m.close()
		many[n] = m
	}
	for _, batch := range scaleBatches {
		g := bench.Group{Name: vifGroup(batch)}
		for _, n := range scaleVifs {
			m := many[n]
			addRun(&g, allOf(n), scaleLoad{frame: frame, active: n, batch: batch}, m.run)
			addRun(&g, callsOf(n), scaleLoad{frame: frame, active: n, batch: batch}, m.calls)
			addRun(&g, oneOf(n), scaleLoad{frame: frame, active: 1, batch: batch, pages: leastPages}, m.run)
		}
		r, err := g.Measure(lim)
		if err != nil {
			return err
		}
		rep.Results = append(rep.Results, r)
		const few, crowd = 4, 256
		rep.Share("P12", fmt.Sprintf("%d vifs, %d packets at a time: throughput in all relative to that of %d vifs, share of the room", crowd, batch, few),
			r.Each(func(ns []float64) float64 { return ns[0] / ns[1] * ns[2] / ns[3] }, allOf(few), allOf(crowd), callsOf(crowd), callsOf(few)),
			0.97, r.Figure(callsOf(crowd)).Median)
		last := scaleVifs[len(scaleVifs)-1]
		rep.Share("P13", fmt.Sprintf("a busy vif among %d, %d packets at a time: share of its rate alone", last, batch),
			r.Share(oneOf(1), oneOf(last)), 0.98, 0)
	}
	return nil
}

// scaleOfQueues measures workers with vifs of different numbers of queues.
func scaleOfQueues(rep *bench.Report, lim bench.Limits) error {
	frame := benchFrames()[0].frame
	many := map[int]*multitude{}
	for _, n := range scaleQueues {
		m, err := newMultitude(fmt.Sprintf("q%d", n), queueVifs, n)
		if err != nil {
			return err
		}
		defer m.close()
		many[n] = m
	}
	for _, batch := range scaleBatches {
		g := bench.Group{Name: queueGroup(batch)}
		for _, n := range scaleQueues {
			addRun(&g, queuesOf(n), scaleLoad{frame: frame, active: n * queueVifs, batch: batch}, many[n].run)
			addRun(&g, queueCalls(n), scaleLoad{frame: frame, active: n * queueVifs, batch: batch}, many[n].calls)
		}
		r, err := g.Measure(lim)
		if err != nil {
			return err
		}
		rep.Results = append(rep.Results, r)
		for _, n := range scaleQueues[1:] {
			rep.Share("P18", fmt.Sprintf("%d queues for each of %d vifs, %d packets at a time: rate relative to one queue, share of the room", n, queueVifs, batch),
				r.Each(func(ns []float64) float64 { return ns[0] / ns[1] * ns[2] / ns[3] }, queuesOf(1), queuesOf(n), queueCalls(n), queueCalls(1)),
				0.97, r.Figure(queueCalls(n)).Median)
		}
	}
	return nil
}

// writeScale writes the figures and their plots.
func writeScale(r *bench.Report, dir string) error {
	if err := r.WriteJSON(filepath.Join(dir, "scale.json")); err != nil {
		return err
	}
	vifs := plot.Lines{Title: "Processor time of a packet by the number of vifs of a worker", X: "vifs", Y: "ns per packet of 64 B to the host", LogX: true}
	queues := plot.Lines{Title: fmt.Sprintf("Processor time of a packet by the number of queues of each of %d vifs", queueVifs), X: "queues", Y: "ns per packet of 64 B to the host", LogX: true}
	for i := range r.Results {
		res := &r.Results[i]
		line := func(numbers []int, name func(int) string) (points []plot.Point) {
			for _, n := range numbers {
				if f := res.Figure(name(n)); f.Median > 0 {
					points = append(points, plot.Point{X: float64(n), Y: f.Median})
				}
			}
			return points
		}
		for _, batch := range scaleBatches {
			at := fmt.Sprintf(", %d at a time", batch)
			switch res.Name {
			case vifGroup(batch):
				vifs.Series = append(vifs.Series,
					plot.LineSeries{Name: "the calls alone" + at, Points: line(scaleVifs, callsOf)},
					plot.LineSeries{Name: "all send" + at, Points: line(scaleVifs, allOf)},
					plot.LineSeries{Name: "one sends" + at, Points: line(scaleVifs, oneOf)})
			case queueGroup(batch):
				queues.Series = append(queues.Series,
					plot.LineSeries{Name: "the calls alone" + at, Points: line(scaleQueues, queueCalls)},
					plot.LineSeries{Name: "netbackd" + at, Points: line(scaleQueues, queuesOf)})
			}
		}
	}
	for name, l := range map[string]*plot.Lines{"scale-vifs.svg": &vifs, "scale-queues.svg": &queues} {
		svg, err := l.SVG()
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), svg, 0o644)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}
