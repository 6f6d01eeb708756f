// SPDX-License-Identifier: Apache-2.0

package staticgrant

import (
	"math/rand/v2"
	"testing"

	"github.com/netbackd/netbackd/pkg/xen"
)

var sink *Page

// benchTable is a full table, and a cycle of queries that is long enough for the
// branch predictor not to learn it whole.
func benchTable(b *testing.B, refs []xen.Gref, query func(*rand.Rand) xen.Gref) (*Table, []xen.Gref) {
	table := new(Table)
	if len(refs) > 0 {
		if err := add(b, newPages(b).source(nil), table, entries(refs...)); err != nil {
			b.Fatal(err)
		}
	}
	rng := rand.New(rand.NewPCG(1, 1))
	queries := make([]xen.Gref, 1<<14)
	for i := range queries {
		queries[i] = query(rng)
	}
	return table, queries
}

func lookups(b *testing.B, refs []xen.Gref, query func(*rand.Rand) xen.Gref) {
	table, queries := benchTable(b, refs, query)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		g := table.Lookup(queries[i&(1<<14-1)])
		sink = g.Page
		i++
	}
}

// BenchmarkLookup: a queue without static grants; grefs as Linux gives them out;
// grefs at random, found, not found, and half of each, which is what a branch
// predictor likes least.
func BenchmarkLookup(b *testing.B) {
	sequential := run(768, DefaultLimit)
	random := hostileSets(nil)["random"]
	anyOf := func(refs []xen.Gref) func(*rand.Rand) xen.Gref {
		return func(r *rand.Rand) xen.Gref { return refs[r.IntN(len(refs))] }
	}
	anything := func(r *rand.Rand) xen.Gref { return xen.Gref(r.Uint32()) }
	b.Run("no static grants", func(b *testing.B) { lookups(b, nil, anything) })
	b.Run("hit sequential", func(b *testing.B) { lookups(b, sequential, anyOf(sequential)) })
	b.Run("hit random", func(b *testing.B) { lookups(b, random, anyOf(random)) })
	b.Run("miss sequential", func(b *testing.B) {
		lookups(b, sequential, func(r *rand.Rand) xen.Gref { return xen.Gref(768 + DefaultLimit + r.Uint32N(DefaultLimit)) })
	})
	b.Run("miss random", func(b *testing.B) { lookups(b, random, anything) })
	b.Run("hit or miss", func(b *testing.B) {
		lookups(b, random, func(r *rand.Rand) xen.Gref {
			if r.IntN(2) == 0 {
				return random[r.IntN(len(random))]
			}
			return xen.Gref(r.Uint32())
		})
	})
}

// BenchmarkLookupAdversarial looks up what a frontend would that knew the
// multiplier: only those grefs whose way through the slots is longest.
func BenchmarkLookupAdversarial(b *testing.B) {
	random := hostileSets(nil)["random"]
	table, _ := benchTable(b, random, func(*rand.Rand) xen.Gref { return 0 })
	steps := func(ref xen.Gref) (n int) {
		mask := uint64(len(table.slots) - 1)
		for i := table.home(ref); ; i += stride {
			s := &table.slots[i&mask]
			if n++; s.page == nil || s.ref == ref {
				return n
			}
		}
	}
	search := func(name string, next func() xen.Gref) {
		var worst []xen.Gref
		longest := 0
		for range 1 << 20 {
			ref := next()
			switch n := steps(ref); {
			case n > longest:
				longest, worst = n, append(worst[:0], ref)
			case n == longest && len(worst) < 1<<10:
				worst = append(worst, ref)
			}
		}
		b.Run(name, func(b *testing.B) {
			var queries [1 << 10]xen.Gref
			for i := range queries {
				queries[i] = worst[i%len(worst)]
			}
			i := 0
			for b.Loop() {
				g := table.Lookup(queries[i&(len(queries)-1)])
				sink = g.Page
				i++
			}
			b.ReportMetric(float64(longest), "slots")
		})
	}
	search("hit", func() xen.Gref { return random[rand.IntN(len(random))] })
	search("miss", func() xen.Gref { return xen.Gref(rand.Uint32()) })
}

// BenchmarkCommit measures the time of a worker for the largest ADD_GREF_MAPPING, and
// for its removal.
func BenchmarkCommit(b *testing.B) {
	refs := hostileSets(nil)["random"]
	s := newPages(b).source(nil)
	table := new(Table)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		p, err := s.Prepare(b.Context(), entries(refs...))
		if err != nil {
			b.Fatal(err)
		}
		list := entries(refs...)
		b.StartTimer()
		if err := table.Commit(p); err != nil {
			b.Fatal(err)
		}
		r := table.Detach(list)
		b.StopTimer()
		if n, err := r.Unmap(); n != len(refs) || err != nil {
			b.Fatal(n, err)
		}
		b.StartTimer()
	}
}
