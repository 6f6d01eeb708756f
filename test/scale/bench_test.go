// SPDX-License-Identifier: Apache-2.0

package scale

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/netbackd/netbackd/internal/lab/bench"
	"github.com/netbackd/netbackd/internal/lab/crowd"
	"github.com/netbackd/netbackd/internal/lab/plot"
	"github.com/netbackd/netbackd/pkg/xen"
)

// envBench is the directory for the figures of TestBench. Without it TestBench is skipped.
const envBench = "SCALE_BENCH"

// benchVifs are the numbers of vifs at which the daemon is looked at. Memory for each vif is
// that between the second and the last.
var benchVifs = []int{50, 200, 400, 600, 800, 1000}

// TestBench measures a daemon with 1000 vifs.
func TestBench(t *testing.T) {
	dir := os.Getenv(envBench)
	if dir == "" {
		t.Skip(envBench + " is not set; see test/bench-scale")
	}
	begun := time.Now()
	rep := &bench.Report{
		Host: "one netbackd on the embedded Xen, in a network of its own",
		Method: []string{
			"The guests are domains of one vif and one queue each, played by one process without threads for them. Their TAPs are up, and on no bridge.",
			"Wakes are context switches of all threads. Memory is resident memory without the mapped rings, when the daemon has come to rest.",
			"Bars in seconds are for the daemon's processor time. The embedded Xen, its xenstored, the toolstack and the guests use the same processors, and take more of the time that passes.",
		},
	}
	h := newHost(t)
	memory := h.grow(rep)
	h.idle(rep)
	h.list(rep)
	h.takeovers(rep)
	h.tearDown(rep)
	h.few(rep)
	rep.Seconds = time.Since(begun).Seconds()
	h.must(rep.Print(os.Stdout))
	h.must(rep.WriteJSON(filepath.Join(dir, "scale-daemon.json")))
	svg, err := memory.SVG()
	h.must(err)
	h.must(os.WriteFile(filepath.Join(dir, "scale-memory.svg"), svg, 0o644))
	if n := rep.Missed(); n > 0 {
		t.Errorf("%d bars missed", n)
	}
}

// timed runs f and returns its duration, and the daemon's processor time meanwhile.
func (h *host) timed(f func() error) (took, cpu time.Duration) {
	h.tb.Helper()
	before, start := h.used(), time.Now()
	h.must(f())
	return time.Since(start), h.used().CPU - before.CPU
}

// grow connects the vifs step by step.
func (h *host) grow(rep *bench.Report) plot.Lines {
	h.tb.Helper()
	const mib = 1 << 20
	var private, rings []plot.Point
	var attach, attachCPU, connect, connectCPU time.Duration
	var base, last crowd.Usage
	kernel := h.kernelMemory()
	have := 0
	for i, n := range benchVifs {
		var guests []*crowd.Guest
		took, used := h.timed(func() (err error) { guests, err = h.Add(h.ctx, n-have, 1); return err })
		attach, attachCPU = attach+took, attachCPU+used
		took, used = h.timed(func() error { return h.Connect(h.ctx, guests) })
		connect, connectCPU = connect+took, connectCPU+used
		have = n
		last = h.comeToRest(idleTime, 2*time.Minute)
		if i == 1 {
			base = last
		}
		mapped := int64(n) * ringMemory
		private = append(private, plot.Point{X: float64(n), Y: float64(last.Memory.All()-mapped) / mib})
		rings = append(rings, plot.Point{X: float64(n), Y: float64(mapped) / mib})
	}
	rep.Method = append(rep.Method,
		fmt.Sprintf("%.1f s passed until %d vifs were attached, of which the daemon ran for %.1f s, and %.1f s until they were connected. The daemon has %d threads.",
			attach.Seconds(), have, attachCPU.Seconds(), connect.Seconds(), len(last.Threads)))
	kernel = h.kernelMemory() - kernel
	each := perVif(base, last, have-benchVifs[1])
	rep.AtMost("P14", "KiB of the daemon for each connected vif, beyond the mapped rings", float64(each)/1024, vifMemory/1024, false)
	rep.AtMost("P14", "kB of the kernel for each of them, with its TAP, and with its guest on the embedded Xen", float64(kernel)/1000/float64(have), kernelMemory/1000, false)
	rep.AtMost("P14", fmt.Sprintf("seconds to connect %d vifs", have), connectCPU.Seconds(), 3, false)
	return plot.Lines{
		Title: "Memory of the daemon by the number of connected vifs", X: "vifs", Y: "MiB",
		Series: []plot.LineSeries{{Name: "rings of the guests, which it has mapped", Points: rings}, {Name: "its own", Points: private}},
	}
}

// laneTime is longer than a guest whose turn was slow, while others were connecting, stays on a
// thread of its own.
const laneTime = 11 * time.Second

// idle looks at the daemon while nothing happens.
func (h *host) idle(rep *bench.Report) {
	h.tb.Helper()
	h.comeToRest(laneTime, 2*time.Minute)
	before := h.used()
	<-time.After(10 * time.Second)
	after := h.used()
	if said := crowd.Ran(before, after); said != "" {
		h.tb.Logf("these threads ran:\n%s", said)
	}
	rep.AtMost("P12", fmt.Sprintf("wakes of all threads in 10 s, with %d idle vifs", len(h.Guests)), float64(after.Switches-before.Switches), 0, false)
	rep.AtMost("P12", "milliseconds of processor time in these 10 s", (after.CPU-before.CPU).Seconds()*1000, 0, false)
}

// tearDown ends all connections.
func (h *host) tearDown(rep *bench.Report) {
	h.tb.Helper()
	n := len(h.Guests)
	took, cpu := h.timed(func() error { return h.Disconnect(h.ctx, h.Guests) })
	rep.AtMost("P14", fmt.Sprintf("seconds to close %d connections", n), cpu.Seconds(), 3, false)
	removed, more := h.timed(func() error { return h.Destroy(h.ctx) })
	rep.AtMost("P14", fmt.Sprintf("seconds to remove %d vifs with their TAPs", n), more.Seconds(), 3, false)
	rep.Method = append(rep.Method, fmt.Sprintf("%.1f s passed until the connections were closed, %.1f s until the vifs were removed.", took.Seconds(), removed.Seconds()))
}

// kernelMemory is the bar for the kernel's memory of a vif, in bytes.
const kernelMemory = 250_000

// kernelMemory returns the memory that the kernel uses for itself.
func (h *host) kernelMemory() int64 {
	h.tb.Helper()
	n, err := crowd.KernelMemory()
	h.must(err)
	return n
}

// list measures `netbackd list`.
func (h *host) list(rep *bench.Report) {
	h.tb.Helper()
	rep.AtMost("P16", fmt.Sprintf("milliseconds of netbackd list, daemon and command, with %d vifs", len(h.Guests)), h.listed(9).Seconds()*1000, 100, false)
}

// takeovers kills the daemon again and again, and measures its successors.
func (h *host) takeovers(rep *bench.Report) {
	h.tb.Helper()
	const rounds = 5
	took, cpu := make([]time.Duration, rounds), make([]time.Duration, rounds)
	for i := range rounds {
		took[i], cpu[i] = h.takeover()
	}
	slices.Sort(took)
	slices.Sort(cpu)
	domains := map[xen.Domid]bool{}
	for _, g := range h.Guests {
		domains[g.Domid] = true
	}
	what := fmt.Sprintf("%d vifs of %d domains", len(h.Guests), len(domains))
	rep.AtMost("P16", "seconds until a successor serves "+what+", since the start of its process", took[rounds/2].Seconds(), 3, false)
	rep.Method = append(rep.Method, fmt.Sprintf("A successor of a killed daemon used %.1f s of processor time until it served %s.", cpu[rounds/2].Seconds(), what))
}

// few measures a few domains with many vifs each: what a domain may cause is bounded, and they
// share that.
func (h *host) few(rep *bench.Report) {
	h.tb.Helper()
	guests, err := h.AddDomains(h.ctx, 10, 100, 1)
	h.must(err)
	h.must(h.Connect(h.ctx, guests))
	h.takeovers(rep)
	h.list(rep)
}
