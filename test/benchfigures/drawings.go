// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"
	"strings"

	"github.com/netbackd/netbackd/internal/lab/bench"
	"github.com/netbackd/netbackd/internal/lab/plot"
)

// drawing is a plot of any kind.
type drawing interface{ SVG() ([]byte, error) }

// Rows of the report, without the size of their batches.
const (
	staticUring = "netbackd, static grants, io_uring"
	staticPlain = "netbackd, static grants, system calls"
	copyUring   = "netbackd, grant copy, io_uring"
	copyPlain   = "netbackd, grant copy, system calls"
)

// drawings returns all plots for which the report has figures, by the names of their files.
func drawings(r *bench.Report) map[string]drawing {
	all := map[string]drawing{}
	for file, dir := range map[string]string{"tap-to-host.svg": "guest to host", "tap-to-guest.svg": "host to guest"} {
		if p := times(r, dir); p != nil {
			all[file] = p
		}
		if p := batches(r, dir); p != nil {
			all[strings.Replace(file, "tap-", "tap-batches-", 1)] = p
		}
	}
	if p := shares(r); p != nil {
		all["tap-shares.svg"] = p
	}
	if p := bursts(r); p != nil {
		all["tap-coalescing.svg"] = p
	}
	return all
}

// group returns a group of the report, nil if there is none.
func group(r *bench.Report, name string) *bench.Result {
	for i := range r.Results {
		if r.Results[i].Name == name {
			return &r.Results[i]
		}
	}
	return nil
}

// times draws the time for a packet of each size in the largest batches.
func times(r *bench.Report, dir string) drawing {
	call := map[string]string{"guest to host": "write", "host to guest": "read"}[dir]
	batch := map[string]int{"64 B": 64, "1514 B": 64, "64 KiB GSO": 8}
	if call == "read" {
		batch = map[string]int{"64 B": 128, "1514 B": 128, "64 KiB GSO": 8}
	}
	b := &plot.Bars{Title: "Time for a packet, " + dir, Unit: "ns"}
	rows := []struct {
		name, peer string
		batched    bool
	}{
		{call + "(2) alone, in C", call, false},
		{"forwarder in C, without checks", "forwarder in C", false},
		{"vhost-net", "vhost-net", false},
		{"room: netbackd's calls and copies alone", "room with system calls", false},
		{"netbackd, static grants", staticPlain, true},
		{"room with io_uring", "room with io_uring", false},
		{"netbackd, static grants, io_uring", staticUring, true},
	}
	for _, row := range rows {
		s := plot.BarSeries{Name: row.name}
		b.Rows = b.Rows[:0]
		some := false
		for _, size := range []string{"64 B", "1514 B", "64 KiB GSO"} {
			g := group(r, dir+", "+size)
			if g == nil {
				continue
			}
			peer := row.peer
			if row.batched {
				peer = fmt.Sprintf("%s, batch %d", peer, batch[size])
			}
			f := g.Figure(peer)
			b.Rows = append(b.Rows, size)
			if f.Median == 0 {
				f = bench.Figure{Median: math.NaN(), Low: math.NaN(), High: math.NaN()}
			} else {
				some = true
			}
			s.Values, s.Low, s.High = append(s.Values, f.Median), append(s.Low, f.Low), append(s.High, f.High)
		}
		if some {
			b.Series = append(b.Series, s)
		}
	}
	if len(b.Series) == 0 {
		return nil
	}
	return b
}

// batches draws the time for a packet of 64 B over the number of packets at hand.
func batches(r *bench.Report, dir string) drawing {
	g := group(r, dir+", 64 B")
	if g == nil {
		return nil
	}
	l := &plot.Lines{Title: "Time for a packet of 64 B, " + dir, X: "packets at hand when the worker begins", Y: "ns", LogX: true}
	for _, name := range []string{staticPlain, staticUring, copyPlain, copyUring} {
		s := plot.LineSeries{Name: name}
		for _, n := range []int{1, 8, 64, 128} {
			if f := g.Figure(fmt.Sprintf("%s, batch %d", name, n)); f.Median > 0 {
				s.Points = append(s.Points, plot.Point{X: float64(n), Y: f.Median})
			}
		}
		if len(s.Points) > 0 {
			l.Series = append(l.Series, s)
		}
	}
	if len(l.Series) == 0 {
		return nil
	}
	return l
}

// shorter leaves out of a goal what all have in common.
var shorter = strings.NewReplacer(": share of the room", "", ", static grants", "",
	"gain of static grants over a grant copy for each", "gain over a copy for each")

// shares draws the goals that are shares of a room.
func shares(r *bench.Report) drawing {
	b := &plot.Bars{Title: "Share of the room that netbackd reaches", Unit: "the time of the calls and copies alone, divided by netbackd's"}
	s := plot.BarSeries{Name: "netbackd"}
	bar := 0.0
	for _, g := range r.Goals {
		if g.Room == 0 || g.High == 0 {
			continue
		}
		b.Rows = append(b.Rows, g.ID+" "+shorter.Replace(g.What))
		s.Values, s.Low, s.High = append(s.Values, g.Value), append(s.Low, g.Low), append(s.High, g.High)
		bar = max(bar, g.Bar)
	}
	if len(b.Rows) == 0 {
		return nil
	}
	b.Series, b.Marks = []plot.BarSeries{s}, []plot.Mark{{Name: fmt.Sprintf("goal: %.2f", bar), At: bar}}
	return b
}

// bursts draws what merging packets of a flow gains.
func bursts(r *bench.Report) drawing {
	b := &plot.Bars{Title: "Packets of one flow in bursts, from a guest without segmentation offload", Unit: "rate, relative to a write(2) of each packet"}
	on := plot.BarSeries{Name: "netbackd, static grants, coalescing"}
	off := plot.BarSeries{Name: "netbackd, static grants, without coalescing"}
	for _, proto := range []string{"TCP", "UDP"} {
		for _, n := range []int{44, 8, 2, 1} {
			g := group(r, fmt.Sprintf("guest to host, %s in bursts of %d", proto, n))
			if g == nil {
				continue
			}
			a, z := g.Figure(staticUring+", coalescing"), g.Figure(staticUring+", without coalescing")
			if a.Median == 0 {
				a, z = g.Figure(staticPlain+", coalescing"), g.Figure(staticPlain+", without coalescing")
			}
			if a.Median == 0 || z.Median == 0 {
				continue
			}
			b.Rows = append(b.Rows, fmt.Sprintf("%s, bursts of %d", proto, n))
			on.Values, off.Values = append(on.Values, a.Ratio), append(off.Values, z.Ratio)
		}
	}
	if len(b.Rows) == 0 {
		return nil
	}
	b.Series, b.Marks = []plot.BarSeries{off, on}, []plot.Mark{{Name: "write(2) of each packet", At: 1}}
	return b
}
