// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/netbackd/netbackd/pkg/xen"
)

// TestChoose: which portion moves where, by loads.
func TestChoose(t *testing.T) {
	of := func(guest, from int, load float64) portion {
		return portion{guest: guestID{domid: xen.Domid(guest)}, from: from, load: load}
	}
	stays := func(p portion) portion { p.stays = true; return p }
	const none = -1
	for _, tt := range []struct {
		name     string
		loads    []float64
		portions []portion
		want, to int
	}{
		{"nothing moves", []float64{0, 0}, nil, none, 0},
		{"a worker has time left", []float64{0.45, 0}, []portion{of(1, 0, 0.2), of(2, 0, 0.25)}, none, 0},
		{"two on one worker", []float64{0.9, 0}, []portion{of(1, 0, 0.45), of(2, 0, 0.45)}, 0, 1},
		{"one alone", []float64{1, 0}, []portion{of(1, 0, 1)}, none, 0},
		{"one alone beside little", []float64{1, 0.05}, []portion{of(1, 0, 0.9), of(2, 0, 0.1), of(3, 1, 0.05)}, none, 0},
		{"nearest to half the difference", []float64{1, 0.2}, []portion{of(1, 0, 0.2), of(2, 0, 0.45), of(3, 0, 0.35), of(4, 1, 0.2)}, 1, 1},
		{"the least busy worker", []float64{0.8, 0.4, 0.1}, []portion{of(1, 0, 0.4), of(2, 0, 0.4)}, 0, 2},
		{"the best stays", []float64{0.9, 0}, []portion{stays(of(1, 0, 0.45)), of(2, 0, 0.25), of(3, 0, 0.2)}, 1, 1},
		{"all stay", []float64{0.9, 0}, []portion{stays(of(1, 0, 0.45)), stays(of(2, 0, 0.45))}, none, 0},
		{"too little to gain", []float64{0.6, 0.35}, []portion{of(1, 0, 0.12), of(2, 0, 0.48)}, none, 0},
		{"three guests and one, all full", []float64{1, 0.95}, []portion{of(1, 0, 0.4), of(2, 0, 0.3), of(3, 0, 0.3), of(4, 1, 0.95)}, 1, 1},
		{"two guests and one, all full", []float64{1, 1}, []portion{of(1, 0, 0.5), of(2, 0, 0.5), of(3, 1, 1)}, none, 0},
		{"guests before queues", []float64{1, 1}, []portion{
			of(1, 0, 0.25), of(1, 0, 0.25), of(1, 0, 0.25), of(1, 0, 0.25),
			of(1, 1, 0.2), of(1, 1, 0.2), of(2, 1, 0.3), of(3, 1, 0.3),
		}, 6, 0},
		{"queues of one guest", []float64{1, 1}, []portion{of(1, 0, 0.3), of(1, 0, 0.3), of(1, 0, 0.3), of(1, 1, 1)}, 0, 1},
		{"idle ones do not count", []float64{1, 1}, []portion{of(1, 0, 0.96), of(2, 0, 0.02), of(3, 0, 0.02), of(4, 1, 1)}, none, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			best, to, ok := choose(tt.loads, tt.portions)
			switch {
			case tt.want == none && ok:
				t.Errorf("moves %+v to %d, want none", best, to)
			case tt.want != none && (!ok || best != &tt.portions[tt.want] || to != tt.to):
				t.Errorf("moves %+v to %d, want portion %d to %d", best, to, tt.want, tt.to)
			}
			if ok && !differ(tt.loads) {
				t.Error("the loads do not seem to differ")
			}
		})
	}
}

// TestChoiceComesToAnEnd: with loads that do not change, each move makes the busier of two workers
// better, nothing goes back to where it was, and there is a last move.
func TestChoiceComesToAnEnd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		loads := make([]float64, rapid.IntRange(2, 6).Draw(t, "workers"))
		var portions []portion
		for range rapid.IntRange(1, 30).Draw(t, "portions") {
			p := portion{
				guest: guestID{domid: xen.Domid(rapid.IntRange(1, 8).Draw(t, "guest"))},
				from:  rapid.IntRange(0, len(loads)-1).Draw(t, "worker"),
				load:  rapid.Float64Range(0, 0.6).Draw(t, "load"),
			}
			if loads[p.from]+p.load > 1 {
				continue
			}
			loads[p.from] += p.load
			portions = append(portions, p)
		}
		for n := 0; ; n++ {
			best, to, ok := choose(loads, portions)
			if !ok {
				return
			}
			from, before := best.from, max(loads[best.from], loads[to])
			loads[from] -= best.load
			loads[to] += best.load
			best.from = to
			if after := max(loads[from], loads[to]); loads[to] <= 1 && before < fullLoad && after > before-leastGain+1e-9 {
				t.Fatalf("the busier one had %v, now %v", before, after)
			}
			if back, at, ok := choose(loads, portions); ok && back == best && at == from {
				t.Fatalf("%+v goes back", *best)
			}
			if n > 1000 {
				t.Fatal("there is no end")
			}
		}
	})
}
