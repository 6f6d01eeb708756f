// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

// TestDiskRows: medians, ratios to the other back ends, and verdicts.
func TestDiskRows(t *testing.T) {
	var records []diskRecord
	for _, line := range []string{
		"time,1,blkback,read 1m QD4,10485760,20,100,400,10",
		"time,2,blkbackd,read 1m QD4,10485760,20,85,500,20",
		"time,2,blkbackd,read 1m QD4,10485760,20,75,700,20",
		"time,3,qdisk,read 1m QD4,10485760,250,400,400,10",
		"time,4,blkback,read 1m QD4,10485760,20,100,600,10",
		"time,1,blkback,randread 4k QD1,1048576,256,100,100,256",
		"time,2,blkbackd,randread 4k QD1,1048576,256,150,150,256",
		"instructions,1,blkback,write 1m QD4,10485760,20,100,400,10",
		"instructions,2,blkback,write 1m QD4,10485760,20,80,400,10",
		"instructions,3,blkbackd,write 1m QD4,10485760,20,100,400,10",
	} {
		r, err := parseDisk(line)
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, r)
	}
	want := []diskRow{
		{Boot: "time", Item: "read 1m QD4", Backend: "blkback", Rate: 100, Latency: 500, Requests: 2, Interrupts: 1, Ratio: 1, ToQdisk: 4, Slower: 1},
		{Boot: "time", Item: "read 1m QD4", Backend: "blkbackd", Rate: (10/0.085 + 10/0.075) / 2, Latency: 600, Requests: 2, Interrupts: 2, Ratio: (0.1/0.085 + 0.1/0.075) / 2, ToQdisk: (0.4/0.085 + 0.4/0.075) / 2, Slower: 1.2, Spread: 0.125, Verdict: "bar"},
		{Boot: "time", Item: "read 1m QD4", Backend: "qdisk", Rate: 25, Latency: 400, Requests: 25, Interrupts: 1, Ratio: 0.25, ToQdisk: 1, Slower: 0.8},
		{Boot: "time", Item: "randread 4k QD1", Backend: "blkback", Rate: 10, Latency: 100, Requests: 256, Interrupts: 256, Ratio: 1, Slower: 1},
		{Boot: "time", Item: "randread 4k QD1", Backend: "blkbackd", Rate: 1 / 0.15, Latency: 150, Requests: 256, Interrupts: 256, Ratio: 1 / 1.5, Slower: 1.5, Verdict: "MISSED"},
		{Boot: "instructions", Item: "write 1m QD4", Backend: "blkback", Rate: 112.5, Latency: 400, Requests: 2, Interrupts: 1, Ratio: 1, Slower: 1, Spread: 25 / 112.5},
		{Boot: "instructions", Item: "write 1m QD4", Backend: "blkbackd", Rate: 100, Latency: 400, Requests: 2, Interrupts: 1, Ratio: 100 / 112.5, Slower: 1, Verdict: "VOID"},
	}
	got := diskRows(records)
	if len(got) != len(want) {
		t.Fatalf("%d rows, want %d", len(got), len(want))
	}
	for i := range want {
		g, w := got[i], want[i]
		near(t, &g.Rate, w.Rate)
		near(t, &g.Ratio, w.Ratio)
		near(t, &g.ToQdisk, w.ToQdisk)
		near(t, &g.Spread, w.Spread)
		if g != w {
			t.Errorf("row %d: got %+v, want %+v", i, g, w)
		}
	}
	for _, line := range []string{"", "time,1,blkback,read,1,2,3,4", "time,1,blkback,read,x,2,3,4,5", "time,1,blkback,read,1,2,0,4,5"} {
		if _, err := parseDisk(line); err == nil {
			t.Errorf("%q is accepted", line)
		}
	}
}

// near replaces a value by the wanted one if they differ by rounding only.
func near(t *testing.T, got *float64, want float64) {
	t.Helper()
	if d := *got - want; d < 1e-9 && d > -1e-9 {
		*got = want
	}
}
