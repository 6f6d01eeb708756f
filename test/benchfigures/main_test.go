// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestPlotsOfTheReport: the plots and the table in docs/performance are those of the report
// there, byte by byte.
func TestPlotsOfTheReport(t *testing.T) {
	const docs = "../../docs/performance"
	dir := t.TempDir()
	page, err := os.ReadFile(filepath.Join(docs, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "README.md"), page, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(filepath.Join(docs, "tap.json"), dir); err != nil {
		t.Fatal(err)
	}
	made, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(made) != 7 {
		t.Fatalf("%d files, want the page and six plots: %v", len(made), err)
	}
	for _, path := range made {
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join(docs, filepath.Base(path)))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not drawn from the report: %v", filepath.Base(path), err)
		}
	}
}

func TestNoReport(t *testing.T) {
	if err := run("/nonexistent", t.TempDir()); err == nil {
		t.Error("no error")
	}
}
