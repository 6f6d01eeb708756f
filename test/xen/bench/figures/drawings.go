// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"slices"
	"strings"

	"github.com/netbackd/netbackd/internal/lab/plot"
)

// series is one bar of each row, by the name of the row.
type series struct {
	name  string
	value func(item string) float64 // NaN: there is none
}

// bars makes a drawing. It leaves out rows and series without a value.
func bars(title, unit string, items []string, marks []plot.Mark, all ...series) *plot.Bars {
	b := &plot.Bars{Title: title, Unit: unit, Marks: marks}
	for _, item := range items {
		if slices.ContainsFunc(all, func(s series) bool { return !math.IsNaN(s.value(item)) }) {
			b.Rows = append(b.Rows, item)
		}
	}
	for _, s := range all {
		v := plot.BarSeries{Name: s.name}
		there := false
		for _, item := range b.Rows {
			v.Values = append(v.Values, s.value(item))
			there = there || !math.IsNaN(s.value(item))
		}
		if there {
			b.Series = append(b.Series, v)
		}
	}
	return b
}

// ratio returns the ratios of a back end to the kernel's netback, by item. A void one is none.
func (r *report) ratio(boot, dom0, setup, of string) func(string) float64 {
	return func(item string) float64 {
		n := r.row(key{boot, dom0, setup, item}, of, kernel)
		if n == nil || n.Void {
			return math.NaN()
		}
		return n.Machine.Ratio
	}
}

// perPiece returns counts of a back end per packet or ping, or per 64 KiB of a TCP stream.
func (r *report) perPiece(backend string, count func(*counts) float64) func(string) float64 {
	return func(item string) float64 {
		n := r.counts(key{instructions, "", "", item}, backend)
		if n == nil {
			return math.NaN()
		}
		if strings.HasPrefix(item, "tcp") {
			return count(n) / 16
		}
		return count(n)
	}
}

// milliseconds returns a back end's round trips, by item and percentile.
func (r *report) milliseconds(backend string) func(string) float64 {
	return func(row string) float64 {
		item, p := splitPercentile(row)
		n := r.latency(key{instructions, "", "", item}, backend)
		if n == nil {
			return math.NaN()
		}
		return n.NS[p] / 1e6
	}
}

var percentiles = []string{"p50", "p90", "p99"}

// splitPercentile splits the name of a row: an item, and the index of the percentile after it.
func splitPercentile(row string) (item string, p int) {
	i := strings.LastIndex(row, ", ")
	return row[:i], slices.Index(percentiles, row[i+2:])
}

// latencyRows returns the rows of round trips in either report.
func latencyRows(reports ...*report) (rows []string) {
	for _, r := range reports {
		for _, l := range r.Latency {
			for _, p := range percentiles {
				if name := l.Item + ", " + p; !slices.Contains(rows, name) {
					rows = append(rows, name)
				}
			}
		}
	}
	return rows
}

// drawings returns all plots by the names of their files. Some may have no rows.
func drawings(before, now *report) map[string]*plot.Bars {
	one := []plot.Mark{{Name: "the kernel's netback", At: 1}}
	calls := func(n *counts) float64 { return n.SystemCalls }
	hypercalls := func(n *counts) float64 { return n.Hypercalls }
	interrupts := func(n *counts) float64 { return n.Dom0Interrupts + n.GuestInterrupts }
	const pieces = "per packet or ping, or per 64 KiB of a TCP stream"
	return map[string]*plot.Bars{
		"xen-instructions.svg": bars("Real Xen: instructions of the whole machine, relative to the kernel's netback", "ratio, less is better", networkItems, one,
			series{"netbackd before", before.ratio(instructions, "", "", netbackd)},
			series{"netbackd", now.ratio(instructions, "", "", netbackd)},
			series{"netbackd without io_uring", now.ratio(instructions, "", "", plain)}),
		"xen-time.svg": bars("Real Xen: elapsed time on the emulated machine, relative to the kernel's netback", "ratio, less is better", networkItems, one,
			series{"netbackd before", before.ratio(inTime, "", "", netbackd)},
			series{"netbackd", now.ratio(inTime, "", "", netbackd)},
			series{"netbackd without io_uring", now.ratio(inTime, "", "", plain)}),
		"xen-frames.svg": bars("Real Xen: instructions for frames of our own frontend, relative to the kernel's netback", "ratio, less is better", frameItems, one,
			series{"grant copies before", before.ratio(instructions, "", "", copying)},
			series{"grant copies", now.ratio(instructions, "", "", copying)},
			series{"static grants before", before.ratio(instructions, "", "", static)},
			series{"static grants", now.ratio(instructions, "", "", static)}),
		"xen-setups.svg": bars("Real Xen: instructions in other setups, relative to the kernel's netback", "ratio, less is better", networkItems, one,
			series{"one queue", now.ratio(instructions, "", "", netbackd)},
			series{"four queues", now.ratio(instructions, "", "4 queues", netbackd)},
			series{"Debian 13: Xen 4.20, Linux 6.12", now.ratio(instructions, "trixie", "", netbackd)},
			series{"guest without TSO", now.ratio(instructions, "", "guest without TSO", netbackd)}),
		"xen-system-calls.svg": bars("Real Xen: system calls of netbackd", pieces, networkItems, nil,
			series{"netbackd before", before.perPiece(netbackd, calls)},
			series{"netbackd", now.perPiece(netbackd, calls)},
			series{"netbackd without io_uring", now.perPiece(plain, calls)}),
		"xen-hypercalls.svg": bars("Real Xen: hypercalls of dom0 and the guest", pieces, networkItems, nil,
			series{"the kernel's netback", now.perPiece(kernel, hypercalls)},
			series{"netbackd before", before.perPiece(netbackd, hypercalls)},
			series{"netbackd", now.perPiece(netbackd, hypercalls)}),
		"xen-interrupts.svg": bars("Real Xen: interrupts of dom0 and the guest", pieces, networkItems, nil,
			series{"the kernel's netback", now.perPiece(kernel, interrupts)},
			series{"netbackd before", before.perPiece(netbackd, interrupts)},
			series{"netbackd", now.perPiece(netbackd, interrupts)}),
		"xen-latency.svg": bars("Real Xen: round trip of a ping while dom0's processor is busy", "ms", latencyRows(now, before), nil,
			series{"the kernel's netback", now.milliseconds(kernel)},
			series{"netbackd before", before.milliseconds(netbackd)},
			series{"netbackd", now.milliseconds(netbackd)}),
	}
}
