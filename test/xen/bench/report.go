// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"text/tabwriter"
)

// Labels that the scripts set.
const (
	bootInstructions = "instructions"
	bootTime         = "time"
	kernelNetback    = "kernel"
	netbackd         = "netbackd"
	copying          = "copy"
	static           = "static"
)

// comparison has two labels. The second is measured relative to the first.
type comparison struct {
	of, to string
	items  []item
	// bounds limits the difference of two phases of one side.
	bounds map[string]float64
}

// The order in which a frontend gets its pages back is random, and with static grants
// consecutive pages are cheaper.
var comparisons = []comparison{
	{netbackd, kernelNetback, networkItems, map[string]float64{bootInstructions: 0.05, bootTime: 0.30}},
	{static, copying, frameItems, map[string]float64{bootInstructions: 0.10, bootTime: 0.30}},
}

// target has the limits of an item's ratio netbackd to kernel, in instructions.
type target struct{ bar, goal float64 }

var targets = map[string]target{
	"tcp guest to dom0":      {1.40, 1.00},
	"tcp dom0 to guest":      {1.40, 1.00},
	"udp 64 guest to dom0":   {1.30, 1.00},
	"udp 1472 guest to dom0": {1.00, 0.85},
	"udp 64 dom0 to guest":   {0.95, 0.75},
	"udp 1472 dom0 to guest": {0.95, 0.75},
	"ping":                   {1.60, 1.20},
}

// side is one back end's figures for one item, per unit.
type side struct {
	Phases []float64 `json:"phases"` // the median of each
	Value  float64   `json:"value"`  // the median of all
	Spread float64   `json:"spread"` // difference of the phases
}

// pair is one figure of both sides.
type pair struct {
	To    side    `json:"to"`
	Of    side    `json:"of"`
	Ratio float64 `json:"ratio"`
}

// row is one item in one boot.
type row struct {
	Boot string `json:"boot"`
	Item string `json:"item"`
	Unit string `json:"unit"`
	Of   string `json:"of"` // labels of the figures Of and To in pairs
	To   string `json:"to"`

	Machine pair `json:"machine"`
	Dom0    pair `json:"dom0"`
	Daemon  pair `json:"daemon"` // its threads; 0 for a side without a daemon

	Void bool    `json:"void"`
	Bar  float64 `json:"bar,omitempty"`
	Goal float64 `json:"goal,omitempty"`
}

// verdict returns the verdict on a row with a bar.
func (r *row) verdict() string {
	switch {
	case r.Void:
		return "VOID"
	case r.Bar == 0:
		return ""
	case r.Machine.Ratio > r.Bar:
		return "MISSED"
	case r.Machine.Ratio > r.Goal:
		return "bar"
	}
	return "goal"
}

// counts holds the counted operations per unit.
type counts struct {
	Boot            string  `json:"boot"`
	Item            string  `json:"item"`
	Backend         string  `json:"backend"`
	Hypercalls      float64 `json:"hypercalls"`
	CopyCalls       float64 `json:"grant_copy_calls"`
	CopyOps         float64 `json:"grant_copy_ops"`
	OtherGrantOps   float64 `json:"other_grant_ops"`
	EventCalls      float64 `json:"event_channel_calls"`
	Dom0Interrupts  float64 `json:"dom0_interrupts"`
	GuestInterrupts float64 `json:"guest_interrupts"`
	Dom0Switches    float64 `json:"dom0_context_switches"`
	GuestSwitches   float64 `json:"guest_context_switches"`
	SystemCalls     float64 `json:"netbackd_system_calls"`
	GrantCalls      float64 `json:"netbackd_grant_calls"` // by its own counters
	GrantOps        float64 `json:"netbackd_grant_ops"`
	StaticSlots     float64 `json:"netbackd_static_slots"`
}

// verdict returns the verdict on counts with a bar: static grants must need no grant
// operation.
func (c *counts) verdict() string {
	if c.Backend == static && (c.CopyOps != 0 || c.GrantOps != 0 || c.StaticSlots == 0) {
		return "MISSED"
	}
	return ""
}

type report struct {
	Rows    []row     `json:"rows"`
	RTT     []row     `json:"ping_rtt_ns"`
	Counts  []counts  `json:"counts"`
	Latency []latency `json:"latency"`
}

func reportMain(files []string, jsonPath string) error {
	var records []record
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		for dec := json.NewDecoder(bytes.NewReader(b)); ; {
			var r record
			err := dec.Decode(&r)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			records = append(records, r)
		}
	}
	rep := makeReport(records)
	if err := rep.print(os.Stdout); err != nil {
		return err
	}
	if jsonPath != "" {
		b, err := json.MarshalIndent(rep, "", "\t")
		if err != nil {
			return err
		}
		if err := os.WriteFile(jsonPath, append(b, '\n'), 0o644); err != nil {
			return err
		}
	}
	return rep.judge()
}

func makeReport(records []record) *report {
	rep := &report{Latency: latencies(records)}
	for _, boot := range []string{bootInstructions, bootTime} {
		for _, c := range comparisons {
			for _, it := range c.items {
				rep.add(records, boot, &c, &it)
			}
		}
	}
	return rep
}

// add adds the rows and counts of an item.
func (rep *report) add(records []record, boot string, c *comparison, it *item) {
	each := func(value func(*record) uint64) pair {
		return makePair(records, boot, c, it, func(r *record) float64 { return float64(value(r)) / float64(r.Units) })
	}
	r := row{Boot: boot, Item: it.Name, Unit: it.Unit, Of: c.of, To: c.to}
	// For the whole machine, instructions are the run time of all domains; time is the
	// elapsed time.
	if boot == bootInstructions {
		r.Machine = each(func(r *record) uint64 { return r.Ran.All })
		r.Bar, r.Goal = targets[it.Name].bar, targets[it.Name].goal
	} else {
		r.Machine = each(func(r *record) uint64 { return uint64(r.Took) })
	}
	r.Dom0 = each(func(r *record) uint64 { return r.Ran.Dom0 })
	r.Daemon = each(func(r *record) uint64 { return r.Daemon })
	r.Void = r.Machine.spread() > c.bounds[boot]
	if r.Machine.Ratio != 0 {
		rep.Rows = append(rep.Rows, r)
	}
	if it.Unit == "ping" {
		r.Item, r.Unit = "round trip of a ping", ""
		r.Dom0, r.Daemon, r.Bar, r.Goal = pair{}, pair{}, 0, 0
		r.Machine = makePair(records, boot, c, it, func(r *record) float64 { return float64(r.RTT) })
		r.Void = r.Machine.spread() > c.bounds[boot]
		if r.Machine.Ratio != 0 {
			rep.RTT = append(rep.RTT, r)
		}
	}
	for _, backend := range []string{c.to, c.of} {
		if n, ok := makeCounts(records, boot, *it, backend); ok {
			rep.Counts = append(rep.Counts, n)
		}
	}
}

// makePair compares the two sides in the figure that value returns for a record.
func makePair(records []record, boot string, c *comparison, it *item, value func(*record) float64) pair {
	p := pair{To: makeSide(records, boot, it.Name, c.to, value), Of: makeSide(records, boot, it.Name, c.of, value)}
	if p.To.Value != 0 {
		p.Ratio = p.Of.Value / p.To.Value
	}
	return p
}

func (p *pair) spread() float64 { return max(p.To.Spread, p.Of.Spread) }

func makeSide(records []record, boot, item, backend string, value func(*record) float64) (s side) {
	var all []float64
	phases := map[int][]float64{}
	for i := range records {
		if r := &records[i]; r.Boot == boot && r.Item == item && r.Backend == backend && !r.Traced {
			all = append(all, value(r))
			phases[r.Phase] = append(phases[r.Phase], value(r))
		}
	}
	if len(all) == 0 {
		return s
	}
	for _, v := range phases {
		s.Phases = append(s.Phases, median(v))
	}
	slices.Sort(s.Phases)
	s.Value = median(all)
	if least := s.Phases[0]; least > 0 {
		s.Spread = s.Phases[len(s.Phases)-1]/least - 1
	}
	return s
}

// makeCounts takes the counts that need no tracing from the records without tracing.
func makeCounts(records []record, boot string, it item, backend string) (c counts, ok bool) {
	c = counts{Boot: boot, Item: it.Name, Backend: backend}
	of := func(traced bool, count func(*record) uint64) float64 {
		var all []float64
		for i := range records {
			if r := &records[i]; r.Boot == boot && r.Item == it.Name && r.Backend == backend && r.Traced == traced {
				all = append(all, float64(count(r))/float64(r.Units))
			}
		}
		ok = len(all) > 0
		return median(all)
	}
	c.Dom0Interrupts = of(false, func(r *record) uint64 { return r.Dom0.Interrupts })
	c.Dom0Switches = of(false, func(r *record) uint64 { return r.Dom0.Switches })
	c.GuestInterrupts = of(false, func(r *record) uint64 { return r.Guest.Interrupts })
	c.GuestSwitches = of(false, func(r *record) uint64 { return r.Guest.Switches })
	c.Hypercalls = of(true, func(r *record) uint64 { return r.Hypercalls.All })
	c.CopyCalls = of(true, func(r *record) uint64 { return r.Hypercalls.CopyCalls })
	c.CopyOps = of(true, func(r *record) uint64 { return r.Hypercalls.CopyOps })
	c.OtherGrantOps = of(true, func(r *record) uint64 { return r.Hypercalls.OtherOps })
	c.EventCalls = of(true, func(r *record) uint64 { return r.Hypercalls.Events })
	c.SystemCalls = of(true, func(r *record) uint64 { return r.Calls })
	c.GrantCalls = of(true, func(r *record) uint64 { return r.Counters["grant_calls"] })
	c.GrantOps = of(true, func(r *record) uint64 { return r.Counters["grant_ops"] })
	c.StaticSlots = of(true, func(r *record) uint64 { return r.Counters["static_hits"] })
	return c, ok
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func (rep *report) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, boot := range []string{bootInstructions, bootTime} {
		for i := range comparisons {
			rep.printRows(t, boot, &comparisons[i])
		}
	}
	for _, boot := range []string{bootInstructions, bootTime} {
		for i := range comparisons {
			rep.printCounts(t, boot, &comparisons[i])
		}
	}
	printLatency(t, rep.Latency)
	return t.Flush()
}

var figures = map[string]string{
	bootInstructions: "instructions of the whole machine",
	bootTime:         "time, ns",
}

func (rep *report) printRows(t io.Writer, boot string, c *comparison) {
	head := true
	for _, r := range slices.Concat(rep.Rows, rep.RTT) {
		if r.Boot != boot || r.Of != c.of {
			continue
		}
		if head {
			head = false
			fmt.Fprintf(t, "\n%s\t%s\t%s\tratio\tbar\tgoal\t\tdom0 %s\t%s\tratio\tthreads %s\t%s\tratio\t\n",
				figures[boot], c.to, c.of, c.to, c.of, c.to, c.of)
		}
		what := r.Item
		if r.Unit != "" {
			what += ", per " + r.Unit
		}
		fmt.Fprintf(t, "%s\t%.0f\t%.0f\t%.2f\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", what,
			r.Machine.To.Value, r.Machine.Of.Value, r.Machine.Ratio, figure(r.Bar, 2), figure(r.Goal, 2), r.verdict(),
			figure(r.Dom0.To.Value, 0), figure(r.Dom0.Of.Value, 0), figure(r.Dom0.Ratio, 2),
			figure(r.Daemon.To.Value, 0), figure(r.Daemon.Of.Value, 0), figure(r.Daemon.Ratio, 2))
	}
}

// figure formats a figure, as "" if it was not measured.
func figure(v float64, digits int) string {
	if v == 0 {
		return ""
	}
	return strconv.FormatFloat(v, 'f', digits, 64)
}

func (rep *report) printCounts(t io.Writer, boot string, c *comparison) {
	head := true
	for _, n := range rep.Counts {
		if n.Boot != boot || n.Backend != c.of && n.Backend != c.to {
			continue
		}
		if head {
			head = false
			fmt.Fprintf(t, "\nper unit, boot for %s\t\thypercalls\tcopy calls\tcopy ops\tother grant ops\tevent calls\tinterrupts dom0\tguest\tswitches dom0\tguest\tsystem calls\tnetbackd's grant calls\tops\tstatic slots\t\n", boot)
		}
		fmt.Fprintf(t, "%s\t%s\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%s\n", n.Item, n.Backend,
			n.Hypercalls, n.CopyCalls, n.CopyOps, n.OtherGrantOps, n.EventCalls,
			n.Dom0Interrupts, n.GuestInterrupts, n.Dom0Switches, n.GuestSwitches, n.SystemCalls,
			n.GrantCalls, n.GrantOps, n.StaticSlots, n.verdict())
	}
}

// judge returns an error if a row cannot be used, or is worse than its bar.
func (rep *report) judge() error {
	var bad []string
	for i := range rep.Rows {
		switch v := rep.Rows[i].verdict(); v {
		case "VOID", "MISSED":
			bad = append(bad, fmt.Sprintf("%s (%s) %s", rep.Rows[i].Item, rep.Rows[i].Boot, v))
		}
	}
	for i := range rep.Counts {
		if c := &rep.Counts[i]; c.verdict() != "" {
			bad = append(bad, fmt.Sprintf("%s (%s) takes grant operations with static grants", c.Item, c.Boot))
		}
	}
	for i := range rep.Latency {
		switch l := &rep.Latency[i]; l.verdict() {
		case "VOID", "MISSED":
			bad = append(bad, fmt.Sprintf("%s with %s (%s) %s", l.Item, l.Backend, l.Boot, l.verdict()))
		}
	}
	if len(rep.Rows) == 0 && len(rep.Latency) == 0 {
		return errors.New("nothing was measured with both back ends")
	}
	if bad != nil {
		return fmt.Errorf("%d rows: %q", len(bad), bad)
	}
	return nil
}
