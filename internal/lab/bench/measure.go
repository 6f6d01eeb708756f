// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"slices"
	"time"
)

// Peer is one way of doing the work of a group.
type Peer struct {
	Name string
	// Run does the work once and returns how long that took, without what it
	// had to prepare.
	Run func() (time.Duration, error)
}

// Group is work that is done by several peers. The first one is the measure of
// the others.
type Group struct {
	Name    string
	Packets int // per run
	Peers   []Peer
}

// Limits say how a group is measured.
type Limits struct {
	Rounds int       // per try
	Tries  int       // at most
	Spread float64   // (p75-p25)/p50 beyond which a try is void
	Until  time.Time // when no further try is begun; zero: never
}

// Figure is what one peer needs per packet, in nanoseconds.
type Figure struct {
	Peer   string  `json:"peer"`
	Median float64 `json:"median_ns"`
	P25    float64 `json:"p25_ns"`
	P75    float64 `json:"p75_ns"`
	// Ratio is the rate relative to the group's first peer: above 1 is
	// faster.
	Ratio float64 `json:"ratio"`
}

// Spread is the distance of the quartiles relative to the median.
func (f Figure) Spread() float64 { return (f.P75 - f.P25) / f.Median }

// Result is what came of a group: that of the try with the least spread.
type Result struct {
	Name    string   `json:"name"`
	Packets int      `json:"packets_per_run"`
	Rounds  int      `json:"rounds"`
	Tries   int      `json:"tries"`
	Void    bool     `json:"void"` // even the best try spread too far
	Spread  float64  `json:"spread"`
	Figures []Figure `json:"figures"`
}

// Figure finds a peer's figure by its name. It is zero if there is none.
func (r *Result) Figure(peer string) Figure {
	for _, f := range r.Figures {
		if f.Peer == peer {
			return f
		}
	}
	return Figure{}
}

// Measure runs the group until a try is not void, or no tries are left.
func (g *Group) Measure(l Limits) (best Result, err error) {
	for try := 1; try <= l.Tries; try++ {
		figures, err := g.try(l.Rounds)
		if err != nil {
			return best, err
		}
		spread := 0.0
		for _, f := range figures {
			spread = max(spread, f.Spread())
		}
		if try == 1 || spread < best.Spread {
			best.Figures, best.Spread = figures, spread
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

// try runs all rounds once. Each begins with another peer, so that none always
// follows the same one.
func (g *Group) try(rounds int) ([]Figure, error) {
	took := make([][]time.Duration, len(g.Peers))
	for i := range took {
		took[i] = make([]time.Duration, 0, rounds)
	}
	for round := range rounds {
		for k := range g.Peers {
			i := (round + k) % len(g.Peers)
			d, err := g.Peers[i].Run()
			if err != nil {
				return nil, err
			}
			took[i] = append(took[i], d)
		}
	}
	figures := make([]Figure, len(g.Peers))
	for i, d := range took {
		slices.Sort(d)
		at := func(q float64) float64 { return quantile(d, q) / float64(g.Packets) }
		figures[i] = Figure{Peer: g.Peers[i].Name, Median: at(0.5), P25: at(0.25), P75: at(0.75)}
		figures[i].Ratio = figures[0].Median / figures[i].Median
	}
	return figures, nil
}

// quantile of sorted values, between the two that are nearest.
func quantile(sorted []time.Duration, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	at := q * float64(len(sorted)-1)
	i := int(at)
	v := float64(sorted[i])
	if i+1 < len(sorted) {
		v += (at - float64(i)) * float64(sorted[i+1]-sorted[i])
	}
	return v
}
