// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// latencyItems measure pings while other processes of dom0 want its only processor. Most of
// their time is the hog's.
var latencyItems = []item{
	{"ping beside a hog", "ping", 192, 1, openBeside("hog")},
	{"ping beside a hog and tcp", "ping", 96, 1, openBeside("hog", "load")},
	{"ping beside tcp", "ping", 192, 1, openBeside("load")},
}

// pauses limits the pause before each ping. Their lengths are random, and the same in each
// measurement: without them each ping would begin at the same moment of the scheduler's cycle.
const pauses = 10 * time.Millisecond

// besides is a pinger with other processes beside it.
type besides struct {
	*pinger
	others []*exec.Cmd
}

// openBeside returns a function that starts commands of this program, which run until the work
// is closed.
func openBeside(commands ...string) func(peer) (work, error) {
	return func(to peer) (work, error) {
		w, err := openPing(to)
		if err != nil {
			return nil, err
		}
		b := &besides{pinger: w.(*pinger)}
		for _, name := range commands {
			cmd := exec.Command("/proc/self/exe", name, to.addr.String())
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			// The parent's thread is locked, so that it does not end before the process.
			cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
			if err := cmd.Start(); err != nil {
				b.close()
				return nil, fmt.Errorf("start %s: %w", name, err)
			}
			b.others = append(b.others, cmd)
		}
		return b, nil
	}
}

// do sends n pings. It fails if another process has ended.
func (b *besides) do(n int) error {
	random := rand.New(rand.NewPCG(1, 2))
	b.rtt = slices.Grow(b.rtt[:0], n)
	for range n {
		pause := unix.NsecToTimespec(random.Int64N(int64(pauses)))
		if err := unix.Nanosleep(&pause, nil); err != nil && err != unix.EINTR {
			return fmt.Errorf("nanosleep: %w", err)
		}
		if err := b.one(); err != nil {
			return err
		}
	}
	for _, cmd := range b.others {
		var status unix.WaitStatus
		if pid, err := unix.Wait4(cmd.Process.Pid, &status, unix.WNOHANG, nil); pid != 0 {
			return fmt.Errorf("%v has ended: status %#x, %w", cmd.Args, status, err)
		}
	}
	return nil
}

func (b *besides) close() {
	for _, cmd := range b.others {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	b.pinger.close()
}

// hog spins until it is killed.
func hog() error {
	quiet()
	for n := uint64(1); n != 0; {
		n |= 1
	}
	return errors.New("unreachable")
}

// load takes a stream from the guest until it is killed.
func load(to peer) error {
	quiet()
	w, err := openStream(opSend)(to)
	for err == nil {
		err = w.do(64)
	}
	return err
}

// percentiles of round trips, which are sorted: the value that at most 50, 10 and 1 of 100
// exceed.
var percentiles = []float64{0.50, 0.90, 0.99}

// percentile returns the value that a share of 1-p of the sorted values exceeds at most.
func percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(float64(len(sorted))*p), len(sorted)-1)]
}

// latency holds the percentiles of one item of one back end.
type latency struct {
	label
	Pings  int        `json:"pings"`
	NS     [3]float64 `json:"p50_p90_p99_ns"`
	Spread [3]float64 `json:"spread"`         // difference of the phases
	Ratio  [3]float64 `json:"ratio,omitzero"` // to the kernel's netback
}

// Limits of a percentile beside a hog, relative to the kernel's.
const (
	latencyBar  = 1.05
	latencyGoal = 1.00
)

// verdict returns the verdict on netbackd beside a hog.
func (l *latency) verdict() string {
	worst := slices.Max(l.Ratio[:])
	switch {
	case slices.Max(l.Spread[:]) > 0.05:
		return "VOID"
	case worst == 0 || !strings.Contains(l.Item, "hog"):
		return ""
	case worst > latencyBar:
		return "MISSED"
	case worst > latencyGoal:
		return "bar"
	}
	return "goal"
}

// latencies returns the percentiles of all pings of each item and back end, in the order in
// which they appear first.
func latencies(records []record) (out []latency) {
	find := func(l label) *latency {
		for i := range out {
			if out[i].label == l {
				return &out[i]
			}
		}
		return nil
	}
	for i := range records {
		l := records[i].label
		l.Phase = 0
		if len(records[i].RTTs) > 0 && find(l) == nil {
			out = append(out, makeLatency(records, l))
		}
	}
	for i := range out {
		l := out[i].label
		l.Backend = kernelNetback
		k := find(l)
		for p := range percentiles {
			if k != nil && k.NS[p] > 0 && k != &out[i] {
				out[i].Ratio[p] = out[i].NS[p] / k.NS[p]
			}
		}
	}
	slices.SortStableFunc(out, func(a, b latency) int { return strings.Compare(a.Boot+a.Dom0+a.Item, b.Boot+b.Dom0+b.Item) })
	return out
}

// makeLatency returns the percentiles over all phases of a label.
func makeLatency(records []record, l label) latency {
	out := latency{label: l}
	phases := map[int][]time.Duration{}
	var all []time.Duration
	for i := range records {
		r := records[i].label
		r.Phase = 0
		if r == l && !records[i].Traced {
			phases[records[i].Phase] = append(phases[records[i].Phase], records[i].RTTs...)
			all = append(all, records[i].RTTs...)
		}
	}
	slices.Sort(all)
	out.Pings = len(all)
	for i, p := range percentiles {
		out.NS[i] = float64(percentile(all, p))
		var least, most float64
		for _, v := range phases {
			slices.Sort(v)
			n := float64(percentile(v, p))
			if least == 0 || n < least {
				least = n
			}
			most = max(most, n)
		}
		if least > 0 {
			out.Spread[i] = most/least - 1
		}
	}
	return out
}

// printLatency prints a table of percentiles.
func printLatency(t io.Writer, all []latency) {
	boot := ""
	for _, l := range all {
		if l.Boot != boot {
			boot = l.Boot
			fmt.Fprintf(t, "\nround trips beside other work, boot for %s, us\t\tp50\tp90\tp99\tof the kernel\t\t\tspread\t\t\tpings\t\t\n", boot)
		}
		fmt.Fprintf(t, "%s\t%s\t", l.Item, l.Backend)
		for _, ns := range l.NS {
			fmt.Fprintf(t, "%.0f\t", ns/1000)
		}
		for _, r := range l.Ratio {
			fmt.Fprintf(t, "%s\t", figure(r, 2))
		}
		for _, s := range l.Spread {
			fmt.Fprintf(t, "%.0f %%\t", 100*s)
		}
		fmt.Fprintf(t, "%d\t%s\t\n", l.Pings, l.verdict())
	}
}
