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
	"text/tabwriter"
)

// Labels that the scripts give.
const (
	bootInstructions = "instructions"
	bootTime         = "time"
	kernelNetback    = "kernel"
	netbackd         = "netbackd"
)

// bounds is how far two phases of one back end may lie apart.
var bounds = map[string]float64{bootInstructions: 0.05, bootTime: 0.30}

// target is what the ratio netbackd to kernel of an item, in instructions, may be.
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
	Spread float64   `json:"spread"` // how far the phases lie apart
}

// row is one item in one boot.
type row struct {
	Boot     string  `json:"boot"`
	Item     string  `json:"item"`
	Unit     string  `json:"unit"`
	Kernel   side    `json:"kernel"`
	Netbackd side    `json:"netbackd"`
	Ratio    float64 `json:"ratio"`
	Void     bool    `json:"void"`
	Bar      float64 `json:"bar,omitempty"`
	Goal     float64 `json:"goal,omitempty"`
}

// verdict is what is to be said of a row with a bar.
func (r *row) verdict() string {
	switch {
	case r.Void:
		return "VOID"
	case r.Bar == 0:
		return ""
	case r.Ratio > r.Bar:
		return "MISSED"
	case r.Ratio > r.Goal:
		return "bar"
	}
	return "goal"
}

// counts is what one unit takes of everything that can be counted.
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
}

type report struct {
	Rows   []row    `json:"rows"`
	RTT    []row    `json:"ping_rtt_ns"`
	Counts []counts `json:"counts"`
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
	rep := &report{}
	for _, boot := range []string{bootInstructions, bootTime} {
		// Of the whole machine, instructions are what all domains ran; time is
		// what it took.
		cost := func(r record) float64 { return float64(r.Ran) }
		if boot == bootTime {
			cost = func(r record) float64 { return float64(r.Took) }
		}
		for _, it := range items {
			if r, ok := makeRow(records, boot, it, func(r record) float64 { return cost(r) / float64(r.Units) }); ok {
				if boot == bootInstructions {
					r.Bar, r.Goal = targets[it.Name].bar, targets[it.Name].goal
				}
				rep.Rows = append(rep.Rows, r)
			}
			if it.Unit == "ping" {
				if r, ok := makeRow(records, boot, it, func(r record) float64 { return float64(r.RTT) }); ok {
					rep.RTT = append(rep.RTT, r)
				}
			}
			for _, backend := range []string{kernelNetback, netbackd} {
				if c, ok := makeCounts(records, boot, it, backend); ok {
					rep.Counts = append(rep.Counts, c)
				}
			}
		}
	}
	return rep
}

// makeRow compares the two sides in what value says of a record.
func makeRow(records []record, boot string, it item, value func(record) float64) (row, bool) {
	r := row{
		Boot: boot, Item: it.Name, Unit: it.Unit,
		Kernel:   makeSide(records, boot, it.Name, kernelNetback, value),
		Netbackd: makeSide(records, boot, it.Name, netbackd, value),
	}
	if r.Kernel.Value == 0 || r.Netbackd.Value == 0 {
		return r, false
	}
	r.Ratio = r.Netbackd.Value / r.Kernel.Value
	r.Void = max(r.Kernel.Spread, r.Netbackd.Spread) > bounds[boot]
	return r, true
}

func makeSide(records []record, boot, item, backend string, value func(record) float64) (s side) {
	var all []float64
	phases := map[int][]float64{}
	for _, r := range records {
		if r.Boot == boot && r.Item == item && r.Backend == backend && !r.Traced {
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
	s.Spread = s.Phases[len(s.Phases)-1]/s.Phases[0] - 1
	return s
}

// makeCounts takes what needs no tracing from the records without.
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
	if rep.has(bootInstructions) {
		fmt.Fprintln(t, "\ninstructions of the whole machine\tkernel\tnetbackd\tratio\tbar\tgoal\t")
		for _, r := range rep.Rows {
			if r.Boot == bootInstructions {
				fmt.Fprintf(t, "%s, per %s\t%.0f\t%.0f\t%.2f\t%.2f\t%.2f\t%s\n", r.Item, r.Unit,
					r.Kernel.Value, r.Netbackd.Value, r.Ratio, r.Bar, r.Goal, r.verdict())
			}
		}
		for _, r := range rep.RTT {
			if r.Boot == bootInstructions {
				fmt.Fprintf(t, "round trip of a ping\t%.0f\t%.0f\t%.2f\t\t\t%s\n", r.Kernel.Value, r.Netbackd.Value, r.Ratio, r.verdict())
			}
		}
	}
	if rep.has(bootTime) {
		fmt.Fprintln(t, "\ntime, ns\tkernel\tnetbackd\tratio\t\t\t")
		for _, r := range rep.Rows {
			if r.Boot == bootTime {
				fmt.Fprintf(t, "%s, per %s\t%.0f\t%.0f\t%.2f\t\t\t%s\n", r.Item, r.Unit, r.Kernel.Value, r.Netbackd.Value, r.Ratio, r.verdict())
			}
		}
	}
	for _, boot := range []string{bootInstructions, bootTime} {
		head := true
		for _, c := range rep.Counts {
			if c.Boot != boot {
				continue
			}
			if head {
				fmt.Fprintf(t, "\nper unit, boot for %s\t\thypercalls\tcopy calls\tcopy ops\tother grant ops\tevent calls\tinterrupts dom0\tguest\tswitches dom0\tguest\tsystem calls\n", boot)
				head = false
			}
			fmt.Fprintf(t, "%s\t%s\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\n", c.Item, c.Backend,
				c.Hypercalls, c.CopyCalls, c.CopyOps, c.OtherGrantOps, c.EventCalls,
				c.Dom0Interrupts, c.GuestInterrupts, c.Dom0Switches, c.GuestSwitches, c.SystemCalls)
		}
	}
	return t.Flush()
}

func (rep *report) has(boot string) bool {
	return slices.ContainsFunc(rep.Rows, func(r row) bool { return r.Boot == boot })
}

// judge is an error if a row cannot be used, or is worse than its bar.
func (rep *report) judge() error {
	var bad []string
	for i := range rep.Rows {
		switch v := rep.Rows[i].verdict(); v {
		case "VOID", "MISSED":
			bad = append(bad, fmt.Sprintf("%s (%s) %s", rep.Rows[i].Item, rep.Rows[i].Boot, v))
		}
	}
	if len(rep.Rows) == 0 {
		return errors.New("nothing was measured with both back ends")
	}
	if bad != nil {
		return fmt.Errorf("%d rows: %q", len(bad), bad)
	}
	return nil
}
