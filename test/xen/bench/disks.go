// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// Labels of back ends in blk.sh.
const (
	blkback  = "blkback"
	blkbackd = "blkbackd"
	qdisk    = "qdisk"
)

// diskSpread bounds the difference between the measurements of one back end. With more the row
// says nothing: the machine was busy with other work.
var diskSpread = map[string]float64{bootInstructions: 0.10, bootTime: 0.30}

// diskRecord is one measurement of a block back end, a line of blk.sh.
type diskRecord struct {
	boot, backend, item       string
	bytes, requests, ms, irqs float64
	us                        float64 // mean latency
}

// diskRow has the figures of one back end for one item in one boot: medians.
type diskRow struct {
	Boot       string  `json:"boot"`
	Item       string  `json:"item"`
	Backend    string  `json:"backend"`
	Rate       float64 `json:"mib_per_s"`
	Latency    float64 `json:"latency_us"`
	Requests   float64 `json:"requests_per_mib"`
	Interrupts float64 `json:"guest_interrupts_per_mib"`
	Ratio      float64 `json:"ratio"`         // rate relative to blkback
	ToQdisk    float64 `json:"ratio_qdisk"`   // rate relative to qdisk
	Slower     float64 `json:"latency_ratio"` // latency relative to blkback
	Spread     float64 `json:"spread"`        // of the rates, relative to their median
	Verdict    string  `json:"verdict,omitempty"`
}

// parseDisk parses a line of blk.sh.
func parseDisk(line string) (r diskRecord, err error) {
	f := strings.Split(line, ",")
	if len(f) != 9 {
		return r, fmt.Errorf("record %q has %d fields, want 9", line, len(f))
	}
	r.boot, r.backend, r.item = f[0], f[2], f[3]
	for i, to := range []*float64{&r.bytes, &r.requests, &r.ms, &r.us, &r.irqs} {
		if *to, err = strconv.ParseFloat(f[4+i], 64); err != nil {
			return r, fmt.Errorf("record %q: %w", line, err)
		}
	}
	if r.bytes <= 0 || r.ms <= 0 {
		return r, fmt.Errorf("record %q: nothing was done", line)
	}
	return r, nil
}

// diskRows computes the rows of records, in the order in which boots, items and back ends
// appear first.
func diskRows(records []diskRecord) (rows []diskRow) {
	type key struct{ boot, item, backend string }
	var keys []key
	of := map[key][]diskRecord{}
	for _, r := range records {
		k := key{r.boot, r.item, r.backend}
		if of[k] == nil {
			keys = append(keys, k)
		}
		of[k] = append(of[k], r)
	}
	find := func(boot, item, backend string) *diskRow {
		for i := range rows {
			if r := &rows[i]; r.Boot == boot && r.Item == item && r.Backend == backend {
				return r
			}
		}
		return nil
	}
	for _, k := range keys {
		pick := func(f func(diskRecord) float64) (all []float64) {
			for _, r := range of[k] {
				all = append(all, f(r))
			}
			slices.Sort(all)
			return all
		}
		rates := pick(func(r diskRecord) float64 { return r.bytes / (1 << 20) / r.ms * 1000 })
		row := diskRow{Boot: k.boot, Item: k.item, Backend: k.backend, Rate: middle(rates)}
		row.Spread = (rates[len(rates)-1] - rates[0]) / row.Rate
		row.Latency = middle(pick(func(r diskRecord) float64 { return r.us }))
		row.Requests = middle(pick(func(r diskRecord) float64 { return r.requests / (r.bytes / (1 << 20)) }))
		row.Interrupts = middle(pick(func(r diskRecord) float64 { return r.irqs / (r.bytes / (1 << 20)) }))
		rows = append(rows, row)
	}
	for i := range rows {
		r := &rows[i]
		spread := r.Spread
		if base := find(r.Boot, r.Item, blkback); base != nil {
			r.Ratio, r.Slower = r.Rate/base.Rate, r.Latency/base.Latency
			spread = max(spread, base.Spread)
		}
		if base := find(r.Boot, r.Item, qdisk); base != nil {
			r.ToQdisk = r.Rate / base.Rate
		}
		if r.Verdict = diskVerdict(r); r.Verdict != "" && spread > diskSpread[r.Boot] {
			r.Verdict = "VOID"
		}
	}
	return rows
}

// middle returns the median of sorted values.
func middle(v []float64) float64 { return (v[(len(v)-1)/2] + v[len(v)/2]) / 2 }

// diskVerdict holds blkbackd with its defaults against the bars: sequential work as fast as
// blkback, random work at 0.7 of it, and a latency of a single request of 1.4 times its own;
// and more than qdisk everywhere.
func diskVerdict(r *diskRow) string {
	if r.Backend != blkbackd || r.Ratio == 0 {
		return ""
	}
	missed := r.ToQdisk != 0 && r.ToQdisk < 1
	switch {
	case strings.HasSuffix(r.Item, "QD1"):
		missed = missed || r.Slower > 1.4
	case strings.HasPrefix(r.Item, "rand"):
		missed = missed || r.Ratio < 0.7
	default:
		missed = missed || r.Ratio < 1
	}
	if missed {
		return "MISSED"
	}
	return "bar"
}

// printDisks prints rows as a table.
func printDisks(out io.Writer, rows []diskRow) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	boot, item := "", ""
	for i := range rows {
		r := &rows[i]
		if r.Boot != boot {
			fmt.Fprintf(w, "\nboot %s\t\tMiB/s\tof blkback\tof qdisk\tlatency us\tof blkback\trequests/MiB\tinterrupts/MiB\tspread\t\n", r.Boot)
		}
		name := r.Item
		if r.Boot == boot && r.Item == item {
			name = ""
		}
		boot, item = r.Boot, r.Item
		fmt.Fprintf(w, "%s\t%s\t%.1f\t%.2f\t%.2f\t%.0f\t%.2f\t%.2f\t%.2f\t%.0f %%\t%s\n", name, r.Backend, r.Rate, r.Ratio, r.ToQdisk, r.Latency, r.Slower, r.Requests, r.Interrupts, 100*r.Spread, r.Verdict)
	}
	return w.Flush()
}

// disksMain prints the report about the records in files, and writes it to asJSON. It fails if
// a bar is missed or a row is void.
func disksMain(files []string, asJSON string) error {
	var records []diskRecord
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			r, err := parseDisk(lines.Text())
			if err != nil {
				return err
			}
			records = append(records, r)
		}
	}
	rows := diskRows(records)
	if len(rows) == 0 {
		return fmt.Errorf("there are no records")
	}
	// By item, so that the back ends stand below each other.
	order := map[string]int{}
	for _, r := range rows {
		if k := r.Boot + r.Item; order[k] == 0 {
			order[k] = len(order) + 1
		}
	}
	slices.SortStableFunc(rows, func(a, b diskRow) int { return order[a.Boot+a.Item] - order[b.Boot+b.Item] })
	if err := printDisks(os.Stdout, rows); err != nil {
		return err
	}
	if asJSON != "" {
		b, err := json.MarshalIndent(rows, "", "\t")
		if err != nil {
			return err
		}
		if err := os.WriteFile(asJSON, b, 0o644); err != nil {
			return err
		}
	}
	missed := 0
	for _, r := range rows {
		if r.Verdict == "MISSED" || r.Verdict == "VOID" {
			missed++
		}
	}
	if missed > 0 {
		return fmt.Errorf("%d rows are void or miss their bar", missed)
	}
	return nil
}
