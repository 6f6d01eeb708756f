// SPDX-License-Identifier: Apache-2.0

package blkdemo

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/netbackd/netbackd/internal/lab/blkguest"
	"github.com/netbackd/netbackd/internal/lab/diskcheck"
)

// cost is a line of the table.
type cost struct {
	name string
	res  diskcheck.Result
	n    map[string]uint64 // counters of the daemon, of this load alone
}

// grants is a kind of connection that is measured.
type grants struct {
	name       string
	segments   int // of an indirect request
	persistent bool
}

// work is a load that is measured.
type work struct {
	name string
	load diskcheck.Load
}

// measure measures direct requests against indirect ones, and copies against persistent
// grants. What the disk has then does not matter.
func (s *show) measure(ctx context.Context) error {
	s.say("")
	for _, g := range []grants{
		{"direct, copies", 0, false}, {"indirect, copies", 256, false},
		{"direct, persistent", 0, true}, {"indirect, persistent", 256, true},
	} {
		err := s.step(g.name, func() (string, error) {
			f := front(g.segments, g.persistent)
			if _, err := s.guest.Reconnect(ctx, blkguest.ConnectArgs{Front: &f}); err != nil {
				return "", err
			}
			said := ""
			for _, w := range []work{
				{"sequential read", diskcheck.Load{Sequential: true, Depth: 4, MinSegments: 256, Reads: 100}},
				{"sequential write", diskcheck.Load{Sequential: true, Depth: 4, MinSegments: 256}},
				{"4 KiB read", diskcheck.Load{Depth: 32, MinSegments: 1, Reads: 100}},
			} {
				if g.segments == 0 && w.load.MinSegments > 1 {
					w.load.Depth *= 8 // as many bytes in flight, nearly: 11 segments each
				}
				r, err := s.cost(ctx, g.name+", "+w.name, w.load)
				if err != nil {
					return "", err
				}
				said += fmt.Sprintf("%s %4.0f MiB/s  ", w.name, r.MiB())
			}
			return strings.TrimSpace(said), nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// cost runs a load and adds a line to the table.
func (s *show) cost(ctx context.Context, name string, l diskcheck.Load) (diskcheck.Result, error) {
	l.Duration, l.Unchecked = s.Stretch, true
	before, err := s.status(ctx)
	if err != nil {
		return diskcheck.Result{}, err
	}
	r, err := s.load(ctx, l)
	if err != nil {
		return r, err
	}
	after, err := s.status(ctx)
	c := cost{name, r, map[string]uint64{}}
	for k, n := range after.Counters {
		c.n[k] = n - before.Counters[k]
	}
	s.costs = append(s.costs, c)
	return r, err
}

// report prints the table.
func (s *show) report() {
	s.say("\nCost (events are those of both sides; MiB of data):\n")
	t := tabwriter.NewWriter(s.Out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "LOAD\tREQUESTS/S\tSEGMENTS/REQ\tHALF WITHIN\t99% WITHIN\tSYSCALLS/REQ\tGRANT OPS/REQ\tREQUESTS/MIB\tEVENTS/MIB\t")
	for i := range s.costs {
		c := &s.costs[i]
		req, mib := float64(c.res.Requests), float64(c.res.Bytes)/(1<<20)
		events := float64(c.n["notifies"] + c.res.Stats.Notifies)
		ops := float64(c.n["grant_ops"] + c.n["maps"] + c.n["unmaps"])
		fmt.Fprintf(t, "%s\t%.0f\t%.1f\t%v\t%v\t%.2f\t%.2f\t%.1f\t%.1f\t\n", c.name, c.res.Rate(), float64(c.res.Stats.Segments)/req,
			c.res.Latency.Quantile(0.5), c.res.Latency.Quantile(0.99),
			float64(c.n["syscalls"])/req, ops/req, req/mib, events/mib)
	}
	_ = t.Flush() // errors of the output are those of the terminal
}
