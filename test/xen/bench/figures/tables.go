// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"
	"strings"
)

// tables returns all tables of a page, as Markdown.
func tables(before, now *report) string {
	var b strings.Builder
	for _, c := range []struct{ title, boot, dom0, setup string }{
		{"Instructions of the whole machine", instructions, "", ""},
		{"Elapsed time", inTime, "", ""},
		{"Instructions, four queues", instructions, "", "4 queues"},
		{"Instructions, Debian 13 (Xen 4.20, Linux 6.12)", instructions, "trixie", ""},
		{"Instructions, guest without TSO", instructions, "", "guest without TSO"},
		{"Instructions, copies by address only", instructions, "", "copies by address"},
	} {
		heads := []string{"before", "now", "spread", "bar", "goal", "without io_uring", "without / with"}
		write(&b, c.title+", relative to the kernel's netback", heads, networkItems, func(item string) []string {
			k := key{c.boot, c.dom0, c.setup, item}
			n := now.row(k, netbackd, kernel)
			return []string{
				value(before.row(k, netbackd, kernel)), value(n), spread(n), limit(n, false), limit(n, true),
				value(now.row(k, plain, kernel)), value(now.row(k, plain, netbackd)),
			}
		})
	}
	heads := []string{"static before", "static now", "bar", "goal", "copies before", "copies now"}
	write(&b, "Frames of our own frontend, instructions relative to the kernel's netback", heads, frameItems, func(item string) []string {
		k := key{instructions, "", "", item}
		n := now.row(k, static, kernel)
		return []string{
			value(before.row(k, static, kernel)), value(n), limit(n, false), limit(n, true),
			value(before.row(k, copying, kernel)), value(now.row(k, copying, kernel)),
		}
	})
	heads = []string{"p50", "p90", "p99", "p50 before", "p90 before", "p99 before"}
	var items []string
	for _, l := range now.Latency {
		if l.Backend == netbackd {
			items = append(items, l.Item)
		}
	}
	write(&b, "Round trips while dom0 is busy, relative to the kernel's netback", heads, items, func(item string) (cells []string) {
		for _, r := range []*report{now, before} {
			l := r.latency(key{instructions, "", "", item}, netbackd)
			for p := range percentiles {
				if l == nil {
					cells = append(cells, "")
				} else {
					cells = append(cells, fmt.Sprintf("%.2f", l.Ratio[p]))
				}
			}
		}
		return cells
	})
	b.WriteString(countsTable(before, now))
	return b.String()
}

// countsTable returns the table of counts of each item, per packet, ping or MiB.
func countsTable(before, now *report) string {
	var b strings.Builder
	var rows []string
	found := map[string]*counts{}
	for _, item := range networkItems {
		k := key{instructions, "", "", item}
		for _, side := range []struct {
			name, backend string
			from          *report
		}{{"kernel", kernel, now}, {"netbackd before", netbackd, before}, {"netbackd", netbackd, now}, {"without io_uring", plain, now}} {
			if n := side.from.counts(k, side.backend); n != nil {
				rows = append(rows, item+", "+side.name)
				found[item+", "+side.name] = n
			}
		}
	}
	heads := []string{"system calls", "hypercalls", "copy calls", "grant maps", "own copies", "copies by address", "interrupts dom0", "guest"}
	write(&b, "Counts per MiB (TCP), packet (UDP) or ping", heads, rows, func(row string) []string {
		n := found[row]
		var cells []string
		for _, v := range []float64{n.SystemCalls, n.Hypercalls, n.CopyCalls, n.Maps, n.OwnOps, max(0, n.GrantOps-n.OwnOps), n.Dom0Interrupts, n.GuestInterrupts} {
			cells = append(cells, fmt.Sprintf("%.3f", v))
		}
		return cells
	})
	return b.String()
}

// write writes a table, unless it has no cell.
func write(b *strings.Builder, title string, heads, rows []string, cells func(string) []string) {
	var lines strings.Builder
	for _, name := range rows {
		all := cells(name)
		if strings.Join(all, "") != "" {
			fmt.Fprintf(&lines, "| %s | %s |\n", name, strings.Join(all, " | "))
		}
	}
	if lines.Len() == 0 {
		return
	}
	fmt.Fprintf(b, "\n%s:\n\n| | %s |\n|-|%s\n%s", title, strings.Join(heads, " | "), strings.Repeat("-|", len(heads)), lines.String())
}

// value returns a ratio; it says so if the row is void.
func value(n *row) string {
	switch {
	case n == nil || n.Machine.Ratio == 0 || math.IsNaN(n.Machine.Ratio):
		return ""
	case n.Void:
		return fmt.Sprintf("void (%.2f)", n.Machine.Ratio)
	}
	return fmt.Sprintf("%.2f", n.Machine.Ratio)
}

// spread returns the difference of the phases of both sides, if each has several.
func spread(n *row) string {
	if n == nil || len(n.Machine.To.Phases) < 2 || len(n.Machine.Of.Phases) < 2 {
		return ""
	}
	return fmt.Sprintf("%.1f / %.1f %%", 100*n.Machine.To.Spread, 100*n.Machine.Of.Spread)
}

func limit(n *row, goal bool) string {
	switch {
	case n == nil || n.Bar == 0:
		return ""
	case goal:
		return fmt.Sprintf("%.2f", n.Goal)
	}
	return fmt.Sprintf("%.2f", n.Bar)
}
