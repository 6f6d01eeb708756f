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
	"strings"
	"text/tabwriter"
)

// Labels that the scripts set.
const (
	bootInstructions = "instructions"
	bootTime         = "time"
	kernelNetback    = "kernel"
	netbackd         = "netbackd"
	plain            = "plain" // netbackd without io_uring
	copying          = "copy"
	static           = "static"

	withoutTSO = "guest without TSO"
	byAddress  = "copies by address"
)

// group is a boot, and what was the same for all back ends that are compared.
type group struct {
	Boot  string `json:"boot"`
	Dom0  string `json:"dom0_kernel,omitempty"`
	Setup string `json:"setup,omitempty"`
}

func (l *label) group() group { return group{l.Boot, l.Dom0, l.Setup} }

// String returns the group as a heading has it.
func (g group) String() string {
	s := g.Boot
	for _, more := range []string{g.Dom0, g.Setup} {
		if more != "" {
			s += ", " + more
		}
	}
	return s
}

// comparison has two labels. The second is measured relative to the first.
type comparison struct {
	of, to string
	items  []item
	// bounds limits the difference of two phases of one side.
	bounds map[string]float64
}

// The order in which a frontend gets its pages back is random, and with static grants
// consecutive pages are cheaper.
var (
	networkBounds = map[string]float64{bootInstructions: 0.05, bootTime: 0.30}
	frameBounds   = map[string]float64{bootInstructions: 0.10, bootTime: 0.30}
)

var comparisons = []comparison{
	{netbackd, kernelNetback, networkItems, networkBounds},
	{plain, kernelNetback, networkItems, networkBounds},
	{plain, netbackd, networkItems, networkBounds},
	{static, kernelNetback, frameItems, frameBounds},
	{copying, kernelNetback, frameItems, frameBounds},
	{static, copying, frameItems, frameBounds},
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
	group
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
	case r.Machine.Ratio > barOf(r.Goal, 0).bar:
		return "goal missed"
	case r.Machine.Ratio > r.Goal:
		return "bar"
	}
	return "goal"
}

// counts holds the counted operations per unit.
type counts struct {
	group
	Item            string  `json:"item"`
	Unit            string  `json:"unit"`
	Units           int     `json:"units"` // of a measurement
	Backend         string  `json:"backend"`
	Hypercalls      float64 `json:"hypercalls"`
	CopyCalls       float64 `json:"grant_copy_calls"`
	CopyOps         float64 `json:"grant_copy_ops"`
	Maps            float64 `json:"grant_map_ops"`
	OtherGrantOps   float64 `json:"other_grant_ops"`
	EventCalls      float64 `json:"event_channel_calls"`
	Dom0Interrupts  float64 `json:"dom0_interrupts"`
	GuestInterrupts float64 `json:"guest_interrupts"`
	Dom0Switches    float64 `json:"dom0_context_switches"`
	GuestSwitches   float64 `json:"guest_context_switches"`
	SystemCalls     float64 `json:"netbackd_system_calls"`
	GrantCalls      float64 `json:"netbackd_grant_calls"` // by its own counters
	GrantOps        float64 `json:"netbackd_grant_ops"`
	OwnOps          float64 `json:"netbackd_own_grant_ops"` // those with a grant on both sides
	StaticSlots     float64 `json:"netbackd_static_slots"`

	Calls map[string]float64 `json:"netbackd_calls_by_kind,omitempty"` // system calls, by its own counters

	Verdict string `json:"verdict,omitempty"`

	// Interrupts of dom0 by the device in /proc/interrupts.
	Interrupts map[string]float64 `json:"dom0_interrupts_by_device,omitempty"`
}

// limited reports whether the interrupts have a limit.
func (c *counts) limited() bool {
	return targetOf(c.group, &comparisons[0], c.Item).bar != 0 && c.Boot == bootInstructions
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
	for _, g := range groups(records) {
		for _, c := range comparisons {
			for _, it := range c.items {
				rep.add(records, g, &c, &it)
			}
		}
		for _, backends := range [][]string{{kernelNetback, netbackd, plain}, {kernelNetback, copying, static}} {
			items := networkItems
			if backends[1] == copying {
				items = frameItems
			}
			for _, it := range items {
				rep.addCounts(records, g, &it, backends)
			}
		}
	}
	return rep
}

// groups returns the groups of the records, in the order in which they appear first.
func groups(records []record) (out []group) {
	for i := range records {
		if g := records[i].group(); !slices.Contains(out, g) && len(records[i].RTTs) == 0 {
			out = append(out, g)
		}
	}
	return out
}

// add adds the rows of an item.
func (rep *report) add(records []record, g group, c *comparison, it *item) {
	each := func(value func(*record) uint64) pair {
		return makePair(records, g, c, it, func(r *record) float64 { return float64(value(r)) / float64(r.Units) })
	}
	r := row{group: g, Item: it.Name, Unit: it.Unit, Of: c.of, To: c.to}
	// For the whole machine, instructions are the run time of all domains; time is the
	// elapsed time.
	if g.Boot == bootInstructions {
		r.Machine = each(func(r *record) uint64 { return r.Ran.All })
	} else {
		r.Machine = each(func(r *record) uint64 { return uint64(r.Took) })
	}
	if r.Machine.Ratio == 0 {
		return
	}
	limits := targetOf(g, c, it.Name)
	r.Bar, r.Goal = limits.bar, limits.goal
	r.Dom0 = each(func(r *record) uint64 { return r.Ran.Dom0 })
	r.Daemon = each(func(r *record) uint64 { return r.Daemon })
	r.Void = r.Machine.spread() > c.bounds[g.Boot]
	if g.Boot == bootTime && min(len(r.Machine.To.Phases), len(r.Machine.Of.Phases)) < 2 {
		r.Void = true // a single phase does not tell whether this machine was quiet
	}
	rep.Rows = append(rep.Rows, r)
	if it.Unit == "ping" {
		r.Item, r.Unit = "round trip of a ping", ""
		r.Dom0, r.Daemon, r.Bar, r.Goal = pair{}, pair{}, 0, 0
		r.Machine = makePair(records, g, c, it, func(r *record) float64 { return float64(r.RTT) })
		r.Void = r.Machine.spread() > c.bounds[g.Boot]
		rep.RTT = append(rep.RTT, r)
	}
}

// addCounts adds the counts of back ends, the first of which is the kernel's.
func (rep *report) addCounts(records []record, g group, it *item, backends []string) {
	var kernel *counts
	for _, backend := range backends {
		n, ok := makeCounts(records, g, it, backend)
		if !ok {
			continue
		}
		if backend == kernelNetback {
			kernel = &n
		}
		n.Verdict = countsVerdict(&n, kernel)
		rep.Counts = append(rep.Counts, n)
	}
}

// makePair compares the two sides in the figure that value returns for a record.
func makePair(records []record, g group, c *comparison, it *item, value func(*record) float64) pair {
	p := pair{To: makeSide(records, g, it.Name, c.to, value), Of: makeSide(records, g, it.Name, c.of, value)}
	if p.To.Value != 0 {
		p.Ratio = p.Of.Value / p.To.Value
	}
	return p
}

func (p *pair) spread() float64 { return max(p.To.Spread, p.Of.Spread) }

func makeSide(records []record, g group, item, backend string, value func(*record) float64) (s side) {
	var all []float64
	phases := map[int][]float64{}
	for i := range records {
		if r := &records[i]; r.group() == g && r.Item == item && r.Backend == backend && !r.Traced {
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

// makeCounts takes the counts that need no tracing from the records without tracing. It
// reports whether there is a record with tracing.
func makeCounts(records []record, g group, it *item, backend string) (c counts, ok bool) {
	c = counts{group: g, Item: it.Name, Unit: it.Unit, Backend: backend}
	of := func(traced bool, count func(*record) uint64) float64 {
		var all []float64
		for i := range records {
			if r := &records[i]; r.group() == g && r.Item == it.Name && r.Backend == backend && r.Traced == traced {
				all = append(all, float64(count(r))/float64(r.Units))
				c.Units = r.Units
			}
		}
		ok = len(all) > 0
		return median(all)
	}
	c.Dom0Interrupts = of(false, func(r *record) uint64 { return r.Dom0.Interrupts })
	c.Dom0Switches = of(false, func(r *record) uint64 { return r.Dom0.Switches })
	c.GuestInterrupts = of(false, func(r *record) uint64 { return r.Guest.Interrupts })
	c.GuestSwitches = of(false, func(r *record) uint64 { return r.Guest.Switches })
	devices := map[string]bool{}
	for i := range records {
		if r := &records[i]; r.group() == g && r.Item == it.Name && r.Backend == backend {
			for name := range r.Interrupts {
				devices[name] = true
			}
		}
	}
	for name := range devices {
		if n := of(false, func(r *record) uint64 { return r.Interrupts[name] }); n != 0 {
			if c.Interrupts == nil {
				c.Interrupts = map[string]float64{}
			}
			c.Interrupts[name] = n
		}
	}
	c.Hypercalls = of(true, func(r *record) uint64 { return r.Hypercalls.All })
	c.CopyCalls = of(true, func(r *record) uint64 { return r.Hypercalls.CopyCalls })
	c.CopyOps = of(true, func(r *record) uint64 { return r.Hypercalls.CopyOps })
	c.Maps = of(true, func(r *record) uint64 { return r.Hypercalls.Maps })
	c.OtherGrantOps = of(true, func(r *record) uint64 { return r.Hypercalls.OtherOps })
	c.EventCalls = of(true, func(r *record) uint64 { return r.Hypercalls.Events })
	c.SystemCalls = of(true, func(r *record) uint64 { return r.Calls })
	c.GrantCalls = of(true, func(r *record) uint64 { return r.Counters["grant_calls"] })
	c.GrantOps = of(true, func(r *record) uint64 { return r.Counters["grant_ops"] })
	c.OwnOps = of(true, func(r *record) uint64 { return r.Counters["grant_own_ops"] })
	c.StaticSlots = of(true, func(r *record) uint64 { return r.Counters["static_hits"] })
	c.Calls = callsByKind(of)
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
	var all []group
	for _, r := range rep.Rows {
		if !slices.Contains(all, r.group) {
			all = append(all, r.group)
		}
	}
	for _, g := range all {
		for i := range comparisons {
			rep.printRows(t, g, &comparisons[i])
		}
	}
	rep.printCounts(t)
	rep.printCalls(t)
	printLatency(t, rep.Latency)
	return t.Flush()
}

var figures = map[string]string{
	bootInstructions: "instructions of the whole machine",
	bootTime:         "time, ns",
}

func (rep *report) printRows(t io.Writer, g group, c *comparison) {
	head := true
	for _, r := range slices.Concat(rep.Rows, rep.RTT) {
		if r.group != g || r.Of != c.of || r.To != c.to {
			continue
		}
		if head {
			head = false
			fmt.Fprintf(t, "\n%s\t%s\t%s\tratio\tbar\tgoal\t\tspread\t\tdom0 %s\t%s\tratio\tthreads %s\t%s\tratio\t\n",
				figures[g.Boot]+strings.TrimPrefix(g.String(), g.Boot), c.to, c.of, c.to, c.of, c.to, c.of)
		}
		what := r.Item
		if r.Unit != "" {
			what += ", per " + r.Unit
		}
		fmt.Fprintf(t, "%s\t%.0f\t%.0f\t%.2f\t%s\t%s\t%s\t%.1f %%\t%.1f %%\t%s\t%s\t%s\t%s\t%s\t%s\t\n", what,
			r.Machine.To.Value, r.Machine.Of.Value, r.Machine.Ratio, figure(r.Bar, 2), figure(r.Goal, 2), r.verdict(),
			100*r.Machine.To.Spread, 100*r.Machine.Of.Spread,
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

// printCounts prints the counts per unit of each group.
func (rep *report) printCounts(t io.Writer) {
	var last group
	for _, n := range rep.Counts {
		if n.group != last {
			last = n.group
			fmt.Fprintf(t, "\nper unit, boot for %s\t\thypercalls\tcopy calls\tcopy ops\tgrant maps\tother grant ops\tevent calls\tinterrupts dom0\tguest\tswitches dom0\tguest\tsystem calls\tnetbackd's grant calls\tops\twith its own grant\tstatic slots\t\n", last)
		}
		fmt.Fprintf(t, "%s, per %s\t%s\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%s\n", n.Item, n.Unit, n.Backend,
			n.Hypercalls, n.CopyCalls, n.CopyOps, n.Maps, n.OtherGrantOps, n.EventCalls,
			n.Dom0Interrupts, n.GuestInterrupts, n.Dom0Switches, n.GuestSwitches, n.SystemCalls,
			n.GrantCalls, n.GrantOps, n.OwnOps, n.StaticSlots, n.Verdict)
	}
}

// judge returns an error if a row cannot be used, or is worse than its bar. A void row of the
// boot in real time is not an error: this machine was not quiet.
func (rep *report) judge() error {
	var bad []string
	for i := range rep.Rows {
		r := &rep.Rows[i]
		if v := r.verdict(); v == "MISSED" || v == "VOID" && r.Boot != bootTime {
			bad = append(bad, fmt.Sprintf("%s, %s to %s (%s) %s", r.Item, r.Of, r.To, r.group, v))
		}
	}
	for i := range rep.Counts {
		if c := &rep.Counts[i]; c.Verdict != "" {
			bad = append(bad, fmt.Sprintf("%s, %s (%s): %s", c.Item, c.Backend, c.group, c.Verdict))
		}
	}
	for i := range rep.Latency {
		l := &rep.Latency[i]
		if v := l.verdict(); v == "MISSED" || v == "VOID" && l.Boot != bootTime {
			bad = append(bad, fmt.Sprintf("%s, %s (%s) %s", l.Item, l.Backend, l.group(), v))
		}
	}
	if len(rep.Rows) == 0 && len(rep.Latency) == 0 {
		return errors.New("nothing was measured with both back ends")
	}
	if bad != nil {
		return fmt.Errorf("%d rows:\n%s", len(bad), strings.Join(bad, "\n"))
	}
	return nil
}
