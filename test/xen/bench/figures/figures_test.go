// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const older = `{"rows": [
	{"boot": "instructions", "item": "ping", "of": "netbackd", "to": "kernel", "machine": {"ratio": 1.5}}
]}`

const newer = `{"rows": [
	{"boot": "instructions", "item": "ping", "of": "netbackd", "to": "kernel", "machine": {"ratio": 1.25, "to": {"phases": [1, 1]}, "of": {"phases": [1, 1.01], "spread": 0.01}}, "bar": 1.47, "goal": 1.4},
	{"boot": "instructions", "item": "ping", "of": "plain", "to": "kernel", "machine": {"ratio": 1.3}},
	{"boot": "instructions", "item": "ping", "of": "plain", "to": "netbackd", "machine": {"ratio": 1.04}},
	{"boot": "instructions", "setup": "4 queues", "item": "ping", "of": "netbackd", "to": "kernel", "machine": {"ratio": 1.2}},
	{"boot": "time", "item": "ping", "of": "netbackd", "to": "kernel", "machine": {"ratio": 9}, "void": true}
], "counts": [
	{"boot": "instructions", "item": "tcp guest to dom0", "backend": "netbackd", "netbackd_system_calls": 32, "netbackd_grant_ops": 300, "netbackd_own_grant_ops": 290}
], "latency": [
	{"boot": "instructions", "item": "ping beside a hog", "backend": "kernel", "p50_p90_p99_ns": [1000000, 2000000, 3000000]},
	{"boot": "instructions", "item": "ping beside a hog", "backend": "netbackd", "p50_p90_p99_ns": [2000000, 2000000, 3000000], "ratio": [2, 1, 1]}
]}`

// folder puts both reports, and a page if it is not "", into a folder.
func folder(t *testing.T, page string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"now": newer, "before": older, "xen.md": page} {
		if text == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestPlotsAndTablesOfReports(t *testing.T) {
	dir := folder(t, "head\n"+begin+"old\n"+end+"tail\n")
	if err := run(filepath.Join(dir, "now"), filepath.Join(dir, "before"), dir); err != nil {
		t.Fatal(err)
	}
	plots, err := filepath.Glob(filepath.Join(dir, "*.svg"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range plots {
		plots[i] = filepath.Base(plots[i])
	}
	// The row in time is void, and there are no frames.
	want := []string{"xen-hypercalls.svg", "xen-instructions.svg", "xen-interrupts.svg", "xen-latency.svg", "xen-setups.svg", "xen-system-calls.svg"}
	if diff := cmp.Diff(want, plots); diff != "" {
		t.Errorf("plots (-want +got)\n%s", diff)
	}
	svg, err := os.ReadFile(filepath.Join(dir, "xen-instructions.svg"))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"netbackd before", "netbackd without io_uring", "1.50", "1.25", "1.30"} {
		if !strings.Contains(string(svg), text) {
			t.Errorf("the plot has no %q", text)
		}
	}
	page, err := os.ReadFile(filepath.Join(dir, "xen.md"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(page)
	if !strings.HasPrefix(text, "head\n"+begin) || !strings.HasSuffix(text, end+"tail\n") || strings.Contains(text, "old") {
		t.Errorf("page:\n%s", text)
	}
	for _, line := range []string{
		"| ping | 1.50 | 1.25 | 0.0 / 1.0 % | 1.47 | 1.40 | 1.30 | 1.04 |",
		"void (9.00)",
		"| tcp guest to dom0, netbackd | 32.000 | 0.000 | 0.000 | 0.000 | 290.000 | 10.000 | 0.000 | 0.000 |",
		"| ping beside a hog | 2.00 | 1.00 | 1.00 |  |  |  |",
	} {
		if !strings.Contains(text, line) {
			t.Errorf("the page has no %q:\n%s", line, text)
		}
	}
}

func TestReportsThatAreMissing(t *testing.T) {
	dir := folder(t, "")
	now := filepath.Join(dir, "now")
	if err := run(now, filepath.Join(dir, "none"), dir); err != nil {
		t.Errorf("without a report before: %v", err)
	}
	if err := run(filepath.Join(dir, "none"), "", dir); err == nil {
		t.Error("no error without a report")
	}
}

func TestPageWithoutMarks(t *testing.T) {
	dir := folder(t, "text\n")
	if err := run(filepath.Join(dir, "now"), "", dir); err == nil {
		t.Error("no error")
	}
}

func TestCountsOfTCPArePer64KiB(t *testing.T) {
	r, err := readReport(filepath.Join(folder(t, ""), "now"))
	if err != nil {
		t.Fatal(err)
	}
	got := r.perPiece(netbackd, func(n *counts) float64 { return n.SystemCalls })("tcp guest to dom0")
	if got != 2 {
		t.Errorf("%v system calls per 64 KiB, want 2", got)
	}
}
