// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"slices"
	"time"

	"golang.org/x/perf/benchmath"
)

// Peer is one way to do the work of a group.
type Peer struct {
	Name string
	// Run does the work once and returns its duration, without the time of the
	// preparation.
	Run func() (time.Duration, error)
}

// Group is work that several peers do. The others are compared with the first one.
type Group struct {
	Name    string
	Packets int // per run
	Peers   []Peer
}

// Add adds a peer.
func (g *Group) Add(name string, run func() (time.Duration, error)) {
	g.Peers = append(g.Peers, Peer{name, run})
}

// Limits bound the measurement of a group.
type Limits struct {
	Rounds int // per try
	Tries  int // at most
	// Spread is the widest confidence interval of a median, relative to that
	// median, that a try may have. A try with a wider one is void.
	Spread float64
	Until  time.Time // no further try begins after this; zero: no limit
}

// confidence is the level of the intervals in a [Figure].
const confidence = 0.95

// Figure holds the time that one peer needs per packet, in nanoseconds.
type Figure struct {
	Peer   string  `json:"peer"`
	Median float64 `json:"median_ns"`
	Low    float64 `json:"low_ns"` // Low and High bound the median at 95 % confidence
	High   float64 `json:"high_ns"`
	// Ratio is the rate relative to the group's first peer: above 1 is faster.
	Ratio float64 `json:"ratio"`
	// P is the probability of such a difference to the first peer if both were
	// equally fast, by the Mann-Whitney U test.
	P float64 `json:"p"`
}

// Spread returns the width of the confidence interval relative to the median.
func (f Figure) Spread() float64 { return (f.High - f.Low) / f.Median }

// Result holds the figures of the try with the least spread.
type Result struct {
	Name    string   `json:"name"`
	Packets int      `json:"packets_per_run"`
	Rounds  int      `json:"rounds"`
	Tries   int      `json:"tries"`
	Void    bool     `json:"void"` // even this try spread too far
	Spread  float64  `json:"spread"`
	Figures []Figure `json:"figures"`

	took [][]float64 // of each figure's peer, by round: ns per packet
}

// Figure returns the figure of a peer, zero if there is none.
func (r *Result) Figure(peer string) Figure {
	for _, f := range r.Figures {
		if f.Peer == peer {
			return f
		}
	}
	return Figure{}
}

// Share compares two peers round by round: the time of of, divided by that of to. It is zero
// if a peer is missing.
func (r *Result) Share(of, to string) Bounded {
	return r.Each(func(ns []float64) float64 { return ns[0] / ns[1] }, of, to)
}

// Each calculates a value from the times of peers in each round, in nanoseconds per packet.
// Load and clock rates that change during the measurement are the same for all in a round, so
// this is more exact than a value of medians. It returns the median of the rounds and its
// bounds at 95 % confidence, or zeros if a peer is missing.
func (r *Result) Each(value func(ns []float64) float64, peers ...string) Bounded {
	took := make([][]float64, len(peers))
	for k, p := range peers {
		i := slices.IndexFunc(r.Figures, func(f Figure) bool { return f.Peer == p })
		if i < 0 || i >= len(r.took) {
			return Bounded{}
		}
		took[k] = r.took[i]
	}
	values, ns := make([]float64, len(took[0])), make([]float64, len(took))
	for round := range values {
		for k := range took {
			ns[k] = took[k][round]
		}
		values[round] = value(ns)
	}
	sum := benchmath.AssumeNothing.Summary(benchmath.NewSample(values, &benchmath.DefaultThresholds), confidence)
	return Bounded{sum.Center, sum.Lo, sum.Hi}
}

// Bounded is a value with its bounds.
type Bounded struct{ Value, Low, High float64 }

// Spread returns the width between the bounds relative to the value.
func (b Bounded) Spread() float64 { return (b.High - b.Low) / b.Value }

// Measure tries until a try is not void or l allows no further one.
func (g *Group) Measure(l Limits) (best Result, err error) {
	for try := 1; try <= l.Tries; try++ {
		figures, took, err := g.try(l.Rounds)
		if err != nil {
			return best, err
		}
		spread := 0.0
		for _, f := range figures {
			spread = max(spread, f.Spread())
		}
		if try == 1 || spread < best.Spread {
			best.Figures, best.Spread, best.took = figures, spread, took
		}
		best.Tries = try
		best.Void = best.Spread > l.Spread
		if !best.Void || !l.Until.IsZero() && time.Now().After(l.Until) {
			break
		}
	}
	best.Name, best.Packets, best.Rounds = g.Name, g.Packets, l.Rounds
	return best, nil
}

// try runs all rounds once. Each round begins with another peer, so that no peer
// always follows the same one.
func (g *Group) try(rounds int) (_ []Figure, took [][]float64, err error) {
	took = make([][]float64, len(g.Peers)) // ns per packet
	for i := range took {
		took[i] = make([]float64, 0, rounds)
	}
	for round := range rounds {
		for k := range g.Peers {
			i := (round + k) % len(g.Peers)
			d, err := g.Peers[i].Run()
			if err != nil {
				return nil, nil, err
			}
			took[i] = append(took[i], float64(d)/float64(g.Packets))
		}
	}
	names := make([]string, len(g.Peers))
	for i := range names {
		names[i] = g.Peers[i].Name
	}
	return Figures(names, took), took, nil
}

// Figures compares samples of several peers, in nanoseconds per packet, with those of the
// first one.
func Figures(peers []string, took [][]float64) []Figure {
	figures := make([]Figure, len(peers))
	first := benchmath.NewSample(took[0], &benchmath.DefaultThresholds)
	for i := range took {
		s := benchmath.NewSample(took[i], &benchmath.DefaultThresholds)
		sum := benchmath.AssumeNothing.Summary(s, confidence)
		figures[i] = Figure{Peer: peers[i], Median: sum.Center, Low: sum.Lo, High: sum.Hi}
		figures[i].Ratio = figures[0].Median / sum.Center
		figures[i].P = benchmath.AssumeNothing.Compare(first, s).P
	}
	return figures
}
