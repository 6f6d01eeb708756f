// SPDX-License-Identifier: Apache-2.0

package fair

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/netbackd/netbackd/internal/dataplane"
	"github.com/netbackd/netbackd/internal/lab/hostile"
)

// The environment of the long run.
const (
	envBench  = "FAIR_BENCH"  // the file for the table; empty: no long run
	envLoads  = "FAIR_LOADS"  // names of loads, with commas; empty: all
	envRounds = "FAIR_ROUNDS" // 5 by default
)

// The machine may be busy with other work, whose part changes from one second to the next. So
// throughput is measured in short spans, alternately alone, beside the peer and beside the
// load, and figures are medians of the ratios of spans that follow each other.
const (
	span   = 160 * time.Millisecond
	settle = 40 * time.Millisecond // from the start of a load to the measurement
	turns  = 3                     // of these spans in a round
)

// turn is the throughput of the quiet guest in spans that follow each other, in bits per
// second.
type turn struct {
	alone, peer, beside float64
	paced, left         float64 // at a quarter of alone: alone, and beside a limited load
}

// round are the measurements of one round.
type round struct {
	turns []turn

	ping, pingBeside           time.Duration // 99th percentile
	reconnect, detach, show    time.Duration
	reconnectB, detachB, showB time.Duration // beside the load

	strength hostile.Strength
	share    float64 // the load's part of the time that it and the quiet guest take of the worker
	cpu      float64 // processors that the load's guests use
	daemon   float64 // processors that the daemon uses meanwhile
}

// p99 returns the 99th percentile.
func p99(d []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(d))
	return s[min(len(s)*99/100, len(s)-1)]
}

// round measures everything once.
func (f *field) round() (r round) {
	f.tb.Helper()
	const pings = 70 // in each turn
	var alone, beside []time.Duration
	for range turns {
		var t turn
		t.alone = f.stream(f.quiet, span, 0)
		f.beside(f.honest, func() { t.peer = f.stream(f.quiet, span, 0) })
		f.beside(f.full, func() {
			f.uses(&r, func() { t.beside = f.stream(f.quiet, span, 0) })
		})
		alone = append(alone, f.pings(f.quiet, pings)...)
		f.beside(f.full, func() { beside = append(beside, f.pings(f.quiet, pings)...) })
		r.turns = append(r.turns, t)
	}
	r.ping, r.pingBeside = p99(alone), p99(beside)
	r.reconnect, r.show, r.detach = f.life()
	r.strength = f.beside(f.full, func() { r.reconnectB, r.showB, r.detachB = f.life() })
	for i := range r.turns {
		t := &r.turns[i]
		quarter := int64(t.alone / 8 / 4)
		t.paced = f.stream(f.quiet, span, quarter)
		limited := func() func() hostile.Strength { return f.attack(r.strength.PerSecond() / 4) }
		f.beside(limited, func() { t.left = f.stream(f.quiet, span, quarter) })
	}
	return r
}

// full begins the load at full strength.
func (f *field) full() (end func() hostile.Strength) { return f.attack(0) }

// beside calls do while a load is under way.
func (h *host) beside(begin func() (end func() hostile.Strength), do func()) hostile.Strength {
	h.tb.Helper()
	end := begin()
	<-time.After(settle)
	do()
	return end()
}

// life measures how long what is not in the data path takes. A device of vhost-user is not
// detached.
func (f *field) life() (reconnect, show, detach time.Duration) {
	f.tb.Helper()
	if f.load.virt {
		return f.virtReconnect(), f.show(f.device.Name), 0
	}
	reconnect, show, detach = f.reconnect(f.other), f.show(f.quiet.VifName()), f.detach(f.other, f.index)
	if f.load.still {
		f.bridgeFloods(false) // the guest has another port
	}
	return reconnect, show, detach
}

// uses measures what the load and the daemon use while do runs.
func (f *field) uses(r *round, do func()) {
	f.tb.Helper()
	pid := f.Daemon().PID()
	if f.load.virt {
		pid = f.device.PID()
	}
	bad, daemon, began := f.used(f.bad.PID), f.used(pid), time.Now()
	worker, mine := f.bad.counter(dataplane.WorkerNS.String()), f.workerNS()
	do()
	took := time.Since(began).Seconds()
	r.cpu, r.daemon = (f.used(f.bad.PID)-bad).Seconds()/took, (f.used(pid)-daemon).Seconds()/took
	worker, mine = f.bad.counter(dataplane.WorkerNS.String())-worker, f.workerNS()-mine
	r.share = float64(worker) / float64(max(worker+mine, 1))
}

// workerNS returns the worker's time that the quiet guest has taken.
func (f *field) workerNS() uint64 {
	f.tb.Helper()
	if f.load.virt {
		return 0
	}
	s, err := f.Vif(f.ctx, f.quiet.VifName())
	f.must(err)
	return s.Counters[dataplane.WorkerNS.String()]
}

// median returns the middle of a value of all rounds.
func median[T float64 | time.Duration](rounds []round, value func(*round) T) T {
	var all []T
	for i := range rounds {
		all = append(all, value(&rounds[i]))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// part returns a/b, and 0 if b is: a peer that got nothing is no measure.
func part(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// row writes the line of a load and returns the number of bars that were missed. unit is that
// of its strength; the quiet guest's throughput is divided by per.
func row(w io.Writer, name, unit string, per float64, rounds []round) (missed int) {
	over := func(value func(t *turn) float64) float64 {
		var all []float64
		for _, r := range rounds {
			for i := range r.turns {
				all = append(all, value(&r.turns[i]))
			}
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	mark := func(text string, ok bool) string {
		if ok {
			return text
		}
		missed++
		return text + " !"
	}
	ms := func(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d)/1e6) }
	fairly := over(func(t *turn) float64 { return part(t.beside, t.peer) })
	left := over(func(t *turn) float64 { return part(t.left, t.paced) })
	ping := median(rounds, func(r *round) time.Duration { return r.ping })
	beside := median(rounds, func(r *round) time.Duration { return r.pingBeside })
	pair := func(a, b func(*round) time.Duration) string {
		m := median(rounds, b)
		return mark(ms(median(rounds, a))+" / "+ms(m), m <= time.Second)
	}
	fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%.0f\t%s\t%s\t%s / %s\t%s\t%s\t%s\t%s\t%s\t%.0f %%\t%.0f %%\t%.0f %%\t%.2f\t%.2f\n", name,
		over(func(t *turn) float64 { return t.alone })/per,
		over(func(t *turn) float64 { return t.peer })/per,
		over(func(t *turn) float64 { return t.beside })/per,
		mark(fmt.Sprintf("%.2f", fairly), fairly >= 0.8),
		mark(fmt.Sprintf("%.2f", left), left >= 0.9),
		ms(ping), mark(ms(beside), beside <= 2*ping+time.Millisecond),
		pair(func(r *round) time.Duration { return r.reconnect }, func(r *round) time.Duration { return r.reconnectB }),
		pair(func(r *round) time.Duration { return r.detach }, func(r *round) time.Duration { return r.detachB }),
		pair(func(r *round) time.Duration { return r.show }, func(r *round) time.Duration { return r.showB }),
		fmt.Sprintf("%.0f %s", median(rounds, func(r *round) float64 { return r.strength.PerSecond() }), unit),
		fmt.Sprintf("%.0f", median(rounds, func(r *round) float64 { return r.strength.SlotRate() })),
		100*median(rounds, func(r *round) float64 { return float64(r.strength.Empty) / float64(max(r.strength.Looks, 1)) }),
		100*median(rounds, func(r *round) float64 { return float64(r.strength.Failed) / float64(max(r.strength.Done, 1)) }),
		100*median(rounds, func(r *round) float64 { return r.share }),
		median(rounds, func(r *round) float64 { return r.cpu }),
		median(rounds, func(r *round) float64 { return r.daemon }),
	)
	return missed
}

// The first lines of the tables. Throughput is in Mbit/s and in reads per second.
const (
	heading     = "load\talone\tpeer\tbeside\tof fair share\tleft\tping p99 ms" + columns
	diskHeading = "load\talone\tpeer\tbeside\tof fair share\tleft\tread p99 ms" + columns
	columns     = "\treconnect ms\tdetach ms\tshow ms\tstrength/s\tslots/s\tempty\tfailed\tworker\tguest CPUs\tdaemon CPUs"
)

// long skips a test that is not part of a short run.
func long(t *testing.T) {
	t.Helper()
	if os.Getenv(envBench) == "" {
		t.Skip(envBench + " is not set; see test/fair/run")
	}
}

// roundsWanted returns the number of rounds.
func roundsWanted(t *testing.T) int {
	t.Helper()
	v := os.Getenv(envRounds)
	if v == "" {
		return 5
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// wanted reports whether a load is to be run.
func wanted(name string) bool {
	only := os.Getenv(envLoads)
	return only == "" || slices.Contains(strings.Split(only, ","), name)
}

// table is a table in the file of the long run. The test's log has each line as soon as it is
// known.
type table struct {
	t       *testing.T
	heading string
	lines   strings.Builder
}

func newTable(t *testing.T, heading string) *table { return &table{t: t, heading: heading} }

// Write adds a line.
func (tab *table) Write(line []byte) (int, error) {
	tab.t.Logf("%s", line)
	return tab.lines.Write(line)
}

// end writes the table, if it has lines.
func (tab *table) end() {
	tab.t.Helper()
	if tab.lines.Len() == 0 {
		return
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, tab.heading)
	fmt.Fprint(w, tab.lines.String())
	if err := w.Flush(); err != nil {
		tab.t.Fatal(err)
	}
	note(tab.t, b.String())
}

// note adds a line to the file of the long run.
func note(t *testing.T, line string) {
	t.Helper()
	f, err := os.OpenFile(os.Getenv(envBench), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = fmt.Fprintln(f, line)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestLoads is the long run: all loads on vifs and on devices of vhost-user.
func TestLoads(t *testing.T) {
	long(t)
	tab := newTable(t, heading)
	missed := 0
	for _, l := range loads {
		if !wanted(l.name) {
			continue
		}
		t.Run(l.name, func(t *testing.T) {
			f := newField(newHost(t, "--workers=1"), l)
			var rounds []round
			for range roundsWanted(t) {
				rounds = append(rounds, f.round())
			}
			missed += row(tab, l.name, l.unit, 1e6, rounds)
		})
	}
	tab.end()
	if missed > 0 {
		t.Errorf("%d bars missed", missed)
	}
}
