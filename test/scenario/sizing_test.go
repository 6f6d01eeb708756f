// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
)

// footprint holds the resources of a process.
type footprint struct {
	files, mappings int
	private         int // bytes of private memory
}

func (w *world) footprint() (p footprint) {
	w.t.Helper()
	dir := fmt.Sprintf("/proc/%d", w.Daemon().PID())
	files, err := os.ReadDir(dir + "/fd")
	w.must(err)
	p.files = len(files)
	maps, err := os.ReadFile(dir + "/maps")
	w.must(err)
	p.mappings = bytes.Count(maps, []byte("\n"))
	rollup, err := os.ReadFile(dir + "/smaps_rollup")
	w.must(err)
	for line := range strings.Lines(string(rollup)) {
		var kib int
		if n, _ := fmt.Sscanf(line, "Private_Dirty: %d", &kib); n == 1 {
			p.private += kib << 10
		}
	}
	return p
}

// allWorkersServe connects a vif to each worker, which opens what all vifs share, such as the
// worker's own pages.
func (w *world) allWorkersServe() {
	w.t.Helper()
	for range runtime.NumCPU() {
		w.rawFront(1).connect()
	}
}

// TestSizing: a connected vif costs no more files, mappings and memory than the man page
// says.
func TestSizing(t *testing.T) {
	for _, queues := range []int{1, 8} {
		t.Run(fmt.Sprintf("%d queues", queues), func(t *testing.T) {
			w := newPlainWorld(t)
			const vifs = 24
			w.allWorkersServe()
			before := w.footprint()
			for range vifs {
				w.rawFront(queues).connect()
			}
			after := w.footprint()
			per := func(a, b int) float64 { return float64(a-b) / vifs }
			files := per(after.files, before.files)
			mappings := per(after.mappings, before.mappings)
			kib := per(after.private, before.private) / 1024
			t.Logf("a vif of %d queues: %.1f files, %.1f mappings, %.0f KiB; the daemon alone %d KiB",
				queues, files, mappings, kib, before.private>>10)
			// An event channel of the embedded Xen is two files, and one on Xen.
			if most := float64(3*queues) + 0.5; files > most {
				t.Errorf("%.1f files, want %.0f", files, most)
			}
			if most := float64(4*queues) + 0.5; mappings > most {
				t.Errorf("%.1f mappings, want %.0f", mappings, most)
			}
			if most := float64(300 + 30*queues); kib > most {
				t.Errorf("%.0f KiB, want %.0f", kib, most)
			}
		})
	}
}
