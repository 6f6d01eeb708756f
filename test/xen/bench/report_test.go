// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

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
		{"within the bar", [4]uint64{1000, 1450, 1450, 1000}, 1.45, "bar"},
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
		{group: group{Boot: bootInstructions}, Item: "ping", Unit: "ping", Units: 10, Backend: kernelNetback, Hypercalls: 5, Dom0Switches: 2},
		{group: group{Boot: bootInstructions}, Item: "ping", Unit: "ping", Units: 10, Backend: netbackd, Hypercalls: 5, Dom0Switches: 2},
	}
	if diff := cmp.Diff(want, rep.Counts, cmp.AllowUnexported(counts{})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestTimeIsJudgedOnlyWhenQuiet: a row of the boot in real time whose phases differ is void, which
// is no error.
func TestTimeIsJudgedOnlyWhenQuiet(t *testing.T) {
	for _, c := range []struct {
		what    string
		took    [4]time.Duration // in the order K N N K
		verdict string
		bad     bool
	}{
		{"within the goal", [4]time.Duration{100, 160, 160, 100}, "goal", false},
		{"as what was reached", [4]time.Duration{100, 200, 200, 100}, "goal missed", false},
		{"worse than the bar", [4]time.Duration{100, 220, 220, 100}, "MISSED", true},
		{"the phases differ", [4]time.Duration{100, 200, 400, 100}, "VOID", false},
	} {
		t.Run(c.what, func(t *testing.T) {
			rs := records(bootTime, [4]uint64{1, 1, 1, 1})
			for i := range rs {
				rs[i].Took = 10 * c.took[rs[i].Phase-1]
			}
			rep := makeReport(rs)
			if len(rep.Rows) != 1 || rep.Rows[0].verdict() != c.verdict || (rep.judge() != nil) != c.bad {
				t.Errorf("rows %+v, judged %v", rep.Rows, rep.judge())
			}
			var b bytes.Buffer
			if err := rep.print(&b); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(b.String(), c.verdict) || strings.Contains(b.String(), "instructions") {
				t.Errorf("printed:\n%s", b.String())
			}
		})
	}
}

func TestOnePhaseInTimeIsVoid(t *testing.T) {
	rs := records(bootTime, [4]uint64{1, 1, 1, 1})
	one := rs[:0]
	for _, r := range rs {
		if r.Phase <= 2 {
			one = append(one, r)
		}
	}
	if rep := makeReport(one); len(rep.Rows) != 1 || rep.Rows[0].verdict() != "VOID" {
		t.Errorf("rows %+v", rep.Rows)
	}
}

// TestGroupsAreComparedWithinThemselves: back ends are compared only with those of the same dom0
// and the same setup.
func TestGroupsAreComparedWithinThemselves(t *testing.T) {
	rs := records(bootInstructions, [4]uint64{1000, 1200, 1200, 1000})
	other := records(bootInstructions, [4]uint64{2000, 1000, 1000, 2000})
	for i := range other {
		other[i].Setup = withoutTSO
	}
	newer := records(bootInstructions, [4]uint64{3000, 3000, 3000, 3000})
	for i := range newer {
		newer[i].label.Dom0 = "trixie"
		if newer[i].Backend == netbackd {
			newer[i].Backend = plain
		}
	}
	type got struct {
		Group  string
		Of, To string
		Ratio  float64
		Bar    float64
	}
	var all []got
	for _, r := range makeReport(slices.Concat(rs, other, newer)).Rows {
		all = append(all, got{r.group.String(), r.Of, r.To, r.Machine.Ratio, r.Bar})
	}
	want := []got{
		{"instructions", netbackd, kernelNetback, 1.2, 1.47},
		{"instructions, guest without TSO", netbackd, kernelNetback, 0.5, 0},
		{"instructions, trixie", plain, kernelNetback, 1, 1.544},
	}
	if diff := cmp.Diff(want, all); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestTargets(t *testing.T) {
	newer := group{Boot: bootInstructions, Dom0: "trixie"}
	for _, c := range []struct {
		g      group
		of, to string
		item   string
		want   target
	}{
		{group{Boot: bootInstructions}, netbackd, kernelNetback, "tcp guest to dom0", target{1.05, 1.00}},
		{group{Boot: bootInstructions, Setup: "4 queues"}, plain, kernelNetback, "ping", target{1.544, 1.40}},
		{group{Boot: bootTime}, netbackd, kernelNetback, "ping", target{2.153, 1.7}},
		{newer, netbackd, kernelNetback, "tcp guest to dom0", target{0.893, 0.85}},
		{newer, netbackd, kernelNetback, "ping", target{1.47, 1.40}},
		{group{Boot: bootInstructions}, plain, netbackd, "ping", target{1.103, 1.05}},
		{group{Boot: bootTime}, plain, netbackd, "ping", target{}},
		{group{Boot: bootInstructions}, static, kernelNetback, "64 B guest to dom0", target{1.155, 0.75}},
		{group{Boot: bootInstructions}, static, kernelNetback, "1500 B guest to dom0", target{0.788, 0.75}},
		{group{Boot: bootInstructions}, copying, kernelNetback, "64 B guest to dom0", target{}},
		{group{Boot: bootInstructions, Setup: withoutTSO}, netbackd, kernelNetback, "ping", target{}},
	} {
		if got := targetOf(c.g, &comparison{of: c.of, to: c.to}, c.item); got != c.want {
			t.Errorf("%s, %s to %s, %s: %v, want %v", c.g, c.of, c.to, c.item, got, c.want)
		}
	}
}

func TestLimitsOfCounts(t *testing.T) {
	const goodCalls = 8
	kernel := counts{group: group{Boot: bootInstructions}, Item: "ping", Units: 100, Backend: kernelNetback, Dom0Interrupts: 1, GuestInterrupts: 2}
	for _, c := range []struct {
		what   string
		change func(*counts)
		want   string
	}{
		{"as the kernel", func(*counts) {}, ""},
		{"ticks of the clock", func(c *counts) { c.Dom0Interrupts += 0.07 }, ""},
		{"interrupts of dom0", func(c *counts) { c.Dom0Interrupts += 0.19 }, "interrupts"},
		{"one side instead of the other", func(c *counts) { c.Dom0Interrupts, c.GuestInterrupts = 2, 1 }, ""},
		{"interrupts of the guest", func(c *counts) { c.GuestInterrupts += 0.2 }, "interrupts"},
		{"without a limit", func(c *counts) { c.GuestInterrupts, c.Setup = 9, withoutTSO }, ""},
		{"system calls", func(c *counts) { c.SystemCalls = goodCalls + 1 }, "system calls"},
		{"system calls of another item", func(c *counts) { c.SystemCalls, c.Item = goodCalls+1, "tcp dom0 to guest" }, ""},
		{"a map", func(c *counts) { c.Maps = 0.01 }, "grant maps"},
		{"both", func(c *counts) { c.Maps, c.SystemCalls = 1, 9 }, "grant maps, system calls"},
	} {
		t.Run(c.what, func(t *testing.T) {
			n := kernel
			n.Backend, n.SystemCalls = netbackd, goodCalls
			c.change(&n)
			if got := countsVerdict(&n, &kernel); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestInterruptsByDevice(t *testing.T) {
	const text = `           CPU0       CPU1
 48:       1000          5  xen-percpu    -virq      timer0
 67:          3          0   xen-dyn    -event     vif1.0-q0
NMI:          0          0   Non-maskable interrupts
ERR:          7
`
	want := map[string]uint64{"timer0": 1005, "vif1.0-q0": 3, "ERR": 7}
	if diff := cmp.Diff(want, parseInterrupts(text)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
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
