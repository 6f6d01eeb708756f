// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// roundTrips makes a record of 100 pings that take base, 2*base and so on.
func roundTrips(backend string, phase int, item string, base time.Duration) record {
	r := record{label: label{Boot: bootInstructions, Phase: phase, Backend: backend, Item: item}, Units: 100}
	for i := range 100 {
		r.RTTs = append(r.RTTs, base*time.Duration(i+1))
	}
	return r
}

func TestPercentile(t *testing.T) {
	sorted := roundTrips(netbackd, 1, "", 1).RTTs
	for _, c := range []struct {
		p    float64
		want time.Duration
	}{{0, 1}, {0.5, 51}, {0.9, 91}, {0.99, 100}, {1, 100}} {
		if got := percentile(sorted, c.p); got != c.want {
			t.Errorf("%v of 1..100: %d, want %d", c.p, got, c.want)
		}
	}
	if percentile(nil, 0.5) != 0 {
		t.Error("there is a median of nothing")
	}
}

func TestVerdictOfLatency(t *testing.T) {
	const item = "ping beside a hog"
	for _, c := range []struct {
		what    string
		item    string
		base    [4]time.Duration // in the order K N N K
		ratio   float64
		verdict string
	}{
		{"as the kernel", item, [4]time.Duration{1000, 1000, 1000, 1000}, 1, "goal"},
		{"a little worse", item, [4]time.Duration{1000, 1040, 1040, 1000}, 1.04, "bar"},
		{"worse", item, [4]time.Duration{1000, 1100, 1100, 1000}, 1.1, "MISSED"},
		{"phases differ", item, [4]time.Duration{1000, 1000, 1100, 1000}, 0, "VOID"},
		{"without a hog there is no bar", "ping beside tcp", [4]time.Duration{1000, 1100, 1100, 1000}, 1.1, ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			var rs []record
			for i, base := range c.base {
				backend := kernelNetback
				if i == 1 || i == 2 {
					backend = netbackd
				}
				rs = append(rs, roundTrips(backend, i+1, c.item, base))
			}
			rep := makeReport(rs)
			if len(rep.Latency) != 2 || rep.Latency[0].Backend != kernelNetback {
				t.Fatalf("%+v", rep.Latency)
			}
			l := rep.Latency[1]
			if l.Pings != 200 || l.verdict() != c.verdict || c.ratio != 0 && l.Ratio[0] != c.ratio {
				t.Errorf("%d pings, ratio %v, %q, want ratio %v, %q", l.Pings, l.Ratio, l.verdict(), c.ratio, c.verdict)
			}
			if bad := c.verdict == "VOID" || c.verdict == "MISSED"; (rep.judge() != nil) != bad {
				t.Errorf("judged %v", rep.judge())
			}
			var b bytes.Buffer
			if err := rep.print(&b); err != nil || !strings.Contains(b.String(), c.item) {
				t.Errorf("printed %v:\n%s", err, b.String())
			}
		})
	}
}
