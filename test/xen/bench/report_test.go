// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// records makes one record of 10 pings per value and phase, for phases in the order K N N
// K.
func records(boot string, values [4]uint64) (rs []record) {
	for i, v := range values {
		backend := kernelNetback
		if i == 1 || i == 2 {
			backend = netbackd
		}
		l := label{Boot: boot, Phase: i + 1, Backend: backend, Item: "ping"}
		rs = append(rs,
			record{label: l, Units: 10, Ran: cpuTime{All: 10 * v}, Took: 1, Dom0: kernelCounts{Switches: 20}},
			// Neither of these counts.
			record{label: l, Units: 10, Ran: cpuTime{All: 1000 * v}, Traced: true, Hypercalls: hypercalls{All: 50}},
		)
		rs[len(rs)-1].Item = "ping"
	}
	return rs
}

func TestVerdictOfARow(t *testing.T) {
	for _, c := range []struct {
		what    string
		values  [4]uint64
		ratio   float64
		verdict string
	}{
		{"as good as the goal", [4]uint64{1000, 1100, 1110, 1005}, 1105 / 1002.5, "goal"},
		{"within the bar", [4]uint64{1000, 1500, 1500, 1000}, 1.5, "bar"},
		{"worse than the bar", [4]uint64{1000, 1700, 1700, 1000}, 1.7, "MISSED"},
		{"the kernel's phases differ", [4]uint64{1000, 1500, 1500, 1100}, 1500.0 / 1050, "VOID"},
		{"netbackd's phases differ", [4]uint64{1000, 1400, 1500, 1000}, 1.45, "VOID"},
	} {
		t.Run(c.what, func(t *testing.T) {
			rep := makeReport(records(bootInstructions, c.values))
			if len(rep.Rows) != 1 {
				t.Fatalf("%d rows", len(rep.Rows))
			}
			r := rep.Rows[0]
			if r.Machine.Ratio != c.ratio || r.verdict() != c.verdict {
				t.Errorf("ratio %v, %s, want %v, %s", r.Machine.Ratio, r.verdict(), c.ratio, c.verdict)
			}
			if bad := c.verdict == "VOID" || c.verdict == "MISSED"; (rep.judge() != nil) != bad {
				t.Errorf("judged %v", rep.judge())
			}
		})
	}
}

func TestCountsArePerUnit(t *testing.T) {
	rep := makeReport(records(bootInstructions, [4]uint64{1, 1, 1, 1}))
	want := []counts{
		{Boot: bootInstructions, Item: "ping", Backend: kernelNetback, Hypercalls: 5, Dom0Switches: 2},
		{Boot: bootInstructions, Item: "ping", Backend: netbackd, Hypercalls: 5, Dom0Switches: 2},
	}
	if diff := cmp.Diff(want, rep.Counts); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestTimeHasNoBar(t *testing.T) {
	rs := records(bootTime, [4]uint64{1, 1, 1, 1})
	for i := range rs {
		rs[i].Took = 100
		if rs[i].Backend == netbackd {
			rs[i].Took = 1000
		}
	}
	rep := makeReport(rs)
	if err := rep.judge(); err != nil {
		t.Error(err)
	}
	var b bytes.Buffer
	if err := rep.print(&b); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "10.00") || strings.Contains(b.String(), "instructions") {
		t.Errorf("printed:\n%s", b.String())
	}
}

func TestNothingMeasuredIsAnError(t *testing.T) {
	if makeReport(nil).judge() == nil {
		t.Error("no error")
	}
	if makeReport(records(bootTime, [4]uint64{})[:2]).judge() == nil {
		t.Error("no error with one back end")
	}
}

func TestStaticGrantsTakeNoGrantOperation(t *testing.T) {
	const item = "64 B dom0 to guest"
	of := func(backend string, phase int, ops, hits uint64) []record {
		l := label{Boot: bootInstructions, Phase: phase, Backend: backend, Item: item}
		return []record{
			{label: l, Units: 10, Ran: cpuTime{All: 1000, Dom0: 600}, Daemon: 300},
			{label: l, Units: 10, Traced: true, Hypercalls: hypercalls{CopyOps: ops}, Counters: map[string]uint64{"grant_ops": ops, "static_hits": hits}},
		}
	}
	for _, c := range []struct {
		what      string
		ops, hits uint64
		bad       bool
	}{
		{"none", 0, 10, false},
		{"a few", 1, 9, true},
		{"no grant is static", 0, 0, true},
	} {
		t.Run(c.what, func(t *testing.T) {
			rep := makeReport(append(of(copying, 1, 10, 0), of(static, 2, c.ops, c.hits)...))
			if len(rep.Rows) != 1 || rep.Rows[0].Dom0.Ratio != 1 || rep.Rows[0].Daemon.Of.Value != 30 {
				t.Fatalf("rows %+v", rep.Rows)
			}
			if err := rep.judge(); (err != nil) != c.bad {
				t.Errorf("judged %v", err)
			}
		})
	}
}
